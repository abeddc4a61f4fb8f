"""Compare the slices of two sets: find slices of the first that are copies of the second's."""

import dataclasses

import numpy as np

from duplicates.clustering import GROUP_SCORE
from duplicates.finder import TRANSITIVE_ROUNDS, Duplicates, one_opencv_thread
from duplicates.neighbours import build_vectors, find_between
from duplicates.registration import Registrations, register_pairs
from duplicates.retrieval import (
    isin,
    propose_neighbours_between,
    propose_transitive_pairs_between,
)
from duplicates.sift_features import load_vocabulary


def compare_sets(first: Duplicates, second: Duplicates) -> Registrations:
    """Register pairs of a slice of the first set and one of the second that may show one slice.

    The candidates are the nearest slices of the second set for each slice of the first, and pairs
    that are both among the best links of a third slice of either set.

    Returns:
        The pairs [row in `first`, row in `second`, 1 if the first is mirrored], sorted.
    """
    n_first, n_all = len(first.digests), len(first.digests) + len(second.digests)
    features = first.features.join(second.features)
    vectors = build_vectors(features.words, len(load_vocabulary()))
    links = second.links()
    moved = dataclasses.replace(links, pairs=links.pairs + np.array([n_first, n_first, 0]))
    inside = first.links().join(moved)
    neighbours = find_between(vectors[:n_first], vectors[n_first:])
    with one_opencv_thread():
        compared = register_pairs(features, propose_neighbours_between(neighbours, n_first))
        for _ in range(TRANSITIVE_ROUNDS):
            links = inside.join(compared.take(compared.scores >= GROUP_SCORE))
            proposed = propose_transitive_pairs_between(links.pairs, links.scores, n_all, n_first)
            fresh = proposed[~isin(proposed, compared.pairs)]
            compared = compared.join(register_pairs(features, fresh))
    pairs = compared.pairs - np.array([0, n_first, 0])
    return Registrations(pairs, compared.scores, compared.matrices)
