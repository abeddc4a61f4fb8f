"""Local features of a slice: what is at a place, said in a way that turning does not change.

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
CONTRAST_THRESHOLD = 0.005  # low: the strongest MAX_KEYPOINTS are taken, not those above a bar
BRIGHT_PERCENTILE = 99.5
WORDS_FILE = Path(__file__).with_name("vocabulary.npy")

# A SIFT descriptor is 4 rows across the keypoint's direction, 4 columns along it, 8 directions of
# the gradient. In a mirror image rows and directions run the other way round.
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

    def __len__(self) -> int:
        return len(self.counts)

    def take(self, rows: npt.NDArray[np.intp]) -> "Features":
        """The features of some slices, in that order."""
        return Features(
            self.counts[rows], self.points[rows], self.descriptors[rows], self.words[rows]
        )


def extract_features(thumbnails: list[Bytes]) -> Features:
    """Features of each thumbnail, on all cores; a slice without contrast has none.

    Args:
        thumbnails: uint8 [THUMBNAIL_PX, THUMBNAIL_PX] each.
    """
    n_slices = len(thumbnails)
    features = Features(
        counts=np.zeros(n_slices, np.int64),
        points=np.zeros((n_slices, MAX_KEYPOINTS, 2), np.float32),
        descriptors=np.zeros((n_slices, MAX_KEYPOINTS, 128), np.uint8),
        words=np.full((n_slices, MAX_KEYPOINTS), -1, np.int16),
    )
    words = load_words()

    def fill(row: int) -> None:
        points, descriptors = describe_slice(thumbnails[row])
        count = len(points)
        features.counts[row] = count
        features.points[row, :count] = points
        features.descriptors[row, :count] = descriptors
        features.words[row, :count] = assign_words(descriptors, words)

    with threadpool_limits(1), ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(fill, range(n_slices))
        for _ in tqdm(done, "features", n_slices, unit="slice", disable=None):
            pass
    return features


def describe_slice(thumbnail: Bytes) -> tuple[npt.NDArray[np.float32], Bytes]:
    """The strongest keypoints of one slice, whatever its brightness and contrast.

    Returns:
        Points [M, 2] and descriptors uint8 [M, 128].
    """
    bright = float(np.percentile(thumbnail, BRIGHT_PERCENTILE))
    stretched = cv2.convertScaleAbs(thumbnail, alpha=255 / max(bright, 1.0))
    detector = cv2.SIFT.create(nfeatures=MAX_KEYPOINTS, contrastThreshold=CONTRAST_THRESHOLD)
    keypoints, found = detector.detectAndCompute(stretched, None)
    if not keypoints:
        return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8)
    strength = np.array([-keypoint.response for keypoint in keypoints])
    order = np.argsort(strength, kind="stable")[:MAX_KEYPOINTS]  # ties make SIFT give a few more
    points = np.array([keypoint.pt for keypoint in keypoints], np.float32)[order]
    shares = found[order] / np.maximum(found[order].sum(axis=1, keepdims=True), 1e-9)
    descriptors = np.rint(DESCRIPTOR_SCALE * np.sqrt(shares)).clip(0, 255)
    return points, descriptors.astype(np.uint8)


def mirror_points(points: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Where keypoints [..., 2] lie in the mirror image of the thumbnail."""
    return np.stack([THUMBNAIL_PX - 1 - points[..., 0], points[..., 1]], axis=-1)


def load_words() -> npt.NDArray[np.float32]:
    """The visual words [2 V, 128]: V of them and, in the same order, their mirror images.

    They come from phantoms (experiments/vocabulary.py) and never change with the data, so the words
    of a slice depend on that slice alone.
    """
    words = np.load(WORDS_FILE).astype(np.float32)
    both = np.concatenate([words, words[:, MIRROR]])
    return both / np.linalg.norm(both, axis=1, keepdims=True)


def assign_words(
    descriptors: Bytes, words: npt.NDArray[np.float32]
) -> npt.NDArray[np.signedinteger]:
    """The nearest word of each descriptor [M, 128], an index into `words`."""
    return (descriptors.astype(np.float32) @ words.T).argmax(axis=1)
