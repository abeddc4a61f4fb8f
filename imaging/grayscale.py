"""What all readers share: the errors of a picture, the pixel limit, the scale, the one resize."""

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from helper import UserError

MAX_PIXELS = 17_000_000  # 4096 x 4096: a picture costs at most 2 s and 512 MiB
MAX_SCANS = 100  # ten are usual, and a small file may ask for thousands
_JPEG_MARKER = re.compile(rb"\xff+([\xc0-\xcf\xd8-\xfe])")  # what pixels hold is none
_BIT_DEPTHS = (8, 10, 12, 14, 16)

Pixels = npt.NDArray[np.uint8]


class ImageError(UserError):
    """A picture that cannot be read; `reason` is why, without the file's name."""

    def __init__(self, reason: str, source: Path | bytes = b"") -> None:
        super().__init__(f"{source}: {reason}" if isinstance(source, Path) else reason)
        self.reason = reason


class ImageTooLargeError(ImageError):
    """A picture of more than MAX_PIXELS pixels, by its header."""


def check_size(width: int, height: int, most: int | None = None) -> None:
    """Hold a picture to the limit before anything of it is decoded.

    Args:
        width: px
        height: px
        most: The limit, where it is not MAX_PIXELS.

    Raises:
        ImageError: Without pixels, or over the limit.
    """
    most = MAX_PIXELS if most is None else most
    if width < 1 or height < 1:
        raise ImageError(f"a picture of {width} x {height} pixels")
    if width * height > most:
        limit = f"{most / 1e6:.0f} million"
        raise ImageTooLargeError(f"{width} x {height} pixels, over the limit of {limit}")


def check_scans(content: bytes) -> None:
    """Hold a JPEG to MAX_SCANS passes over its pixels, whatever lies behind its end.

    Raises:
        ImageError: More of them.
    """
    place, n_scans = 2, 0
    while (found := _JPEG_MARKER.search(content, place)) and found[1] != b"\xd9":
        n_scans += found[1] == b"\xda"
        if n_scans > MAX_SCANS:
            raise ImageError(f"damaged (more than {MAX_SCANS} scans)")
        place = found.end() + int.from_bytes(content[found.end() : found.end() + 2])


def scale_to_8_bit(values: npt.NDArray) -> Pixels:
    """Scale integers by their bit depth and floats by their range.

    The scale of integers is the smallest usual bit depth (8, 10, 12, 14, 16) that holds the
    greatest value; those under zero are lifted to start at zero. Floats in 0..1 are multiplied by
    255, any others stretched from least to greatest.

    Args:
        values: Numbers of any kind [H, W] or [H, W, C].

    Returns:
        uint8 of the same shape, never clipped.
    """
    whole = values.dtype.kind in "iu"
    values = values.astype(np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        values = np.where(finite, values, values[finite].min() if finite.any() else 0.0)
    low, high = float(values.min()), float(values.max())
    if whole:
        low = min(low, 0.0)
        deepest = [2.0**depth - 1 for depth in _BIT_DEPTHS if high - low < 2.0**depth]
        high = low + (deepest[0] if deepest else high - low)
    elif low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scale = 255 / (high - low) if high > low else 0.0
    return np.rint((values - low) * scale).astype(np.uint8)


def resize_grey(pixels: Pixels, size_px: int) -> Pixels:
    """Fit a grey picture into a square, aspect kept, centred on black; the one resize.

    Args:
        pixels: uint8 [H, W]
        size_px: Side of the square.

    Returns:
        uint8 [size_px, size_px], bilinear and antialiased.
    """
    top, left, height, width = find_frame((pixels.shape[0], pixels.shape[1]), size_px)
    image = Image.fromarray(pixels)
    if (height, width) != pixels.shape:
        # rows first, whatever the shape: Pillow 13 would begin with the columns of tall pictures,
        # and what is rounded in between would be another grey level there
        image = image.resize((width, pixels.shape[0]), Image.Resampling.BILINEAR)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    square = np.zeros((size_px, size_px), np.uint8)
    square[top : top + height, left : left + width] = np.asarray(image)
    return square


def shrink_grey(pixels: Pixels, side_px: int) -> Pixels:
    """A grey picture whose longer side is at most `side_px`, aspect kept: uint8 [H, W]."""
    if max(pixels.shape) <= side_px:
        return pixels
    top, left, height, width = find_frame((pixels.shape[0], pixels.shape[1]), side_px)
    return resize_grey(pixels, side_px)[top : top + height, left : left + width]


def find_frame(shape: tuple[int, int], size_px: int) -> tuple[int, int, int, int]:
    """Where a picture lies in the square that it is fitted into.

    Args:
        shape: H, W of the picture.
        size_px: Side of the square.

    Returns:
        Its top row, left column, height and width there, px.
    """
    scale = size_px / max(shape)
    height, width = (max(1, round(side * scale)) for side in shape)
    return (size_px - height) // 2, (size_px - width) // 2, height, width
