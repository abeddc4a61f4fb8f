"""Candidate pairs of small graphs worked out by hand."""

import numpy as np

from duplicates import retrieval
from duplicates.neighbours import Neighbours, build_vectors, find_within


def test_pairs_are_distinct_and_sorted() -> None:
    words = np.array([[1, 2, 3], [1, 2, -1], [33, 34, 4], [40, -1, -1]], np.int16)
    table = find_within(build_vectors(words, 64), Neighbours.build_empty(4))
    pairs = retrieval.propose_neighbours(table)
    assert pairs.tolist() == [[0, 1, 0], [0, 2, 1], [1, 2, 1]]


def test_transitive_pairs_combine_mirrors() -> None:
    links = np.array([[0, 1, 1], [1, 2, 1], [2, 3, 0]])
    assert retrieval.propose_transitive_pairs(links, 5).tolist() == [[0, 2, 0], [1, 3, 1]]
    assert len(retrieval.propose_transitive_pairs(links[:0], 5)) == 0
