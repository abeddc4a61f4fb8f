"""One position for every slice, so that an answer does not depend on how the picture lies.

The slices of the data set lie on their side, those of a hospital stand, and copies are mirrored. A
network that was trained on all eight positions answers them alike, but not the same. So every slice
is turned, before anything else is done to it, into the one of its eight positions in which the
brighter half is up, of the rest the brighter half left, and then the brighter corner at the right.
Whole sums of grey levels decide: the eight positions of a picture give the same bits.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imaging.grayscale import Pixels, find_frame, resize_grey


class Position(NamedTuple):
    """What is done to a picture, in this order, to bring it into the standard position."""

    flip_rows: bool
    flip_columns: bool
    transpose: bool


def find_position(pixels: Pixels) -> Position:
    """How a picture must be turned.

    Of equal halves, as in a picture that is its own mirror image, none is turned.

    Args:
        pixels: uint8 [H, W].
    """
    height, width = pixels.shape
    rows, columns = height // 2, width // 2  # a middle row or column belongs to neither half
    corners = np.array(
        [
            [part[:, :columns].sum(dtype=np.int64), part[:, width - columns :].sum(dtype=np.int64)]
            for part in (pixels[:rows], pixels[height - rows :])
        ]
    )
    (top, bottom), (left, right) = corners.sum(axis=1), corners.sum(axis=0)
    flip_rows, flip_columns = bool(bottom > top), bool(right > left)
    corners = corners[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
    return Position(flip_rows, flip_columns, bool(corners[1, 0] > corners[0, 1]))


def turn(pixels: NDArray, position: Position) -> NDArray:
    """Bring a picture into the standard position; its bits are only moved."""
    if position.flip_rows:
        pixels = pixels[::-1]
    if position.flip_columns:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels.T if position.transpose else pixels)


def turn_back(pixels: NDArray, position: Position) -> NDArray:
    """Undo `turn`."""
    if position.transpose:
        pixels = pixels.T
    if position.flip_columns:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels[::-1] if position.flip_rows else pixels)


def fit_slice(pixels: Pixels, size_px: int) -> Pixels:
    """A slice as networks see it: in the standard position, fitted into a square.

    Args:
        pixels: uint8 [H, W] of any shape.
        size_px: Side of the square.

    Returns:
        uint8 [size_px, size_px]
    """
    return resize_grey(turn(pixels, find_position(pixels)), size_px)


def unfit_map(heatmap: NDArray[np.float32], shape: tuple[int, int], position: Position) -> NDArray:
    """A map over a fitted slice as one over the picture that the slice was made of.

    Args:
        heatmap: fp32 [S, S].
        shape: H, W of the picture.
        position: Of the picture, by `find_position`.

    Returns:
        fp32 [H, W], bilinear.
    """
    height, width = shape[::-1] if position.transpose else shape
    top, left, rows, columns = find_frame((height, width), len(heatmap))
    inside = Image.fromarray(heatmap[top : top + rows, left : left + columns])
    whole = np.asarray(inside.resize((width, height), Image.Resampling.BILINEAR))
    return turn_back(whole, position)
