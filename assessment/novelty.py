"""Whether a picture is like those that a network learnt from, by the distance of its embedding."""

import math

import numpy as np
from numpy.typing import NDArray

FALSE_ALARMS = 0.02  # share of val slices that may lie beyond the threshold
NEIGHBOURS = 5
LEAST_NORM = 1e-12

Embeddings = NDArray[np.float32]


def find_nearest(
    reference: Embeddings, embeddings: Embeddings
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The nearest of the reference for each embedding, and how far they are.

    Args:
        reference: [M, D].
        embeddings: [N, D].

    Returns:
        Rows of the reference [N, k], the nearest first, k = 5 or M where that is less, and their
        distances [N, k]: of embeddings scaled to length 1, in 0..2.

    Source: Sun et al. 2022, Out-of-distribution detection with deep nearest neighbors.
    """
    count = min(NEIGHBOURS, len(reference))
    cosines = scale_to_length_1(embeddings) @ scale_to_length_1(reference).T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    nearest = np.take_along_axis(cosines, order, axis=1)
    return order, np.sqrt(np.maximum(0.0, 2 - 2 * nearest.astype(np.float64)))


def scale_to_length_1(embeddings: Embeddings) -> Embeddings:
    """Each row [N, D] divided by its length."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return (embeddings / np.maximum(lengths, LEAST_NORM)).astype(np.float32)


def fit_threshold(distances: NDArray[np.float64], groups: NDArray[np.str_]) -> float:
    """The distance beyond which a picture is called unlike: 2 % of the val groups go beyond it.

    A group counts by the farthest of its slices: a threshold over single slices would be that of
    the few largest groups.

    Args:
        distances: [N] of the val slices.
        groups: [N] their groups.
    """
    farthest = np.sort([distances[groups == group].max() for group in np.unique(groups)])
    return float(farthest[math.ceil((1 - FALSE_ALARMS) * len(farthest)) - 1])
