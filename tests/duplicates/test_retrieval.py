"""Candidate pairs of small vocabularies and graphs worked out by hand."""

import numpy as np
import pytest

from duplicates import retrieval


def test_candidates_share_rare_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slice 0 shares one rare word with slice 1 and two common words with slices 4 to 12."""
    monkeypatch.setattr(retrieval, "NEIGHBOURS", 1)
    common = [[2, 3, 7 + number] for number in range(9)]
    words = [[1, 2, 3], [1, 4, 5], [4, 5, 6], [36, 37, 38], *common]  # 2 and 3: mirror images
    pairs = {tuple(pair) for pair in retrieval.propose_pairs(np.array(words, np.int16), 64)}
    assert {(0, 1, 0), (2, 3, 1)} <= pairs
    assert len(pairs) <= 2 * len(words)
    assert all(first < second for first, second, _ in pairs)


def test_transitive_pairs_combine_mirrors() -> None:
    links = np.array([[0, 1, 1], [1, 2, 1], [2, 3, 0]])
    assert retrieval.propose_transitive_pairs(links, 5).tolist() == [[0, 2, 0], [1, 3, 1]]
    assert len(retrieval.propose_transitive_pairs(links[:0], 5)) == 0
