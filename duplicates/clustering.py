"""Cluster linked images into duplicate sets and into groups that a split must not divide."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform

# A score is the number of features that agree on one transform. docs/duplicates.md describes how
# these values were chosen.
DUPLICATE_SCORE = 30  # the same slice
STRONG_SCORE = 20  # nearly always of one patient: such links are never cut
GROUP_SCORE = 12  # probably neighbouring slices
MEAN_SCORE = 3  # mean score between two parts of a group, below which their weak links are cut

_CANNOT_LINK = 1e15  # distance of two patients: no mean that includes it reaches the threshold

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
    joined = connect(ends, len(has_patient))
    groups = np.arange(len(has_patient))
    for component in np.flatnonzero(np.bincount(joined) > 1):
        members = np.flatnonzero(joined == component)
        is_inside = joined[ends[:, 0]] == component
        parts = _join_units(
            np.searchsorted(members, ends[is_inside]), weak_scores[is_inside], has_patient[members]
        )
        groups[members] = members[parts]
    return np.unique(groups[units], return_inverse=True)[1]


def _join_units(
    ends: npt.NDArray, scores: npt.NDArray, has_patient: npt.NDArray[np.bool_]
) -> Numbers:
    """Return for each of U connected units the first unit of its part, [U].

    Args:
        ends: Units of each link [L, 2].
        scores: Scores of the links [L].
        has_patient: [U] whether the patient of the unit is known.
    """
    n_units = len(has_patient)
    similarity = np.zeros((n_units, n_units))
    np.maximum.at(similarity, (ends.min(axis=1), ends.max(axis=1)), scores)
    distances = STRONG_SCORE - np.maximum(similarity, similarity.T)
    distances[np.ix_(has_patient, has_patient)] = _CANNOT_LINK
    np.fill_diagonal(distances, 0)
    tree = linkage(squareform(distances), "average")
    parts = fcluster(tree, STRONG_SCORE - MEAN_SCORE, "distance")
    _, first, codes = np.unique(parts, return_index=True, return_inverse=True)
    return first[codes]


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
