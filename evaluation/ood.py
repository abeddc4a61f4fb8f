"""Whether a picture is like those that a network learnt from, by its distance from them."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FALSE_ALARMS = 0.02  # share of val slices that may lie beyond the threshold
NEIGHBOURS = 5
SLICES_AT_ONCE = 512
LEAST_NORM = 1e-12
LEAST_DEVIATION = 1e-6
FARTHEST = 30.0  # deviations: no channel that was silent in training decides alone

Embeddings = NDArray[np.float32]


def find_nearest(reference: Embeddings, embeddings: Embeddings) -> NDArray[np.int64]:
    """The nearest of the reference for each embedding, by the angle between them.

    Args:
        reference: [M, D].
        embeddings: [N, D].

    Returns:
        Rows of the reference [N, k], the nearest first, k = 5 or M where that is less.
    """
    cosines = scale_to_length_1(embeddings) @ scale_to_length_1(reference).T
    return np.argsort(-cosines, axis=1, kind="stable")[:, :NEIGHBOURS]


def scale_to_length_1(embeddings: Embeddings) -> Embeddings:
    """Each row [N, D] divided by its length."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return (embeddings / np.maximum(lengths, LEAST_NORM)).astype(np.float32)


def standardise(
    statistics: Embeddings, mean: NDArray[np.float32], deviation: NDArray[np.float32]
) -> Embeddings:
    """Statistics of layers [N, D] in deviations from the mean of training [D], within +-30."""
    scaled = (statistics - mean) / np.maximum(deviation, LEAST_DEVIATION)
    return np.clip(scaled, -FARTHEST, FARTHEST).astype(np.float32)


def measure_distances(reference: Embeddings, scaled: Embeddings) -> NDArray[np.float64]:
    """How far slices are from the fifth nearest of training, 0 or more, low is like them.

    Args:
        reference: Of `standardise`, [M, D]; of fewer than five the farthest counts.
        scaled: The same of the slices, [N, D].

    Source: Sun et al. 2022, Out-of-distribution detection with deep nearest neighbors; of layers
    inside the network here rather than of the last one.
    """
    place = min(NEIGHBOURS, len(reference)) - 1
    norms = np.einsum("md,md->m", reference, reference, dtype=np.float64)
    distances = np.empty(len(scaled))
    for start in range(0, len(scaled), SLICES_AT_ONCE):
        some = scaled[start : start + SLICES_AT_ONCE]
        own = np.einsum("nd,nd->n", some, some, dtype=np.float64)
        squares = own[:, None] + norms - 2.0 * (some @ reference.T)
        nearest = np.partition(squares, place, axis=1)[:, place]
        distances[start : start + len(some)] = np.sqrt(np.maximum(0.0, nearest))
    return distances


def fit_threshold(distances: NDArray[np.float64], groups: NDArray[np.str_]) -> float:
    """The distance beyond which a picture is called unlike: 2 % of the val groups go beyond it.

    A group counts by the farthest of its slices: a threshold over single slices would be that of
    the few largest groups. Of fewer than 50 groups none goes beyond it.

    Args:
        distances: [N] of the val slices.
        groups: [N] their groups.
    """
    places = np.unique(groups, return_inverse=True)[1]
    farthest = np.zeros(places.max() + 1)
    np.maximum.at(farthest, places, distances)
    farthest.sort()
    return float(farthest[math.ceil((1 - FALSE_ALARMS) * len(farthest)) - 1])


@dataclass(frozen=True)
class Novelty:
    """What was fitted: training slices in deviations [M, D], mean and deviation [D], threshold."""

    statistics: Embeddings
    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    threshold: float


def fit_novelty(train: Embeddings, val: Embeddings, groups: NDArray[np.str_]) -> Novelty:
    """The scale of training, and how far slices of val are from it.

    Args:
        train: Statistics of layers, [M, D].
        val: The same of the val slices, [N, D].
        groups: Of the val slices, [N].
    """
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    # as they are kept: a threshold is to be met by what is compared later
    statistics = standardise(train, mean, deviation).astype(np.float16).astype(np.float32)
    distances = measure_distances(statistics, standardise(val, mean, deviation))
    return Novelty(statistics, mean, deviation, fit_threshold(distances, groups))
