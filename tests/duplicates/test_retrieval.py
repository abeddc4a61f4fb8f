"""Candidate pairs of small vocabularies and graphs worked out by hand."""

import numpy as np

from duplicates.retrieval import propose_pairs, propose_transitive_pairs


def test_candidates_share_words() -> None:
    words = np.full((4, 3), -1, np.int16)
    words[0], words[1] = [1, 2, 3], [1, 2, 3]
    words[2], words[3] = [5, 6, 7], [5 + 8, 6 + 8, 7 + 8]  # mirror images of each other
    pairs = {tuple(pair) for pair in propose_pairs(words, 16)}
    assert {(0, 1, 0), (2, 3, 1)} <= pairs
    assert all(first < second for first, second, _ in pairs)


def test_transitive_pairs_combine_mirrors() -> None:
    links = np.array([[0, 1, 1], [1, 2, 1], [2, 3, 0]])
    assert propose_transitive_pairs(links, 5).tolist() == [[0, 2, 0], [1, 3, 1]]
    assert len(propose_transitive_pairs(links[:0], 5)) == 0
