"""Hand-made features of a slice that could identify a person, and a guess of the slice's plane."""

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.cluster import KMeans

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Vector = NDArray[np.float64]

BOX_PX = 32  # side that the head's bounding box is resized to
HARMONICS = 8  # of the outline, in each direction
OUTLINE_POINTS = 256
GREY_QUANTILES = np.linspace(0.02, 0.98, 16)
PLANES = ("axial", "coronal", "sagittal")
# A slice is called sagittal if its left and right half differ more than this (correlation of the
# grey values, overlap of the outline), else coronal if the head fills more than a share of the
# lowest eighth of its bounding box: the neck. Set by eye on 100 slices of Cheng et al.
LEAST_CORRELATION, LEAST_OVERLAP, NECK = 0.45, 0.88, 0.56
APPEARANCES = 15  # clusters of slices; each gets the plane of most of its slices


class HeadBox(NamedTuple):
    """Bounding box of a head, resized to BOX_PX x BOX_PX.

    Attributes:
        grey: Grey values in 0..255, 0 outside the head.
        cover: Share of the head in each pixel, 0..1.
    """

    grey: Vector
    cover: Vector


def find_head(pixels: Pixels) -> Mask:
    """Return the largest bright component of a slice [H, W], holes filled; all if it is blank."""
    smooth = cv2.GaussianBlur(pixels, (0, 0), max(pixels.shape) / 96)
    level = 0.4 * cv2.threshold(smooth, 0, 255, cv2.THRESH_OTSU)[0]  # the skull is dark, too
    bright = (smooth > level).astype(np.uint8)
    count, components, sizes, _ = cv2.connectedComponentsWithStats(bright)
    if count < 2:
        return np.ones(pixels.shape, bool)
    largest = components == 1 + np.argmax(sizes[1:, cv2.CC_STAT_AREA])
    return np.asarray(ndimage.binary_fill_holes(largest), bool)


def describe_slice(pixels: Pixels) -> dict[str, Vector]:
    """Return the feature vectors of a slice [H, W] by kind.

    The kinds are `outline` (shape of the head, whatever its size and place), `field` (size and
    place of the head in the picture), `noise` and `grey`. `plane` holds the three numbers that
    `guess_planes` needs. None depends on the lesion alone.
    """
    head = find_head(pixels)
    box = _cut_box(pixels, head)
    return {
        "outline": _describe_outline(head, box),
        "field": _describe_field(head),
        "noise": _describe_noise(pixels, head),
        "grey": np.quantile(pixels[head], GREY_QUANTILES) / 255,
        "plane": _describe_symmetry(box),
    }


def guess_planes(symmetry: Vector, appearance: Vector) -> NDArray[np.str_]:
    """Guess the plane of upright slices: a rule for each, then the majority of similar slices.

    Args:
        symmetry: [N, 3], `plane` of `describe_slice`.
        appearance: [N, D] features of a network; similar slices have similar directions.

    Returns:
        [N] of PLANES. Correct for 94 of 100 slices of Cheng et al. that were looked at, with
        features at 96 px.
    """
    correlation, overlap, neck = symmetry.T
    is_sagittal = (correlation < LEAST_CORRELATION) | (overlap < LEAST_OVERLAP)
    guesses = np.where(is_sagittal, 2, np.where(neck > NECK, 1, 0))
    directions = appearance / np.linalg.norm(appearance, axis=1, keepdims=True)
    n_clusters = min(APPEARANCES, len(guesses))
    clusters = KMeans(n_clusters, n_init=3, random_state=0).fit_predict(directions)
    votes = np.zeros((n_clusters, len(PLANES)))
    np.add.at(votes, (clusters, guesses), 1)
    return np.array(PLANES)[votes.argmax(axis=1)[clusters]]


