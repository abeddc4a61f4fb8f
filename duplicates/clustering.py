"""Cluster linked images into duplicate sets and into groups that a split must not divide."""

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import ClusterNode, linkage, to_tree
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform

# A score is the number of features that agree on one transform. The thresholds were chosen by the
# study in docs/duplicates.md.
DUPLICATE_SCORE = 30  # the same slice
GROUP_SCORE = 12  # probably neighbouring slices
PATIENT_IMAGES = 60  # more images than a patient has; larger groups are divided at weak links

Numbers = npt.NDArray[np.intp]


def cluster_duplicates(pairs: npt.NDArray, scores: npt.NDArray, n_images: int) -> Numbers:
    """Return the index of each image's duplicate set [N], from linked pairs [P, 2] and scores."""
    return connect(pairs[scores >= DUPLICATE_SCORE], n_images)


def cluster_groups(pairs: npt.NDArray, scores: npt.NDArray, n_images: int) -> Numbers:
    """Return the index of each image's group [N], from linked pairs [P, 2] and scores.

    Scores from GROUP_SCORE up link duplicates and probable neighbours. A group of more than
    PATIENT_IMAGES images is divided at its weakest links, by average linkage over its duplicate
    sets, until each part is small enough or is one duplicate set.

    Source: Sokal and Michener 1958, A statistical method for evaluating systematic relationships.
    """
    is_linked = scores >= GROUP_SCORE
    pairs, scores = pairs[is_linked], scores[is_linked]
    groups = connect(pairs, n_images)
    duplicate_sets = cluster_duplicates(pairs, scores, n_images)
    set_sizes = np.bincount(duplicate_sets)
    for large in np.flatnonzero(np.bincount(groups) > PATIENT_IMAGES):
        members = np.unique(duplicate_sets[groups == large])
        inside = groups[pairs[:, 0]] == large
        ends = np.searchsorted(members, duplicate_sets[pairs[inside]])
        similarity = np.zeros((len(members), len(members)))
        np.maximum.at(similarity, (ends.min(axis=1), ends.max(axis=1)), scores[inside])
        similarity = np.maximum(similarity, similarity.T)
        for part in _divide(similarity, set_sizes[members]):
            groups[np.isin(duplicate_sets, members[part])] = groups.max() + 1
    return np.unique(groups, return_inverse=True)[1]


def _divide(similarity: npt.NDArray[np.float64], sizes: npt.NDArray[np.intp]) -> list[list[int]]:
    """Divide a group into parts of at most PATIENT_IMAGES images, or of one duplicate set.

    Args:
        similarity: Best score between two duplicate sets, 0 without a link, symmetric [S, S].
        sizes: Images of each duplicate set [S].
    """
    if len(sizes) == 1:
        return [[0]]
    distances = similarity.max() - similarity
    np.fill_diagonal(distances, 0)
    stack: list[ClusterNode] = [to_tree(linkage(squareform(distances), "average"))]
    parts: list[list[int]] = []
    while stack:
        node = stack.pop()
        members = node.pre_order()
        if len(members) == 1 or sizes[members].sum() <= PATIENT_IMAGES:
            parts.append(sorted(members))
        else:
            stack += [node.left, node.right]
    return parts


def connect(pairs: npt.NDArray, n_nodes: int) -> Numbers:
    """Return the number of each node's connected component, [N], from pairs of nodes [P, 2]."""
    # scipy before 1.12 silently connects nothing when the node numbers have 64 bits
    ends = (pairs[:, 0].astype(np.int32), pairs[:, 1].astype(np.int32))
    graph = coo_array((np.ones(len(pairs), np.int8), ends), shape=(n_nodes, n_nodes))
    return connected_components(graph, directed=False)[1].astype(np.intp)
