"""Register pairs of slices: count matched features that agree on one similarity transform.

Source: Lowe 2004 (ratio test); Fischler and Bolles 1981, Random sample consensus.
"""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

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

# A slice is compared with so many others at once: threads wait for the GIL between numpy calls, so
# few large calls share the cores better than many small ones.
BATCH_SLICES = 16
JOB_BATCHES = 64  # batches that a thread takes at a time

Bytes = npt.NDArray[np.uint8]
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


def register_pairs(features: Features, pairs: Pairs) -> Registrations:
    """Compare pairs of slices on all cores; each result depends only on its own pair."""
    scores = np.zeros(len(pairs), np.int16)
    matrices = np.zeros((len(pairs), 2, 3), np.float32)
    order, bounds = _plan_batches(features.counts, pairs)

    def compare(first_batch: int) -> int:
        own = bounds[first_batch : first_batch + JOB_BATCHES + 1].tolist()
        for start, stop in itertools.pairwise(own):
            batch = order[start:stop]
            row, _, flip = pairs[batch[0]]
            count, others = features.counts[row], pairs[batch, 1]
            points, descriptors = features.points[row, :count], features.descriptors[row][:count]
            if flip:
                points, descriptors = mirror_points(points), descriptors[:, MIRROR]
            fixed = np.stack([features.descriptors[other] for other in others])
            is_match, nearest = _match(descriptors, fixed, features.counts[others])
            for column in np.flatnonzero(is_match.sum(axis=0) >= MIN_MATCHES):
                matched = np.flatnonzero(is_match[:, column])
                targets = features.points[others[column], nearest[matched, column]]
                scores[batch[column]], matrices[batch[column]] = _fit(points[matched], targets)
        return own[-1] - own[0]

    with threadpool_limits(1), ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = range(0, len(bounds) - 1, JOB_BATCHES)
        with tqdm(total=len(order), desc="comparing", unit="pair", disable=None) as bar:
            for n_done in pool.map(compare, jobs):
                bar.update(n_done)
    return Registrations(pairs, scores, matrices)


def _plan_batches(
    counts: npt.NDArray[np.int64], pairs: Pairs
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Divide the pairs with enough features into batches of one slice, or its mirror image.

    Returns:
        The indices of these pairs in the order of their batches [Q], and the ends of the B batches
        in this order, after a leading 0 [B + 1].
    """
    order = np.lexsort((pairs[:, 2], pairs[:, 0]))
    order = order[counts[pairs[order, :2]].min(axis=1) >= MIN_MATCHES]
    keys = encode(pairs[order] * [1, 0, 1])
    ranks = np.arange(len(keys)) - np.searchsorted(keys, keys)
    return order, np.append(np.flatnonzero(ranks % BATCH_SLICES == 0), len(keys))


def _match(
    moved: Bytes, fixed: Bytes, counts: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.intp]]:
    """Match the descriptors of one slice with those of B others by the ratio test.

    Args:
        moved: Descriptors [M, 128].
        fixed: Descriptors of the others [B, K, 128], padded to K.
        counts: Descriptors of each without padding [B], 2 or more.

    Returns:
        Whether each descriptor matches [M, B], and the nearest one of the other slice [M, B].
    """
    values, others = moved.astype(np.float32), fixed.astype(np.float32)  # products are exact
    norms = np.einsum("md,md->m", values, values)[:, None]
    other_norms = np.einsum("bkd,bkd->bk", others, others)
    other_norms[np.arange(fixed.shape[1]) >= counts[:, None]] = np.inf
    products = (-2 * values) @ others.reshape(-1, others.shape[2]).T
    distances = products.reshape(len(values), *other_norms.shape)
    distances += other_norms  # squared, minus the norms of `moved`
    nearest = distances.argmin(axis=2)
    places = nearest[:, :, None]
    first = np.take_along_axis(distances, places, axis=2)[:, :, 0]
    np.put_along_axis(distances, places, np.inf, axis=2)
    return first + norms < MAX_RATIO**2 * (distances.min(axis=2) + norms), nearest


def _fit(start: Matrix, end: Matrix) -> tuple[int, Matrix]:
    """Return the score of the best transform from points [N, 2] to others, and the transform."""
    matrix, inliers = cv2.estimateAffinePartial2D(
        start,
        end,
        method=cv2.RANSAC,
        ransacReprojThreshold=TOLERANCE_PX,
        maxIters=MAX_TRIALS,
        confidence=CONFIDENCE,
    )
    if matrix is None or not ZOOM_RANGE[0] < np.hypot(*matrix[:, 0]) < ZOOM_RANGE[1]:
        return 0, np.zeros((2, 3), np.float32)
    is_inlier = inliers.ravel() > 0
    # several features may share a location, or match the same one: count distinct locations
    score = min(_count_locations(start[is_inlier]), _count_locations(end[is_inlier]))
    return score, matrix.astype(np.float32)


def _count_locations(points: npt.NDArray[np.float32]) -> int:
    return len({tuple(point) for point in points.round(1).tolist()})
