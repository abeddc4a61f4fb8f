"""Cluster linked images into duplicate sets and into groups that a split must not divide."""

import heapq
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# A score is the number of features that agree on one transform. docs/duplicates.md describes how
# these values were chosen.
DUPLICATE_SCORE = 30  # the same slice
STRONG_SCORE = 20  # nearly always of one patient: such links are never cut
GROUP_SCORE = 12  # probably neighbouring slices
MEAN_SCORE = 3  # mean score between two parts of a group, below which their weak links are cut

Numbers = npt.NDArray[np.intp]


def cluster_duplicates(pairs: npt.NDArray, scores: npt.NDArray, n_images: int) -> Numbers:
    """Return the index of each image's duplicate set [N], from linked pairs [P, 2] and scores."""
    return connect(pairs[scores >= DUPLICATE_SCORE], n_images)


def cluster_groups(
    pairs: npt.NDArray,
    scores: npt.NDArray,
    n_images: int,
    patients: Sequence[str] = (),
    series: Sequence[str] = (),
) -> Numbers:
    """Return the index of each image's group [N].

    Images of one patient or one series, and images with a link of STRONG_SCORE or more, form a
    unit, which is never divided. Weaker links, from GROUP_SCORE up, join units by average linkage
    of the best score between two units (0 without a link) as long as the mean is MEAN_SCORE or
    more. A chain of weak links is therefore cut where it is thin, whatever the sizes of its parts.
    Weak links never join two units of known patients.

    Args:
        pairs: Linked images [P, 2].
        scores: Their scores [P].
        n_images: N.
        patients: Known patient of each image [N], "" if unknown; () if all are unknown.
        series: Series or volume of each image, likewise.

    Source: Sokal and Michener 1958, A statistical method for evaluating systematic relationships.
    """
    together = [pair_equal(np.asarray(keys, dtype=str)) for keys in (patients, series)]
    units = connect(np.concatenate([pairs[scores >= STRONG_SCORE], *together]), n_images)
    has_patient = np.zeros(units.max(initial=-1) + 1, bool)
    has_patient[units[together[0][:, 0]]] = True
    is_weak = (scores >= GROUP_SCORE) & (scores < STRONG_SCORE)
    ends, weak_scores = units[pairs[is_weak]].reshape(-1, 2), scores[is_weak]
    is_allowed = (ends[:, 0] != ends[:, 1]) & ~has_patient[ends].all(axis=1)
    ends, weak_scores = ends[is_allowed], weak_scores[is_allowed]
    parts = _join_units(ends, weak_scores, has_patient)
    return np.unique(parts[units], return_inverse=True)[1]


def _join_units(
    ends: npt.NDArray, scores: npt.NDArray, has_patient: npt.NDArray[np.bool_]
) -> Numbers:
    """Return for each of U units the first unit of its part, [U].

    Pairs of parts without a link are not stored, so the cost follows the number of links.

    Args:
        ends: Units of each link [L, 2].
        scores: Scores of the links [L].
        has_patient: [U] whether the patient of the unit is known.
    """
    sizes, is_known = [1] * len(has_patient), has_patient.tolist()
    part_of = np.arange(len(has_patient))
    sums: list[dict[int, int]] = [{} for _ in sizes]  # of the scores between two parts
    order = np.argsort(scores, kind="stable")  # the best link of two units is the last
    for (first, second), score in zip(ends[order].tolist(), scores[order].tolist(), strict=True):
        sums[first][second] = sums[second][first] = score

    def measure(first: int, second: int) -> tuple[float, int, int, int]:
        n_pairs = sizes[first] * sizes[second]
        return -sums[first][second] / n_pairs, min(first, second), max(first, second), n_pairs

    queue = [measure(first, second) for first in range(len(sizes)) for second in sums[first]]
    heapq.heapify(queue)
    while queue and -queue[0][0] >= MEAN_SCORE:
        _, kept, joined, n_pairs = heapq.heappop(queue)
        is_outdated = joined not in sums[kept] or n_pairs != sizes[kept] * sizes[joined]
        if is_outdated or (is_known[kept] and is_known[joined]):
            continue
        for other, total in sums[joined].items():
            del sums[other][joined]
            if other != kept:
                sums[kept][other] = sums[other][kept] = sums[kept].get(other, 0) + total
        sums[joined] = {}
        sizes[kept] += sizes[joined]
        is_known[kept] |= is_known[joined]
        part_of[joined] = kept
        for other in sums[kept]:
            heapq.heappush(queue, measure(kept, other))
    for unit in range(len(part_of)):  # a part keeps the smallest of its units
        part_of[unit] = part_of[part_of[unit]]
    return part_of


def pair_equal(keys: npt.NDArray[np.str_]) -> npt.NDArray[np.intp]:
    """Return pairs [P, 2] that connect the rows with the same key; "" connects nothing."""
    _, first, codes = np.unique(keys, return_index=True, return_inverse=True)
    rows = np.flatnonzero(keys != "")
    return np.stack([rows, first[codes[rows]]], axis=1)


def connect(pairs: npt.NDArray, n_nodes: int) -> Numbers:
    """Return the number of each node's connected component, [N], from pairs of nodes [P, 2]."""
    # scipy before 1.12 silently connects nothing when the node numbers have 64 bits
    ends = (pairs[:, 0].astype(np.int32), pairs[:, 1].astype(np.int32))
    graph = coo_array((np.ones(len(pairs), np.int8), ends), shape=(n_nodes, n_nodes))
    return connected_components(graph, directed=False)[1].astype(np.intp)
