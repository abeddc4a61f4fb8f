"""Candidate pairs of small graphs worked out by hand."""

import itertools
import math

import numpy as np
import pytest

from duplicates import retrieval
from duplicates.neighbours import Neighbours, build_vectors, find_within


def test_pairs_are_distinct_and_sorted() -> None:
    words = np.array([[1, 2, 3], [1, 2, -1], [33, 34, 4], [40, -1, -1]], np.int16)
    table = find_within(build_vectors(words, 64), Neighbours.build_empty(4))
    pairs = retrieval.propose_neighbours(table)
    assert pairs.tolist() == [[0, 1, 0], [0, 2, 1], [1, 2, 1]]


def test_transitive_pairs_combine_mirrors() -> None:
    links = np.array([[0, 1, 1], [1, 2, 1], [2, 3, 0]])
    scores = np.full(3, 12, np.int16)
    pairs = retrieval.propose_transitive_pairs(links, scores, 5)
    assert pairs.tolist() == [[0, 2, 0], [1, 3, 1]]
    assert len(retrieval.propose_transitive_pairs(links[:0], scores[:0], 5)) == 0


def test_transitive_pairs_come_from_the_best_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "MAX_LINKS", 2)
    links = np.array([[0, 1, 0], [0, 2, 0], [0, 3, 1], [0, 4, 0]])
    for scores, pair in (([12, 40, 30, 20], [2, 3, 1]), ([12, 12, 12, 40], [1, 4, 0])):
        found = retrieval.propose_transitive_pairs(links, np.array(scores, np.int16), 5)
        assert found.tolist() == [pair]


def test_each_set_has_its_own_best_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "MAX_LINKS", 2)
    # slice 0 is linked to 1 to 3 of its own set and, less well, to 4 and 5 of the other
    links = np.array([[0, 1, 0], [0, 2, 0], [0, 3, 0], [0, 4, 0], [0, 5, 1]])
    scores = np.array([40, 50, 60, 20, 30], np.int16)
    found = retrieval.propose_transitive_pairs_between(links, scores, 6, n_first=4)
    assert found.tolist() == [[2, 4, 0], [2, 5, 1], [3, 4, 0], [3, 5, 1]]


def test_of_equal_links_the_first_are_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "MAX_LINKS", 2)
    links = np.array([[0, 3, 0], [0, 1, 1], [0, 2, 1], [0, 1, 0]])
    for order in itertools.permutations(range(4)):
        scores = np.full(4, 12, np.int16)
        found = retrieval.propose_transitive_pairs(links[list(order)], scores, 4)
        assert not len(found)  # both places of 0 are taken by 1, upright and mirrored


def test_transitive_pairs_grow_no_faster_than_the_slices() -> None:
    n_slices = 400  # all linked with each other
    links = np.array([[*pair, 0] for pair in itertools.combinations(range(n_slices), 2)])
    scores = np.random.default_rng(0).integers(12, 200, len(links), np.int16)
    most = n_slices * math.comb(retrieval.MAX_LINKS, 2)
    assert len(retrieval.propose_transitive_pairs(links, scores, n_slices)) <= most < len(links)
