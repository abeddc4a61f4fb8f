"""Propose pairs of slices to compare: the most similar ones, and those with a common link."""

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array, triu

from duplicates.neighbours import Neighbours

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
        proposed.append(_order_pairs(common.row, common.col, np.full(common.nnz, parity)))
    return _sort(np.concatenate(proposed))


def _build_adjacency(links: Pairs, n_slices: int) -> coo_array:
    """Return the symmetric adjacency matrix of links [N, N]."""
    ends = (links[:, :2].T.ravel(), links[:, 1::-1].T.ravel())
    return coo_array((np.ones(len(ends[0]), np.int64), ends), shape=(n_slices, n_slices)).tocsr()


def _order_pairs(first: npt.NDArray, second: npt.NDArray, flip: npt.NDArray) -> Pairs:
    pairs = [np.minimum(first, second), np.maximum(first, second), flip]
    return _sort(np.stack(pairs, axis=1).astype(np.int64))


def _sort(pairs: Pairs) -> Pairs:
    """Return the distinct pairs, sorted."""
    return pairs[np.unique(encode(pairs), return_index=True)[1]]
