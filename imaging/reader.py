"""The one reader: every picture becomes grey here, and every resize is the one below.

Nothing of Pillow's process-wide state is changed, so any number of threads may read at once.
"""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from helper import describe_error
from imaging.dicom import (
    START_BYTES,
    has_preamble,
    is_dicom,
    read_dicom,
    read_dicom_frames,
    read_dicom_patient,
    read_header,
)
from imaging.grayscale import ImageError, Pixels, check_scans, check_size, scale_to_8_bit

READER_VERSION = 3  # part of every cache key: raise it when the same file gives other pixels
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", *DICOM_SUFFIXES)

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
_MOST_BYTES = 2**27  # of a JPEG are looked at: more than its pixels can take
_EXIF_ORIENTATION = 0x0112
_TIFF_PHOTOMETRIC = 262

# Pillow remarks on odd metadata; a remark is no reason to print a second line about a picture.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def is_picture(name: str, peek: Callable[[], bytes]) -> bool:
    """Whether a file is taken for a picture, by its name or, where that has no suffix, as DICOM.

    Scanners write DICOM without a suffix, or under a number with dots in it. A DICOMDIR is none:
    it lists other files.

    Args:
        name: The file's name without folders.
        peek: Reads the first START_BYTES of the file; called only where the name says nothing.
    """
    if name.startswith(".") or name.upper() == "DICOMDIR":
        return False
    if name.lower().endswith(IMAGE_SUFFIXES):
        return True
    suffix = PurePosixPath(name).suffix
    return (not suffix or suffix[1:].isdecimal()) and has_preamble(peek())


def read_start(path: Path) -> bytes:
    """The first START_BYTES of a file, for `is_picture`."""
    with path.open("rb") as stream:
        return stream.read(START_BYTES)


def read_frames(source: Path | bytes) -> Iterator[Pixels]:
    """Read every picture of a file: the frames of a DICOM one after another, else the only one.

    Args:
        source: The file, or its bytes.

    Yields:
        uint8 [H, W]

    Raises:
        ImageError: As `read_grey`; pictures before the damage have been given by then.
    """
    if _is_dicom(source):
        yield from read_dicom_frames(source)
    else:
        yield read_grey(source)


def read_grey(source: Path | bytes) -> Pixels:
    """Read a JPEG, PNG, TIFF, BMP or DICOM picture of any mode as grey, upright by its EXIF tag.

    Colour becomes luma, transparent parts become black. Deeper pictures are scaled and never
    clipped: the scale is the smallest usual bit depth (8, 10, 12, 14, 16) that holds the
    picture's greatest value, because scanners store 10 to 12 bits in 16-bit files that do not
    say so, and a slice divided by 257 would be all but black. So a 16-bit picture that uses its
    range is divided by 257, one that ends by 4095 by 16.06, and at least a quarter of the grey
    range is used; brightness between two such files is not comparable, as it never is in MRI.
    Values under zero are lifted to start at zero. Floating point in 0..1 is multiplied by 255;
    any other floating point has no range of its own and is stretched from least to greatest.
    DICOM obeys its window instead, where it has one (`read_dicom_frames`).

    Args:
        source: The file, or its bytes.

    Returns:
        uint8 [H, W]

    Raises:
        ImageError: Unreadable, cut short, empty, no such picture, over MAX_PIXELS, or a DICOM of
            several frames.
    """
    if _is_dicom(source):
        return read_dicom(source)
    try:
        with _open_stream(source) as stream, _open_header(stream) as image:
            orientation = _read_orientation(image)
            inverted = _is_inverted(image)
            _check_content(stream, image)
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
    if _is_dicom(source):
        header = read_header(source)
        return header.width, header.height
    try:
        with _open_stream(source) as stream, _open_header(stream) as image:
            width, height = image.size
            return (height, width) if _read_orientation(image) in {5, 6, 7, 8} else (width, height)
    except Exception as error:  # hostile bytes raise anything
        raise _explain(error, source) from error


def read_mode(source: Path | bytes) -> str:
    """How the file stores its pixels, in Pillow's words: L, RGB, RGBA, P, 1, CMYK, I;16, F.

    Of DICOM in DICOM's: MONOCHROME2 16-bit.

    Raises:
        ImageError: As `read_grey`, as far as the header tells.
    """
    if _is_dicom(source):
        return read_header(source).mode
    try:
        with _open_stream(source) as stream, _open_header(stream) as image:
            return image.mode
    except Exception as error:  # hostile bytes raise anything
        raise _explain(error, source) from error


def read_patient(source: Path | bytes) -> str:
    """The pseudonym of the patient whom a DICOM file names; "" for none and for other formats.

    Raises:
        ImageError: As `read_grey`, as far as the header tells.
    """
    return read_dicom_patient(source) if _is_dicom(source) else ""


def _is_dicom(source: Path | bytes) -> bool:
    """Whether the content is DICOM; of what cannot be opened the other reader says why."""
    try:
        with _open_stream(source) as stream:
            return is_dicom(stream.read(START_BYTES))
    except OSError:
        return False


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
        raise ImageError("not a JPEG, PNG, TIFF, BMP or DICOM picture")
    check_size(*image.size)
    return image


def _check_content(stream: IO[bytes], image: ImageFile.ImageFile) -> None:
    """What Pillow lets pass: JPEG that is endless work, and PNG with pixels unlike their sums."""
    place = stream.tell()
    stream.seek(0)
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        check_scans(stream.read(_MOST_BYTES))
    elif isinstance(image, PngImagePlugin.PngImageFile):
        _check_sums(stream)
    stream.seek(place)


def _check_sums(stream: IO[bytes]) -> None:
    """Compare the pixels of a PNG with their sums; those of what precedes them Pillow compares."""
    stream.seek(8)
    while len(start := stream.read(8)) == 8:
        n_bytes, name = struct.unpack(">I4s", start)
        if name == b"IEND":
            return
        if name != b"IDAT":
            stream.seek(n_bytes + 4, os.SEEK_CUR)
            continue
        checksum = zlib.crc32(name)
        while n_bytes and (block := stream.read(min(n_bytes, 2**20))):
            checksum, n_bytes = zlib.crc32(block, checksum), n_bytes - len(block)
        told = stream.read(4)
        if len(told) < 4:
            raise ImageError("cut short")
        if checksum != int.from_bytes(told):
            raise ImageError("damaged (its pixels are unlike their checksum)")


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
        pixels = scale_to_8_bit(np.asarray(image))
        return 255 - pixels if inverted else pixels
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        opaque = image.convert("RGBA")
        black = Image.new("RGBA", opaque.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, opaque)
    if image.mode not in {"L", "1"}:
        image = image.convert("RGB")
    return np.asarray(image.convert("L"))


def _explain(error: Exception, source: Path | bytes) -> ImageError:
    """Any failure as one ImageError with a short reason that is the same every time."""
    if isinstance(error, ImageError):
        return type(error)(error.reason, source)
    if isinstance(error, OSError) and error.errno is not None:
        return ImageError(error.strerror or describe_error(error), source)
    lines = str(error).splitlines()
    is_key = isinstance(error, KeyError) or any(isinstance(part, KeyError) for part in error.args)
    if is_key:  # what Pillow looked up says nothing to a reader
        return ImageError("damaged (a number in it is unknown)", source)
    if not lines or " at 0x" in lines[0]:
        return ImageError(f"damaged ({type(error).__name__})", source)
    return ImageError(f"damaged ({lines[0][:100]})", source)
