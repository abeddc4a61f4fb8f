"""Propose pairs of slices to compare: the most similar ones, and those with a common link."""

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array, csr_array, triu

from duplicates.neighbours import Neighbours

# Links of a slice that propose transitive pairs: more than nearly all real slices have. Without a
# limit, the pairs of slices that all look alike, as phantoms do, would grow with their square.
MAX_LINKS = 20

Pairs = npt.NDArray[np.int64]  # [P, 3]: first row, second row (larger), 1 if one is mirrored


def encode(pairs: Pairs) -> npt.NDArray[np.int64]:
    """Return one number for each pair [P], in the order of the pairs."""
    return (pairs[:, 0] << 33) | (pairs[:, 1] << 1) | pairs[:, 2]


def isin(pairs: Pairs, others: Pairs) -> npt.NDArray[np.bool_]:
    """Return which of the pairs are among the others, [P]."""
    return np.isin(encode(pairs), encode(others))


def propose_neighbours(neighbours: Neighbours) -> Pairs:
    """Return each slice with its neighbours of the same set: distinct pairs, sorted."""
    rows, codes = neighbours.list_directed()
    return _order_pairs(rows, codes // 2, codes % 2)


def propose_neighbours_between(neighbours: Neighbours, n_first: int) -> Pairs:
    """Return each slice of a first set with its neighbours of a second set, sorted.

    Rows of the second set are numbered from n_first on.
    """
    rows, codes = neighbours.list_directed()
    return _order_pairs(rows, n_first + codes // 2, codes % 2)


def propose_transitive_pairs(links: Pairs, scores: npt.NDArray[np.int16], n_slices: int) -> Pairs:
    """Return pairs of slices that are both among the MAX_LINKS best links of a third slice.

    Whether such a pair is mirrored follows from its two links. Of equal links, those to the first
    slices are best.
    """
    middles, ends = links[:, :2].ravel(), links[:, 1::-1].ravel()
    flips, scores = np.repeat(links[:, 2], 2), np.repeat(scores, 2)
    order = np.lexsort((flips, ends, -scores, middles))
    middles, ends, flips = middles[order], ends[order], flips[order]
    is_best = np.arange(len(middles)) - np.searchsorted(middles, middles) < MAX_LINKS
    straight, mirrored = (
        _build_matrix(ends[chosen], middles[chosen], n_slices)
        for chosen in (is_best & (flips == flip) for flip in (0, 1))
    )
    crossed = straight @ mirrored.T
    common = (straight @ straight.T + mirrored @ mirrored.T, crossed + crossed.T)
    proposed = []
    for flip, matrix in enumerate(common):
        upper = triu(matrix, 1).tocoo()
        proposed.append(_order_pairs(upper.row, upper.col, np.full(upper.nnz, flip)))
    return _sort(np.concatenate(proposed))


def _build_matrix(rows: npt.NDArray, columns: npt.NDArray, size: int) -> csr_array:
    """Return a matrix [size, size] that is true at these places."""
    return coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(size, size)).tocsr()


def _order_pairs(first: npt.NDArray, second: npt.NDArray, flip: npt.NDArray) -> Pairs:
    pairs = [np.minimum(first, second), np.maximum(first, second), flip]
    return _sort(np.stack(pairs, axis=1).astype(np.int64))


def _sort(pairs: Pairs) -> Pairs:
    """Return the distinct pairs, sorted."""
    return pairs[np.unique(encode(pairs), return_index=True)[1]]