def _cut_box(pixels: Pixels, head: Mask) -> HeadBox:
    top, left, bottom, right = _find_box(head)
    cover = head[top:bottom, left:right].astype(np.float32)
    grey = pixels[top:bottom, left:right] * cover
    size = (BOX_PX, BOX_PX)
    resized = [cv2.resize(part, size, interpolation=cv2.INTER_AREA) for part in (grey, cover)]
    return HeadBox(*(part.astype(np.float64) for part in resized))


def _find_box(head: Mask) -> tuple[int, int, int, int]:
    """Return top, left, bottom and right of a mask that is not empty."""
    rows, columns = np.flatnonzero(head.any(axis=1)), np.flatnonzero(head.any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _describe_symmetry(box: HeadBox) -> Vector:
    """Correlation with the mirror image, overlap with the mirrored outline, share of the neck."""
    cover, mirrored = box.cover, box.cover[:, ::-1]
    overlap = np.minimum(cover, mirrored).sum() / np.maximum(cover, mirrored).sum()
    return np.array(
        [_correlate(box.grey, box.grey[:, ::-1]), overlap, cover[-BOX_PX // 8 :].mean()]
    )


def _correlate(first: NDArray[Any], second: NDArray[Any]) -> float:
    first, second = first - first.mean(), second - second.mean()
    return float((first * second).sum() / max(1e-9, np.sqrt((first**2).sum() * (second**2).sum())))


def _describe_outline(head: Mask, box: HeadBox) -> Vector:
    """Aspect, fill, symmetry and the sizes of the Fourier coefficients of the outline.

    The coefficients are relative to the largest. Their sizes do not change if the outline is moved,
    turned, mirrored or scaled.

    Source: Zahn and Roskies 1972, Fourier descriptors for plane closed curves.
    """
    contours, _ = cv2.findContours(head.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    points = max(contours, key=len)[:, 0].astype(np.float64)
    steps = np.hypot(*np.diff(points, axis=0, append=points[:1]).T)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    at = np.linspace(0, along[-1], OUTLINE_POINTS, endpoint=False)
    closed = np.concatenate([points, points[:1]])
    x, y = (np.interp(at, along, closed[:, axis]) for axis in (0, 1))
    sizes = np.abs(np.fft.fft(x + 1j * y))
    forward, backward = sizes[1 : HARMONICS + 1], sizes[-1 : -HARMONICS - 1 : -1]
    largest = max(forward[0], backward[0], 1e-9)
    pairs = np.sort(np.stack([forward, backward]), axis=0)  # mirroring swaps the two directions
    top, left, bottom, right = _find_box(head)
    ratios = [(right - left) / (bottom - top), *_describe_symmetry(box)[1:], box.cover.mean()]
    return np.concatenate([ratios, np.log(pairs.ravel() / largest + 1e-3)])


def _describe_field(head: Mask) -> Vector:
    """Size and place of the head as shares of the picture, and which borders it touches."""
    height, width = head.shape
    top, left, bottom, right = _find_box(head)
    margins = np.array([top / height, left / width, 1 - bottom / height, 1 - right / width])
    area = np.sqrt(head.mean())
    return np.concatenate([margins, margins < 0.01, [area, area / (bottom - top) * height]])


def _describe_noise(pixels: Pixels, head: Mask) -> Vector:
    """Grey values of the air, and the strength of the finest detail in head and air."""
    values = pixels.astype(np.float32)
    air = ~ndimage.binary_dilation(head, iterations=max(pixels.shape) // 32)
    air = air if air.any() else ~head if not head.all() else head
    details = [values - cv2.GaussianBlur(values, (0, 0), sigma) for sigma in (0.8, 1.6)]
    strengths = [np.median(np.abs(detail[part])) for detail in details for part in (head, air)]
    spread = [values[air].mean(), values[air].std(), np.quantile(values[air], 0.99)]
    ratio = strengths[0] / max(1.0, float(np.median(values[head])))
    return np.log1p(np.array([*spread, *strengths, 100 * ratio]))
