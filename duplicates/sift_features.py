"""Extract local features of slices: SIFT keypoints and descriptors, and their visual words.

Source: Lowe 2004, Distinctive image features from scale-invariant keypoints; Arandjelovic and
Zisserman 2012, Three things everyone should know to improve object retrieval (root normalisation).
"""

import os
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from common.row_file import RowFile, StoredRows

THUMBNAIL_PX = 192  # side of the squares that features are taken from
MAX_KEYPOINTS = 200
DESCRIPTOR_SCALE = 512  # a root-normalised descriptor of length 1 is kept as integers of this scale
CONTRAST_THRESHOLD = 0.005  # low, because MAX_KEYPOINTS limits the number
BRIGHT_PERCENTILE = 99.5
VOCABULARY_FILE = Path(__file__).with_name("vocabulary.npy")

# A SIFT descriptor has 4 rows across the keypoint's direction, 4 columns along it and 8 gradient
# directions. A mirror image reverses the rows and the directions.
_LAYOUT = np.arange(128).reshape(4, 4, 8)
MIRROR = _LAYOUT[::-1, :, -np.arange(8) % 8].reshape(-1)

Bytes = npt.NDArray[np.uint8]
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Features:
    """Features of N slices, padded with zeros to MAX_KEYPOINTS each.

    Attributes:
        counts: Keypoints of each slice, int64 [N].
        points: x and y in thumbnail pixels, float32 [N, M, 2].
        descriptors: Root-normalised SIFT, N rows uint8 [M, 128].
        words: Visual word of each descriptor, int16 [N, M]; -1 is padding.
    """

    counts: npt.NDArray[np.int64]
    points: npt.NDArray[np.float32]
    descriptors: StoredRows
    words: npt.NDArray[np.int16]

    def take(self, rows: npt.NDArray[np.intp]) -> "Features":
        """Return the features of some slices, in that order."""
        return Features(
            self.counts[rows], self.points[rows], self.descriptors.take(rows), self.words[rows]
        )

    def join(self, other: "Features") -> "Features":
        """Return the features of both sets of slices."""
        return Features(
            np.concatenate([self.counts, other.counts]),
            np.concatenate([self.points, other.points]),
            self.descriptors.join(other.descriptors),
            np.concatenate([self.words, other.words]),
        )


def extract_features(
    thumbnails: Mapping[Name, Bytes], names: Sequence[Name] | None = None
) -> Features:
    """Compute the features of thumbnails [THUMBNAIL_PX, THUMBNAIL_PX] on all cores.

    Args:
        thumbnails: By any name; few are read at a time.
        names: Those to use, in the order of the rows (default: all).
    """
    names = list(thumbnails) if names is None else names
    vocabulary = load_vocabulary()

    def describe(name: Name) -> tuple[npt.NDArray[np.float32], Bytes, npt.NDArray[np.intp]]:
        points, descriptors = describe_slice(thumbnails[name])
        return points, descriptors, assign_words(descriptors, vocabulary)

    counts = np.zeros(len(names), np.int64)
    points = np.zeros((len(names), MAX_KEYPOINTS, 2), np.float32)
    words = np.full((len(names), MAX_KEYPOINTS), -1, np.int16)
    file = RowFile((MAX_KEYPOINTS, 128), np.uint8)
    places = np.zeros(len(names), np.int64)
    with threadpool_limits(1), ThreadPoolExecutor(os.cpu_count()) as pool:
        done = tqdm(pool.map(describe, names), "features", len(names), unit="slice", disable=None)
        for row, (found, descriptors, assigned) in enumerate(done):
            count = counts[row] = len(found)
            points[row, :count], words[row, :count] = found, assigned
            places[row] = file.append(np.pad(descriptors, ((0, MAX_KEYPOINTS - count), (0, 0))))
    return Features(counts, points, StoredRows(file, places), words)


def describe_slice(thumbnail: Bytes) -> tuple[npt.NDArray[np.float32], Bytes]:
    """Return points [M, 2] and uint8 descriptors [M, 128] of the strongest keypoints of a slice."""
    bright = float(np.percentile(thumbnail, BRIGHT_PERCENTILE))
    stretched = cv2.convertScaleAbs(thumbnail, alpha=255 / max(bright, 1.0))
    detector = cv2.SIFT.create(nfeatures=MAX_KEYPOINTS, contrastThreshold=CONTRAST_THRESHOLD)
    keypoints, found = detector.detectAndCompute(stretched, None)
    if not keypoints:
        return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8)
    strengths = np.array([keypoint.response for keypoint in keypoints])
    order = np.argsort(-strengths, kind="stable")[:MAX_KEYPOINTS]  # SIFT returns more on ties
    points = np.array([keypoint.pt for keypoint in keypoints], np.float32)[order]
    shares = found[order] / np.maximum(found[order].sum(axis=1, keepdims=True), 1e-9)
    descriptors = np.rint(DESCRIPTOR_SCALE * np.sqrt(shares)).clip(0, 255)
    return points, descriptors.astype(np.uint8)


def mirror_points(points: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the coordinates of keypoints [..., 2] in the mirror image of the thumbnail."""
    return np.stack([THUMBNAIL_PX - 1 - points[..., 0], points[..., 1]], axis=-1)


def load_vocabulary() -> npt.NDArray[np.float32]:
    """Return the visual words [2 V, 128]: V words, then their mirror images in the same order.

    The vocabulary was fitted on phantoms (experiments/vocabulary.py) and is fixed for all data, so
    the words of a slice depend on that slice alone.
    """
    words = np.load(VOCABULARY_FILE).astype(np.float32)
    both = np.concatenate([words, words[:, MIRROR]])
    return both / np.linalg.norm(both, axis=1, keepdims=True)


def assign_words(descriptors: Bytes, words: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """Return the index of the nearest word of each descriptor [M, 128]."""
    return (descriptors.astype(np.float32) @ words.T).argmax(axis=1)
