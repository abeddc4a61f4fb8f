"""Bring slices into a standard orientation, so that predictions do not depend on the stored one.

Slices of the data set are rotated by 90 degrees or mirrored, slices of a hospital are upright, and
a network trained on all eight orientations gives similar but not equal outputs for them. Therefore
each slice is flipped and transposed so that its upper half, then its left half, then its upper
right corner is the brighter one. Integer sums are compared, so the result is exact.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imaging.grayscale import Pixels, find_letterbox, resize_grey


class Orientation(NamedTuple):
    """Operations that bring an image into the standard orientation, applied in this order."""

    flip_rows: bool
    flip_columns: bool
    transpose: bool


def find_orientation(pixels: Pixels) -> Orientation:
    """Return the operations that bring uint8 [H, W] into the standard orientation.

    Halves of equal brightness, as in a symmetric image, are not swapped.
    """
    height, width = pixels.shape
    rows, columns = height // 2, width // 2  # a middle row or column belongs to neither half
    corners = np.array(
        [
            [half[:, :columns].sum(dtype=np.int64), half[:, width - columns :].sum(dtype=np.int64)]
            for half in (pixels[:rows], pixels[height - rows :])
        ]
    )
    (top, bottom), (left, right) = corners.sum(axis=1), corners.sum(axis=0)
    flip_rows, flip_columns = bool(bottom > top), bool(right > left)
    corners = corners[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
    return Orientation(flip_rows, flip_columns, bool(corners[1, 0] > corners[0, 1]))


def apply_orientation(pixels: NDArray, orientation: Orientation) -> NDArray:
    """Bring [H, W] into the standard orientation."""
    if orientation.flip_rows:
        pixels = pixels[::-1]
    if orientation.flip_columns:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels.T if orientation.transpose else pixels)


def undo_orientation(pixels: NDArray, orientation: Orientation) -> NDArray:
    """Invert `apply_orientation`."""
    if orientation.transpose:
        pixels = pixels.T
    if orientation.flip_columns:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels[::-1] if orientation.flip_rows else pixels)


def orient_and_letterbox(pixels: Pixels, size_px: int) -> Pixels:
    """Return uint8 [H, W] as network input: standard orientation, uint8 [size_px, size_px]."""
    return resize_grey(apply_orientation(pixels, find_orientation(pixels)), size_px)


def map_back(
    heatmap: NDArray[np.float32], shape: tuple[int, int], orientation: Orientation
) -> NDArray:
    """Map a heat map over the network input back onto the original image.

    Args:
        heatmap: fp32 [S, S].
        shape: H, W of the original image.
        orientation: `find_orientation` of the original image.

    Returns:
        fp32 [H, W], bilinear.
    """
    height, width = shape[::-1] if orientation.transpose else shape
    top, left, rows, columns = find_letterbox((height, width), len(heatmap))
    inside = Image.fromarray(heatmap[top : top + rows, left : left + columns])
    resized = np.asarray(inside.resize((width, height), Image.Resampling.BILINEAR))
    return undo_orientation(resized, orientation)
