"""The one reader: every picture becomes grey here, and every resize is the one below.

Nothing of Pillow's process-wide state is changed, so any number of threads may read at once.
"""

import io
import warnings
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from helper import UserError, describe_error

READER_VERSION = 1  # part of every cache key: raise it when the same file gives other pixels
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
MAX_PIXELS = 64_000_000

# The formats are opened by their own classes: Image.open would try dozens more, and it warns of
# large pictures through the warnings module, which threads share.
_SIGNATURES: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"II*\0", TiffImagePlugin.TiffImageFile),
    (b"MM\0*", TiffImagePlugin.TiffImageFile),
    (b"II+\0", TiffImagePlugin.TiffImageFile),
    (b"MM\0+", TiffImagePlugin.TiffImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
)
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112
_TIFF_PHOTOMETRIC = 262
_BIT_DEPTHS = (8, 10, 12, 14, 16)

# Pillow remarks on odd metadata; a remark is no reason to print a second line about a picture.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

Pixels = npt.NDArray[np.uint8]


class ImageError(UserError):
    """A picture that cannot be read; `reason` is why, without the file's name."""

    def __init__(self, reason: str, source: Path | bytes = b"") -> None:
        super().__init__(f"{source}: {reason}" if isinstance(source, Path) else reason)
        self.reason = reason


class ImageTooLargeError(ImageError):
    """A picture of more than MAX_PIXELS pixels, by its header."""


def read_grey(source: Path | bytes) -> Pixels:
    """Read a JPEG, PNG, TIFF or BMP picture of any mode as grey, upright by its EXIF tag.

    Colour becomes luma, transparent parts become black. Deeper pictures are scaled and never
    clipped: the scale is the smallest usual bit depth (8, 10, 12, 14, 16) that holds the
    picture's greatest value, because scanners store 10 to 12 bits in 16-bit files that do not
    say so, and a slice divided by 257 would be all but black. So a 16-bit picture that uses its
    range is divided by 257, one that ends by 4095 by 16.06, and at least a quarter of the grey
    range is used; brightness between two such files is not comparable, as it never is in MRI.
    Values under zero are lifted to start at zero. Floating point in 0..1 is multiplied by 255;
    any other floating point has no range of its own and is stretched from least to greatest.

    Args:
        source: The file, or its bytes.

    Returns:
        uint8 [H, W]

    Raises:
        ImageError: Unreadable, cut short, empty, no such picture, or over MAX_PIXELS.
    """
    try:
        with _open_stream(source) as stream, _open_header(stream) as image:
            orientation = _read_orientation(image)
            inverted = _is_inverted(image)
            image.draft("L", None)  # a JPEG's luma alone: half the time of colour
            image.load()
            pixels = _convert_grey(image, inverted)
            if orientation in _TRANSPOSES:
                pixels = np.asarray(Image.fromarray(pixels).transpose(_TRANSPOSES[orientation]))
            return np.ascontiguousarray(pixels)
    except Exception as error:  # hostile bytes raise anything
        raise _explain(error, source) from error


def read_size(source: Path | bytes) -> tuple[int, int]:
    """The upright width and height in pixels, from the header alone.

    Raises:
        ImageError: As `read_grey`, as far as the header tells.
    """
    try:
        with _open_stream(source) as stream, _open_header(stream) as image:
            width, height = image.size
            return (height, width) if _read_orientation(image) in {5, 6, 7, 8} else (width, height)
    except Exception as error:  # hostile bytes raise anything
        raise _explain(error, source) from error


def read_mode(source: Path | bytes) -> str:
    """How the file stores its pixels, in Pillow's words: L, RGB, RGBA, P, 1, CMYK, I;16, F.

    Raises:
        ImageError: As `read_grey`, as far as the header tells.
    """
    try:
        with _open_stream(source) as stream, _open_header(stream) as image:
            return image.mode
    except Exception as error:  # hostile bytes raise anything
        raise _explain(error, source) from error


def resize_grey(pixels: Pixels, size_px: int) -> Pixels:
    """Fit a grey picture into a square, aspect kept, centred on black; the one resize.

    Args:
        pixels: uint8 [H, W]
        size_px: Side of the square.

    Returns:
        uint8 [size_px, size_px], bilinear and antialiased.
    """
    height, width = pixels.shape
    scale = size_px / max(height, width)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    image = Image.fromarray(pixels)
    if (new_height, new_width) != (height, width):
        image = image.resize((new_width, new_height), Image.Resampling.BILINEAR)
    square = np.zeros((size_px, size_px), np.uint8)
    top, left = (size_px - new_height) // 2, (size_px - new_width) // 2
    square[top : top + new_height, left : left + new_width] = np.asarray(image)
    return square


def _open_stream(source: Path | bytes) -> IO[bytes]:
    return source.open("rb") if isinstance(source, Path) else io.BytesIO(source)


def _open_header(stream: IO[bytes]) -> ImageFile.ImageFile:
    """Parse the header only, and hold it to the pixel limit before anything is decoded."""
    start = stream.read(8)
    stream.seek(0)
    if not start:
        raise ImageError("empty file")
    for signature, opener in _SIGNATURES:
        if start.startswith(signature):
            image = opener(stream)
            break
    else:
        raise ImageError("not a JPEG, PNG, TIFF or BMP picture")
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"a picture of {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        limit = f"{MAX_PIXELS / 1e6:.0f} million"
        raise ImageTooLargeError(f"{width} x {height} pixels, over the limit of {limit}")
    return image


def _read_orientation(image: ImageFile.ImageFile) -> int:
    """The EXIF orientation; 1, upright, where there is none or where the tag is damaged."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return 1  # Pillow turns TIFF by itself
    try:
        # The base method: that of PNG would decode the pixels to look for EXIF behind them.
        return int(Image.Image.getexif(image).get(_EXIF_ORIENTATION, 1))
    except Exception:  # noqa: BLE001  a damaged tag makes no picture unreadable
        return 1


def _is_inverted(image: ImageFile.ImageFile) -> bool:
    """Whether 0 is white in a 16-bit TIFF, which Pillow leaves as it is."""
    return (
        isinstance(image, TiffImagePlugin.TiffImageFile)
        and image.mode.startswith("I;16")
        and image.tag_v2.get(_TIFF_PHOTOMETRIC) == 0
    )


def _convert_grey(image: Image.Image, inverted: bool) -> Pixels:
    """Grey of 8 bits from a loaded picture of any mode; uint8 [H, W]."""
    if image.mode.startswith("I") or image.mode == "F":
        pixels = _scale_to_8_bit(np.asarray(image))
        return 255 - pixels if inverted else pixels
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        opaque = image.convert("RGBA")
        black = Image.new("RGBA", opaque.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, opaque)
    if image.mode not in {"L", "1"}:
        image = image.convert("RGB")
    return np.asarray(image.convert("L"))


def _scale_to_8_bit(values: npt.NDArray) -> Pixels:
    """Scale integers by their bit depth and floats by their range; uint8 [H, W]."""
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


def _explain(error: Exception, source: Path | bytes) -> ImageError:
    """Any failure as one ImageError with a short reason that is the same every time."""
    if isinstance(error, ImageError):
        return type(error)(error.reason, source)
    if isinstance(error, OSError) and error.errno is not None:
        return ImageError(error.strerror or describe_error(error), source)
    lines = str(error).splitlines()
    if not lines or " at 0x" in lines[0]:
        return ImageError(f"damaged ({type(error).__name__})", source)
    return ImageError(f"damaged ({lines[0][:100]})", source)
