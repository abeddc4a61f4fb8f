"""The most similar slices of each slice, by the visual words that they share.

Each slice is compared with every other one, in blocks, by products of matrices. The search is exact
and can be continued: only new slices, and those that lost a neighbour, are compared again.

Source: Sivic and Zisserman 2003, Video Google: a text retrieval approach to object matching;
Arandjelovic and Zisserman 2012, Three things everyone should know to improve object retrieval (the
root of a histogram).
"""

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array, csr_array
from threadpoolctl import threadpool_limits
from tqdm import tqdm

NEIGHBOURS = 50  # of each slice; another slice and its mirror image count as two
ROWS_AT_ONCE = 2048
# Word vectors are whole numbers of about this length. All sums of their products stay below 2**24,
# so float32 adds them without rounding, and neither the cores nor the blocks change the ranking.
VECTOR_LENGTH = 2800
NO_CODE = np.iinfo(np.int32).max
NO_SIMILARITY = 1  # two slices that share a word have 2 or more

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Neighbours:
    """The NEIGHBOURS nearest slices of each slice, best first; of equal ones, the smallest code.

    Attributes:
        codes: Twice the row of the neighbour, plus 1 if one of the two is mirrored, int32
            [N, NEIGHBOURS]; NO_CODE where no other slice shares a word.
        similarity: Twice the product of the vectors, float32 [N, NEIGHBOURS], whole numbers.
    """

    codes: npt.NDArray[np.int32]
    similarity: Floats

    @classmethod
    def build_empty(cls, n_slices: int) -> "Neighbours":
        """Return a table without neighbours."""
        shape = (n_slices, NEIGHBOURS)
        return cls(np.full(shape, NO_CODE, np.int32), np.full(shape, NO_SIMILARITY, np.float32))

    def translate(self, row_of: Rows, n_slices: int) -> "Neighbours":
        """Return the table of another set of slices; slices that lost a neighbour have none.

        Args:
            row_of: New row of each present slice, -1 if it is gone, in rising order.
            n_slices: Size of the other set.
        """
        is_filled = self.codes != NO_CODE
        ends = row_of[np.where(is_filled, self.codes, 0) // 2]
        kept = np.flatnonzero((row_of >= 0) & ~(is_filled & (ends < 0)).any(axis=1))
        table = Neighbours.build_empty(n_slices)
        codes = np.where(is_filled, 2 * ends + self.codes % 2, NO_CODE)
        table.codes[row_of[kept]] = codes[kept]
        table.similarity[row_of[kept]] = self.similarity[kept]
        return table

    def list_directed(self) -> tuple[Rows, npt.NDArray[np.int64]]:
        """Return the slice and the code of each neighbour, [P] each."""
        rows, places = np.nonzero(self.codes != NO_CODE)
        return rows, self.codes[rows, places].astype(np.int64)


def build_vectors(words: npt.NDArray[np.int16], n_words: int) -> csr_array:
    """Return the roots of the word histograms, int16 [N, n_words], of VECTOR_LENGTH each.

    Args:
        words: Visual words of each slice [N, M], -1 for padding.
        n_words: Size of the vocabulary, mirror images included.
    """
    rows, places = np.nonzero(words >= 0)
    ends = (rows.astype(np.int32), words[rows, places].astype(np.int32))
    counts = coo_array((np.ones(len(rows), np.int32), ends), (len(words), n_words)).tocsr()
    totals = np.repeat(counts.sum(axis=1), np.diff(counts.indptr))
    counts.data = np.rint(VECTOR_LENGTH * np.sqrt(counts.data / totals)).astype(np.int16)
    return counts


def find_within(vectors: csr_array, known: Neighbours) -> Neighbours:
    """Find the neighbours of each slice among the others.

    Args:
        vectors: Of all slices [N, W], from `build_vectors`.
        known: Result of an earlier search; only slices without a neighbour are compared with all.
    """
    table = Neighbours(known.codes.copy(), known.similarity.copy())
    is_open = table.codes[:, 0] == NO_CODE
    order = np.argsort(~is_open, kind="stable")  # open slices first
    vectors, n_open = vectors[order], int(is_open.sum())

    def compare(start: int, other: int) -> list[_Offers]:
        own = slice(start, min(start + ROWS_AT_ONCE, n_open))
        others = slice(other, other + ROWS_AT_ONCE)
        offers = []
        for flip, similarity in enumerate(_multiply(vectors[own], vectors[others])):
            if other == start:
                np.fill_diagonal(similarity, -1)  # a slice is not its own neighbour
            offers.append(_choose(table, order[own], order[others], similarity, flip))
            offers.append(_choose(table, order[others], order[own], similarity.T, flip))
        return offers

    starts = range(0, len(order), ROWS_AT_ONCE)
    _fill(table, compare, [(a, b) for a in starts for b in starts if a < n_open and b >= a])
    return table


def find_between(first: csr_array, second: csr_array) -> Neighbours:
    """Find the neighbours of each slice of a first set among the slices of a second set."""
    table = Neighbours.build_empty(first.shape[0])
    rows, columns = np.arange(first.shape[0]), np.arange(second.shape[0])

    def compare(start: int, other: int) -> list[_Offers]:
        own = slice(start, start + ROWS_AT_ONCE)
        others = slice(other, other + ROWS_AT_ONCE)
        both = enumerate(_multiply(first[own], second[others]))
        return [_choose(table, rows[own], columns[others], each, flip) for flip, each in both]

    starts, others = (range(0, len(each), ROWS_AT_ONCE) for each in (rows, columns))
    _fill(table, compare, list(itertools.product(starts, others)))
    return table


class _Offers(NamedTuple):
    """Possible neighbours, [P] each."""

    rows: Rows
    codes: npt.NDArray[np.int32]
    similarity: Floats


def _fill(
    table: Neighbours,
    compare: Callable[[int, int], list[_Offers]],
    blocks: Sequence[tuple[int, int]],
) -> None:
    """Compare blocks of slices on all cores and add what they offer to the table."""
    with threadpool_limits(1), ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(lambda block: compare(*block), blocks)
        for offers in tqdm(done, "similar slices", len(blocks), unit="block", disable=None):
            for each in offers:
                _add(table, each)


def _multiply(first: csr_array, second: csr_array) -> tuple[Floats, Floats]:
    """Return the similarity of the slices [A, B], and that of one's mirror image to the other.

    Mirroring exchanges the halves l and r of a vector. Two products of half the length yield both:
    (l + r)(l' + r') and (l - r)(l' - r'), of which the sum is 2(l l' + r r') and the difference
    2(l r' + r l').
    """
    (even, odd), (other_even, other_odd) = _split(first), _split(second)
    total, difference = even @ other_even.T, odd @ other_odd.T
    return total + difference, total - difference


def _split(vectors: csr_array) -> tuple[Floats, Floats]:
    """Return sum and difference of the halves of vectors, [A, W / 2] each."""
    dense = vectors.toarray().astype(np.float32)
    half = dense.shape[1] // 2
    return dense[:, :half] + dense[:, half:], dense[:, :half] - dense[:, half:]


def _choose(table: Neighbours, rows: Rows, columns: Rows, similarity: Floats, flip: int) -> _Offers:
    """Return those of a block [rows, columns] that rank above the last neighbour of their row.

    The table may be filled meanwhile: its last neighbours only get better, so too many are returned
    at worst. For this, similarities are read before codes, and a row that was not full then takes
    all that reach its least similarity.
    """
    least = table.similarity[rows, -1]
    is_short = least == NO_SIMILARITY
    if is_short.any() and len(columns) > NEIGHBOURS:
        best = np.partition(similarity[is_short], -NEIGHBOURS, axis=1)[:, -NEIGHBOURS]
        least[is_short] = np.maximum(best, NO_SIMILARITY)
    own, other = np.nonzero(similarity >= least[:, None])
    values, codes = similarity[own, other], (2 * columns[other] + flip).astype(np.int32)
    is_better = is_short[own] | (values > least[own]) | (codes < table.codes[rows[own], -1])
    return _Offers(rows[own][is_better], codes[is_better], values[is_better])


def _add(table: Neighbours, offers: _Offers) -> None:
    """Keep the best NEIGHBOURS of the present and the offered neighbours of each slice."""
    if not len(offers.rows):
        return
    rows, places = np.unique(offers.rows, return_inverse=True)
    place = np.concatenate([np.repeat(np.arange(len(rows)), NEIGHBOURS), places])
    codes = np.concatenate([table.codes[rows].ravel(), offers.codes])
    similarity = np.concatenate([table.similarity[rows].ravel(), offers.similarity])
    order = np.lexsort((codes, -similarity, place))
    place, codes, similarity = place[order], codes[order], similarity[order]
    # a pair of two open slices of one block is offered twice
    is_repeat = np.append(False, (np.diff(place) == 0) & (np.diff(codes) == 0)) & (codes != NO_CODE)
    place, codes, similarity = place[~is_repeat], codes[~is_repeat], similarity[~is_repeat]
    first = np.searchsorted(place, np.arange(len(rows)))
    chosen = first[:, None] + np.arange(NEIGHBOURS)
    table.codes[rows], table.similarity[rows] = codes[chosen], similarity[chosen]
