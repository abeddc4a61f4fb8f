"""Register pairs of slices: count matched features that agree on one similarity transform.

Source: Lowe 2004 (ratio test); Fischler and Bolles 1981, Random sample consensus.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from duplicates.retrieval import Pairs, encode
from duplicates.sift_features import MIRROR, Features, mirror_points

MAX_RATIO = 0.8  # of the distances to the nearest and to the second nearest descriptor
TOLERANCE_PX = 2.25  # 1.2 % of the thumbnail's side
ZOOM_RANGE = (0.75, 1 / 0.75)
MAX_TRIALS = 500
CONFIDENCE = 0.999
MIN_MATCHES = 8  # with fewer, no transform is fitted, as the score of a link is out of reach

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Registrations:
    """Compared pairs.

    Attributes:
        pairs: [P, 3] rows of the two slices, and 1 where the first is mirrored.
        scores: Matched features that agree on one transform, int16 [P]; 0 where none was found.
        matrices: From the first thumbnail, mirrored or not, to the second, float32 [P, 2, 3].
    """

    pairs: Pairs
    scores: npt.NDArray[np.int16]
    matrices: Matrix

    def join(self, other: "Registrations") -> "Registrations":
        """Return both, in the order of their pairs."""
        both = zip(vars(self).values(), vars(other).values(), strict=True)
        joined = Registrations(*(np.concatenate(parts) for parts in both))
        return joined.take(np.argsort(encode(joined.pairs)))

    def take(self, chosen: npt.NDArray) -> "Registrations":
        """Return a selection of the pairs."""
        return Registrations(self.pairs[chosen], self.scores[chosen], self.matrices[chosen])

    @classmethod
    def build_empty(cls) -> "Registrations":
        """Return no pairs."""
        return cls(np.zeros((0, 3), np.int64), np.zeros(0, np.int16), np.zeros((0, 2, 3), "f4"))

    def describe_transforms(self) -> dict[str, npt.NDArray]:
        """Return the columns `mirrored`, `rotation_deg` and `zoom` of tables of pairs."""
        cosines, sines = self.matrices[:, 0, 0], self.matrices[:, 1, 0]  # times the zoom
        return {
            "mirrored": self.pairs[:, 2],
            "rotation_deg": np.degrees(np.arctan2(sines, cosines)).round(1),
            "zoom": np.hypot(cosines, sines).round(3),
        }


def register_pairs(
    features: Features, pairs: Pairs, min_matches: int = MIN_MATCHES
) -> Registrations:
    """Compare pairs of slices on all cores; each result depends only on its own pair.

    Args:
        features: Features of all slices.
        pairs: Sorted by the first row.
        min_matches: Pairs with fewer matched features score 0.
    """
    scores = np.zeros(len(pairs), np.int16)
    matrices = np.zeros((len(pairs), 2, 3), np.float32)
    starts = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
    ends = np.append(starts, len(pairs))[1:]

    def compare(span: tuple[int, int]) -> int:
        start, end = span
        row = int(pairs[start, 0])
        count = features.counts[row]
        points, descriptors = features.points[row, :count], features.descriptors[row][:count]
        views = (
            _View.build(points, descriptors),
            _View.build(mirror_points(points), descriptors[:, MIRROR]),
        )
        for index in range(start, end):
            other, flip = pairs[index, 1:]
            count = features.counts[other]
            fixed = _View.build(features.points[other, :count], features.descriptors[other][:count])
            scores[index], matrices[index] = _register(views[flip], fixed, min_matches)
        return end - start

    with threadpool_limits(1), ThreadPoolExecutor(os.cpu_count()) as pool:
        spans = zip(starts.tolist(), ends.tolist(), strict=True)
        with tqdm(total=len(pairs), desc="comparing", unit="pair", disable=None) as bar:
            for n_done in pool.map(compare, spans):
                bar.update(n_done)
    return Registrations(pairs, scores, matrices)


class _View(NamedTuple):
    """Features of one slice as whole float32 numbers, whose products are exact."""

    points: npt.NDArray[np.float32]  # [M, 2]
    values: npt.NDArray[np.float32]  # [M, 128]
    norms: npt.NDArray[np.float32]  # [M], squared

    @classmethod
    def build(cls, points: npt.NDArray[np.float32], descriptors: npt.NDArray[np.uint8]) -> "_View":
        values = descriptors.astype(np.float32)
        return cls(points, values, np.einsum("md,md->m", values, values))


def _register(moved: _View, fixed: _View, min_matches: int) -> tuple[int, Matrix]:
    """Return the score of the best transform from `moved` to `fixed`, and the transform."""
    no_match = 0, np.zeros((2, 3), np.float32)
    if min(len(moved.points), len(fixed.points)) < max(2, min_matches):
        return no_match
    distances = fixed.norms - 2 * (moved.values @ fixed.values.T)  # squared, minus moved.norms
    rows = np.arange(len(moved.points))
    nearest = distances.argmin(axis=1)
    first = distances[rows, nearest] + moved.norms
    distances[rows, nearest] = np.inf
    second = distances.min(axis=1) + moved.norms
    matched = np.flatnonzero(first < MAX_RATIO**2 * second)
    if len(matched) < min_matches:
        return no_match
    start, end = moved.points[matched], fixed.points[nearest[matched]]
    matrix, inliers = cv2.estimateAffinePartial2D(
        start,
        end,
        method=cv2.RANSAC,
        ransacReprojThreshold=TOLERANCE_PX,
        maxIters=MAX_TRIALS,
        confidence=CONFIDENCE,
    )
    if matrix is None or not ZOOM_RANGE[0] < np.hypot(*matrix[:, 0]) < ZOOM_RANGE[1]:
        return no_match
    is_inlier = inliers.ravel() > 0
    # several features may share a location, or match the same one: count distinct locations
    score = min(_count_locations(start[is_inlier]), _count_locations(end[is_inlier]))
    return score, matrix.astype(np.float32)


def _count_locations(points: npt.NDArray[np.float32]) -> int:
    return len({tuple(point) for point in points.round(1).tolist()})
