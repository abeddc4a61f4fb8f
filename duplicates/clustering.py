"""From scored links to sets: copies of one slice, and slices that must stay on one side."""

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import ClusterNode, linkage, to_tree
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform

# How the bars were chosen: docs/copies.md. Scores are features that agree on one transform.
SLICE_SCORE = 30  # copies of one slice
GROUP_SCORE = 12  # likely neighbours
PATIENT_IMAGES = 60  # more than a patient fills: weak links alone hold no larger group together

Numbers = npt.NDArray[np.intp]


def number_slices(pairs: npt.NDArray, scores: npt.NDArray, n_images: int) -> Numbers:
    """A number for each image; copies of one slice share it.

    Args:
        pairs: Linked images [P, 2].
        scores: [P].
        n_images: N.
    """
    return connect(pairs[scores >= SLICE_SCORE], n_images)


def number_groups(pairs: npt.NDArray, scores: npt.NDArray, n_images: int) -> Numbers:
    """A number for each image; copies and likely neighbours share it.

    Links of GROUP_SCORE join groups. One of more than PATIENT_IMAGES images is divided where it
    hangs together least, by average linkage over its slices, until no part is larger; copies of
    one slice are never divided.

    Args:
        pairs: Linked images [P, 2].
        scores: [P].
        n_images: N.

    Source: Sokal and Michener 1958, A statistical method for evaluating systematic relationships.
    """
    linked = scores >= GROUP_SCORE
    pairs, scores = pairs[linked], scores[linked]
    groups = connect(pairs, n_images)
    slices = number_slices(pairs, scores, n_images)
    copies = np.bincount(slices)  # images of each slice
    for large in np.flatnonzero(np.bincount(groups) > PATIENT_IMAGES):
        members = np.unique(slices[groups == large])
        inside = groups[pairs[:, 0]] == large
        ends = np.searchsorted(members, slices[pairs[inside]])
        likeness = np.zeros((len(members), len(members)))
        np.maximum.at(likeness, (ends.min(axis=1), ends.max(axis=1)), scores[inside])
        likeness = np.maximum(likeness, likeness.T)
        for part in _divide(likeness, copies[members]):
            groups[np.isin(slices, members[part])] = groups.max() + 1
    return np.unique(groups, return_inverse=True)[1]


def _divide(likeness: npt.NDArray[np.float64], sizes: npt.NDArray[np.intp]) -> list[list[int]]:
    """Parts of at most PATIENT_IMAGES images, or of one slice, of one large group.

    Args:
        likeness: Best score between two slices, 0 where there is no link, symmetric [S, S].
        sizes: Images of each slice [S].
    """
    if len(sizes) == 1:
        return [[0]]
    distances = likeness.max() - likeness
    np.fill_diagonal(distances, 0)
    waiting: list[ClusterNode] = [to_tree(linkage(squareform(distances), "average"))]
    parts: list[list[int]] = []
    while waiting:
        node = waiting.pop()
        slices = node.pre_order()
        if len(slices) == 1 or sizes[slices].sum() <= PATIENT_IMAGES:
            parts.append(sorted(slices))
        else:
            waiting += [node.left, node.right]
    return parts


def connect(pairs: npt.NDArray, n_nodes: int) -> Numbers:
    """The number of the component that each node is in, by pairs of nodes, [N].

    The ends go in as 32 bits: in a graph of 64 scipy before 1.12 finds nothing, and does not fail.
    """
    ends = (pairs[:, 0].astype(np.int32), pairs[:, 1].astype(np.int32))
    graph = coo_array((np.ones(len(pairs), np.int8), ends), shape=(n_nodes, n_nodes))
    return connected_components(graph, directed=False)[1].astype(np.intp)
