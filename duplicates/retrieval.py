"""Propose pairs of slices to compare: the most similar ones, and those with a common link."""

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array, csr_array, triu

from duplicates.neighbours import Neighbours

# Only so many links of a slice propose transitive pairs; nearly all real slices have fewer. Without
# a limit, the pairs of slices that all look alike, as phantoms do, grow with their square.
MAX_LINKS = 20

Pairs = npt.NDArray[np.int64]  # [P, 3]: first row, second row (larger), 1 if one is mirrored
Scores = npt.NDArray[np.int16]  # [P]


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


def propose_transitive_pairs(links: Pairs, scores: Scores, n_slices: int) -> Pairs:
    """Return pairs of slices that are both among the MAX_LINKS best links of a third slice, sorted.

    Whether such a pair is mirrored follows from its two links.
    """
    best = _choose_best(*_list_directed(links, scores))
    return _pair_ends(best, best, n_slices)


def propose_transitive_pairs_between(
    links: Pairs, scores: Scores, n_slices: int, n_first: int
) -> Pairs:
    """Return such pairs of one slice of a first and one of a second set, sorted.

    The third slice is of either set; its MAX_LINKS best links to each of the sets are used. Rows of
    the second set are numbered from n_first on; `links` are those within and between the sets.
    """
    directed, scores = _list_directed(links, scores)
    is_first = directed[:, 1] < n_first
    first, second = (_choose_best(directed[of], scores[of]) for of in (is_first, ~is_first))
    return _pair_ends(first, second, n_slices)


def _list_directed(links: Pairs, scores: Scores) -> tuple[Pairs, Scores]:
    """Return each link from either of its slices [2 P, 3], and the scores."""
    return np.concatenate([links, links[:, [1, 0, 2]]]), np.concatenate([scores, scores])


def _choose_best(directed: Pairs, scores: Scores) -> Pairs:
    """Return the MAX_LINKS best links from each slice; of equal ones, those to the first slices."""
    starts, ends, flips = directed.T
    order = np.lexsort((flips, ends, -scores, starts))
    starts = starts[order]
    ranks = np.arange(len(starts)) - np.searchsorted(starts, starts)
    return directed[order[ranks < MAX_LINKS]]


def _pair_ends(first: Pairs, second: Pairs, n_slices: int) -> Pairs:
    """Return pairs of an end of `first` and an end of `second` that have links from one slice."""
    pairs = []
    own = _build_matrix(first, first[:, 2], n_slices)
    for flip in (0, 1):
        other = _build_matrix(second, second[:, 2] ^ flip, n_slices)
        common = triu(own @ other.T, 1).tocoo()
        pairs.append(np.stack([common.row, common.col, np.full(common.nnz, flip)], axis=1))
    return _sort(np.concatenate(pairs).astype(np.int64))


def _build_matrix(directed: Pairs, flips: npt.NDArray[np.int64], n_slices: int) -> csr_array:
    """Return which slice has a link, mirrored or not, from which one [N, 2 N]."""
    places = directed[:, 1], 2 * directed[:, 0] + flips
    shape = (n_slices, 2 * n_slices)
    return coo_array((np.ones(len(directed), bool), places), shape=shape).tocsr()


def _order_pairs(first: npt.NDArray, second: npt.NDArray, flip: npt.NDArray) -> Pairs:
    pairs = [np.minimum(first, second), np.maximum(first, second), flip]
    return _sort(np.stack(pairs, axis=1).astype(np.int64))


def _sort(pairs: Pairs) -> Pairs:
    """Return the distinct pairs, sorted."""
    return pairs[np.unique(encode(pairs), return_index=True)[1]]
