"""Propose pairs of slices to compare: pairs that share rare visual words.

Source: Sivic and Zisserman 2003, Video Google: a text retrieval approach to object matching.
"""

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array, triu

NEIGHBOURS = 30  # candidates for each slice, and as many for its mirror image
ROWS_AT_ONCE = 512
# Word vectors are integers of this length. The sums of their products stay below 2**24, so float32
# adds them without rounding, and neither the cores nor the order of slices change the ranking.
VECTOR_LENGTH = 3000

Pairs = npt.NDArray[np.int64]  # [P, 3]: first row, second row (larger), 1 if one is mirrored


def propose_pairs(words: npt.NDArray[np.int16], n_words: int) -> Pairs:
    """Return the nearest slices of each slice and of its mirror image by visual words.

    Args:
        words: Visual words of each slice [N, M], -1 for padding.
        n_words: Size of the vocabulary, mirror images included.

    Returns:
        Distinct pairs, sorted.
    """
    n_slices = len(words)
    if n_slices < 2:
        return np.zeros((0, 3), np.int64)
    vectors = _build_vectors(words, n_words)
    return _propose_nearest(vectors, n_slices, 0, min(NEIGHBOURS, n_slices - 1))


def propose_pairs_between(words: npt.NDArray[np.int16], n_first: int, n_words: int) -> Pairs:
    """Return the nearest slices of a second set for each slice of a first set, mirrored or not.

    Args:
        words: Visual words of both sets [N, M], those of the first set in the first rows.
        n_first: Size of the first set.
        n_words: Size of the vocabulary, mirror images included.

    Returns:
        Distinct pairs of a row of the first set and a row of the second, sorted.
    """
    n_second = len(words) - n_first
    if not n_first or not n_second:
        return np.zeros((0, 3), np.int64)
    vectors = _build_vectors(words, n_words)
    return _propose_nearest(vectors, n_first, n_first, min(NEIGHBOURS, n_second))


def _propose_nearest(
    vectors: npt.NDArray[np.float32], n_rows: int, start: int, n_taken: int
) -> Pairs:
    """Return the nearest of the rows from `start` on for each of the first `n_rows` rows."""
    others, half = vectors[start:], vectors.shape[1] // 2
    mirrored = np.concatenate([others[:, half:], others[:, :half]], axis=1)
    found = []
    for flip, candidates in ((0, others), (1, mirrored)):
        for first in range(0, n_rows, ROWS_AT_ONCE):
            rows = np.arange(first, min(first + ROWS_AT_ONCE, n_rows))
            similarity = vectors[rows] @ candidates.T  # [rows, others]
            own = rows[rows >= start]  # a slice is not its own neighbour
            similarity[own - first, own - start] = -1
            nearest = start + np.argpartition(-similarity, n_taken - 1, axis=1)[:, :n_taken]
            found.append(_order_pairs(np.repeat(rows, n_taken), nearest.ravel(), flip))
    return np.unique(np.concatenate(found), axis=0)


def propose_transitive_pairs(links: Pairs, n_slices: int) -> Pairs:
    """Return pairs of slices that are both linked to a third one.

    Whether such a pair is mirrored follows from its two links.
    """
    if not len(links):
        return links
    proposed = []
    for parity in (0, 1):
        total = coo_array((n_slices, n_slices), dtype=np.int64).tocsr()
        for flip in (0, 1):
            first, second = (
                _build_adjacency(links[links[:, 2] == value], n_slices)
                for value in (flip, flip ^ parity)
            )
            total = total + first @ second
        common = triu(total, 1).tocoo()
        proposed.append(_order_pairs(common.row, common.col, parity))
    return np.unique(np.concatenate(proposed), axis=0)


def _build_vectors(words: npt.NDArray[np.int16], n_words: int) -> npt.NDArray[np.float32]:
    """Return tf-idf vectors of visual words, rounded to whole numbers [N, n_words]."""
    n_slices = len(words)
    rows, places = np.nonzero(words >= 0)
    counts = np.zeros((n_slices, n_words), np.float32)
    np.add.at(counts, (rows, words[rows, places]), 1)
    occurs = (counts > 0).sum(axis=0)
    occurs = occurs + np.roll(occurs, n_words // 2)  # a word is as common as its mirror image
    rarity = np.log(2 * n_slices / np.maximum(occurs, 1)).astype(np.float32)
    vectors = np.sqrt(counts) * rarity
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.rint(vectors * (VECTOR_LENGTH / np.maximum(lengths, 1e-9)))


def _build_adjacency(links: Pairs, n_slices: int) -> coo_array:
    """Return the symmetric adjacency matrix of links [N, N]."""
    ends = (links[:, :2].T.ravel(), links[:, 1::-1].T.ravel())
    return coo_array((np.ones(len(ends[0]), np.int64), ends), shape=(n_slices, n_slices)).tocsr()


def _order_pairs(first: npt.NDArray, second: npt.NDArray, flip: int) -> Pairs:
    smaller, larger = np.minimum(first, second), np.maximum(first, second)
    return np.stack([smaller, larger, np.full_like(smaller, flip)], axis=1).astype(np.int64)
