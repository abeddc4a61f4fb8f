"""Image errors, size limits, scaling to 8 bits and the resize that all readers share."""

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from helper import UserError

MAX_PIXELS = 17_000_000  # 4096 x 4096: an image takes at most 2 s and 512 MiB
MAX_SCANS = 100  # about ten are usual; a small file can contain thousands
_JPEG_MARKER = re.compile(rb"\xff+([\xc0-\xcf\xd8-\xfe])")  # never occurs in entropy-coded data

Pixels = npt.NDArray[np.uint8]


class ImageError(UserError):
    """An image that cannot be read; `reason` is the cause without the file name."""

    def __init__(self, reason: str, source: Path | bytes = b"") -> None:
        super().__init__(f"{source}: {reason}" if isinstance(source, Path) else reason)
        self.reason = reason


class ImageTooLargeError(ImageError):
    """An image whose header states more pixels than the limit."""


def check_size(width: int, height: int, limit: int | None = None) -> None:
    """Check the size in pixels before decoding; the limit is MAX_PIXELS by default.

    Raises:
        ImageError: No pixels.
        ImageTooLargeError: More pixels than the limit.
    """
    limit = MAX_PIXELS if limit is None else limit
    if width < 1 or height < 1:
        raise ImageError(f"image of {width} x {height} pixels")
    if width * height > limit:
        raise ImageTooLargeError(
            f"{width} x {height} pixels, over the limit of {limit / 1e6:.0f} million"
        )


def check_scans(content: bytes) -> None:
    """Check that a JPEG has at most MAX_SCANS scans up to its end marker.

    Raises:
        ImageError: More scans.
    """
    position, n_scans = 2, 0
    while (found := _JPEG_MARKER.search(content, position)) and found[1] != b"\xd9":
        n_scans += found[1] == b"\xda"
        if n_scans > MAX_SCANS:
            raise ImageError(f"damaged (more than {MAX_SCANS} scans)")
        position = found.end() + int.from_bytes(content[found.end() : found.end() + 2])


def scale_to_8_bit(values: npt.NDArray, low: float, high: float) -> Pixels:
    """Scale finite values of any numeric type so that `low` is 0 and `high` 255, and clip them.

    All values become 0 if `low` and `high` are equal.
    """
    is_wide = high - low >= 2.0**127  # half the range of float32
    values = values.astype(np.float64 if is_wide else np.float32)
    scale = 255 / (high - low) if high > low else 0.0
    return np.rint(((values - low) * scale).clip(0, 255)).astype(np.uint8)


def resize_grey(pixels: Pixels, size_px: int) -> Pixels:
    """Resize uint8 [H, W] to uint8 [size_px, size_px], letterboxed on black.

    The aspect ratio is kept; the interpolation is bilinear and antialiased.
    """
    top, left, height, width = find_letterbox((pixels.shape[0], pixels.shape[1]), size_px)
    image = Image.fromarray(pixels)
    if (height, width) != pixels.shape:
        # two passes in a fixed order: Pillow 13 resizes tall images vertically first, which
        # rounds the intermediate grey levels differently
        image = image.resize((width, pixels.shape[0]), Image.Resampling.BILINEAR)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    square = np.zeros((size_px, size_px), np.uint8)
    square[top : top + height, left : left + width] = np.asarray(image)
    return square


def shrink_grey(pixels: Pixels, side_px: int) -> Pixels:
    """Resize uint8 [H, W] so that the longer side is at most `side_px`."""
    if max(pixels.shape) <= side_px:
        return pixels
    top, left, height, width = find_letterbox((pixels.shape[0], pixels.shape[1]), side_px)
    return resize_grey(pixels, side_px)[top : top + height, left : left + width]


def find_letterbox(shape: tuple[int, int], size_px: int) -> tuple[int, int, int, int]:
    """Return top, left, height and width in px of an image [H, W] inside its letterboxed square."""
    scale = size_px / max(shape)
    height, width = (max(1, round(side * scale)) for side in shape)
    return (size_px - height) // 2, (size_px - width) // 2, height, width
