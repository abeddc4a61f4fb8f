"""Out-of-distribution detection by the distance of layer statistics from the training slices."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FALSE_ALARM_RATE = 0.02  # share of val groups beyond the threshold
NEIGHBOURS = 5
CHUNK_SLICES = 512
MIN_NORM = 1e-12
MIN_DEVIATION = 1e-6
MAX_DEVIATIONS = 30.0  # limits the effect of a channel that is constant in training

Embeddings = NDArray[np.float32]
Neighbours = tuple[tuple[str, str], ...]  # sha256 and class, the nearest first
REFERENCE_KEYS = {"sha256", "labels", "embeddings", "threshold", "mean", "deviation", "statistics"}


def find_nearest(reference: Embeddings, embeddings: Embeddings) -> NDArray[np.int64]:
    """Find the nearest reference rows of each embedding by cosine similarity.

    Args:
        reference: [M, D].
        embeddings: [N, D].

    Returns:
        Rows of the reference [N, min(5, M)], the nearest first.
    """
    cosines = normalise_rows(embeddings) @ normalise_rows(reference).T
    return np.argsort(-cosines, axis=1, kind="stable")[:, :NEIGHBOURS]


def normalise_rows(embeddings: Embeddings) -> Embeddings:
    """Divide each row [N, D] by its Euclidean norm."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return (embeddings / np.maximum(lengths, MIN_NORM)).astype(np.float32)


def standardise(
    statistics: Embeddings, mean: NDArray[np.float32], deviation: NDArray[np.float32]
) -> Embeddings:
    """Standardise layer statistics [N, D] by those of training [D] and clip them to +-30."""
    scaled = (statistics - mean) / np.maximum(deviation, MIN_DEVIATION)
    return np.clip(scaled, -MAX_DEVIATIONS, MAX_DEVIATIONS).astype(np.float32)


def compute_distances(reference: Embeddings, scaled: Embeddings) -> NDArray[np.float64]:
    """Compute the Euclidean distance [N] of each slice from its fifth nearest training slice.

    Args:
        reference: Standardised statistics of the training slices [M, D]; if M is below five, the
            farthest is used.
        scaled: Standardised statistics of the slices [N, D].

    Source: Sun et al. 2022, Out-of-distribution detection with deep nearest neighbors; here with
    statistics of inner layers instead of the last one.
    """
    index = min(NEIGHBOURS, len(reference)) - 1
    norms = np.einsum("md,md->m", reference, reference, dtype=np.float64)
    distances = np.empty(len(scaled))
    for start in range(0, len(scaled), CHUNK_SLICES):
        chunk = scaled[start : start + CHUNK_SLICES]
        own = np.einsum("nd,nd->n", chunk, chunk, dtype=np.float64)
        squares = own[:, None] + norms - 2.0 * (chunk @ reference.T)
        nearest = np.partition(squares, index, axis=1)[:, index]
        distances[start : start + len(chunk)] = np.sqrt(np.maximum(0.0, nearest))
    return distances


def fit_threshold(distances: NDArray[np.float64], groups: NDArray[np.str_]) -> float:
    """Fit the distance that 2 % of the val groups exceed; with fewer than 50 groups, none.

    Each group counts with its farthest slice; with all slices, the few largest groups would
    determine the threshold.

    Args:
        distances: [N] of the val slices.
        groups: [N] ids.
    """
    codes = np.unique(groups, return_inverse=True)[1]
    farthest = np.zeros(codes.max() + 1)
    np.maximum.at(farthest, codes, distances)
    farthest.sort()
    return float(farthest[math.ceil((1 - FALSE_ALARM_RATE) * len(farthest)) - 1])


@dataclass(frozen=True)
class OODDetector:
    """Standardised training statistics [M, D], their mean and deviation [D], and the threshold.

    `val_distances` [N] of the val slices are multiples of the threshold.
    """

    statistics: Embeddings
    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    threshold: float
    val_distances: NDArray[np.float64]


def fit_ood_detector(train: Embeddings, val: Embeddings, groups: NDArray[np.str_]) -> OODDetector:
    """Fit the scale of the statistics on training slices and the threshold on val slices.

    Args:
        train: Layer statistics of the training slices, [M, D].
        val: Layer statistics of the val slices, [N, D].
        groups: Ids of the val slices, [N].
    """
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    # rounded as in the checkpoint, so that the threshold matches distances computed from it
    statistics = standardise(train, mean, deviation).astype(np.float16).astype(np.float32)
    distances = compute_distances(statistics, standardise(val, mean, deviation))
    threshold = fit_threshold(distances, groups)
    return OODDetector(statistics, mean, deviation, threshold, distances / threshold)


class Reference:
    """The features of the training slices that a checkpoint stores instead of their pixels."""

    def __init__(self, stored: dict[str, Any]) -> None:
        self.rows = list(zip(stored["sha256"], stored["labels"], strict=True))
        self._threshold = stored["threshold"]
        self._embeddings, self._statistics, self._mean, self._deviation = (
            stored[key].float().numpy() for key in ("embeddings", "statistics", "mean", "deviation")
        )

    def compute_distances(self, statistics: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return OOD distances [N] of statistics [N, D] in multiples of the threshold."""
        scaled = standardise(statistics, self._mean, self._deviation)
        return compute_distances(self._statistics, scaled) / self._threshold

    def find_nearest(self, embeddings: NDArray[np.float32]) -> list[Neighbours]:
        """Return the nearest training slices of each embedding [N, D]."""
        found = find_nearest(self._embeddings, embeddings)
        return [tuple(self.rows[row] for row in rows) for rows in found]


def measure_distances(
    stored: dict[str, Any] | None, statistics: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return distances [N] by the reference that a checkpoint stores; NaN if it has none."""
    if stored is None:
        return np.full(len(statistics), np.nan)
    return Reference(stored).compute_distances(statistics)
