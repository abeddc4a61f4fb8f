"""Extract local features of slices: SIFT keypoints and descriptors, and their visual words.

Source: Lowe 2004, Distinctive image features from scale-invariant keypoints; Arandjelovic and
Zisserman 2012, Three things everyone should know to improve object retrieval (root normalisation).
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits
from tqdm import tqdm

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


@dataclass(frozen=True)
class Features:
    """Features of N slices, padded with zeros to MAX_KEYPOINTS each.

    Attributes:
        counts: Keypoints of each slice, int64 [N].
        points: x and y in thumbnail pixels, float32 [N, M, 2].
        descriptors: Root-normalised SIFT, uint8 [N, M, 128].
        words: Visual word of each descriptor, int16 [N, M]; -1 is padding.
    """

    counts: npt.NDArray[np.int64]
    points: npt.NDArray[np.float32]
    descriptors: Bytes
    words: npt.NDArray[np.int16]

    def take(self, rows: npt.NDArray[np.intp]) -> "Features":
        """Return the features of some slices, in that order."""
        return Features(*(values[rows] for values in vars(self).values()))


def extract_features(thumbnails: list[Bytes]) -> Features:
    """Compute the features of thumbnails [THUMBNAIL_PX, THUMBNAIL_PX] on all cores."""
    n_slices = len(thumbnails)
    features = Features(
        counts=np.zeros(n_slices, np.int64),
        points=np.zeros((n_slices, MAX_KEYPOINTS, 2), np.float32),
        descriptors=np.zeros((n_slices, MAX_KEYPOINTS, 128), np.uint8),
        words=np.full((n_slices, MAX_KEYPOINTS), -1, np.int16),
    )
    vocabulary = load_vocabulary()

    def fill(row: int) -> None:
        points, descriptors = describe_slice(thumbnails[row])
        count = len(points)
        features.counts[row] = count
        features.points[row, :count] = points
        features.descriptors[row, :count] = descriptors
        features.words[row, :count] = assign_words(descriptors, vocabulary)

    with threadpool_limits(1), ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(fill, range(n_slices))
        for _ in tqdm(done, "features", n_slices, unit="slice", disable=None):
            pass
    return features


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
