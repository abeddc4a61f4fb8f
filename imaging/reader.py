"""Read an image of any supported format as grey uint8.

Pillow's process-wide state is not changed, so several threads can read at once.
"""

import contextlib
import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from helper import describe_error
from imaging.bit_depth import Range, ValueScaler, find_png_range, find_tiff_range
from imaging.dicom import (
    START_BYTES,
    has_preamble,
    is_dicom,
    read_dicom_frames,
    read_dicom_patient,
    read_header,
)
from imaging.grayscale import ImageError, Pixels, check_scans, check_size

READER_VERSION = 4  # part of cache keys: increase it when the same file gives different pixels
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", *DICOM_SUFFIXES)

# Formats are opened by their plugin classes: Image.open would try dozens of others and warn about
# large images through the warnings module, which is not thread-safe.
_SIGNATURES: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    *((start, TiffImagePlugin.TiffImageFile) for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
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
_MAX_JPEG_BYTES = 2**27  # more than an image of MAX_PIXELS needs
_EXIF_ORIENTATION = 0x0112
_TIFF_PHOTOMETRIC = 262

# Pillow warns about unusual metadata, which does not affect the pixels.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def is_image_file(name: str, peek: Callable[[], bytes]) -> bool:
    """Return whether a file is an image by its suffix or, without a suffix, as DICOM.

    Scanners write DICOM files without suffix, or with a UID as name. A DICOMDIR only lists files.

    Args:
        name: File name without folders.
        peek: Reads the first START_BYTES of the file; called only if the name is not sufficient.
    """
    if name.startswith(".") or name.upper() == "DICOMDIR":
        return False
    if name.lower().endswith(IMAGE_SUFFIXES):
        return True
    suffix = PurePosixPath(name).suffix
    return (not suffix or suffix[1:].isdecimal()) and has_preamble(peek())


def read_first_bytes(path: Path) -> bytes:
    """Return the first START_BYTES of a file, for `is_image_file`."""
    with path.open("rb") as stream:
        return stream.read(START_BYTES)


def read_frames(source: Path | bytes, scaler: ValueScaler | None = None) -> Iterator[Pixels]:
    """Read the frames of a DICOM file one at a time, or the single image of another format.

    Arguments are those of `read_grey`.

    Yields:
        uint8 [H, W]

    Raises:
        ImageError: As `read_grey`; valid frames before the error are yielded.
    """
    if _is_dicom(source):
        yield from read_dicom_frames(source, scaler or ValueScaler())
    else:
        yield read_grey(source, scaler)


def read_grey(source: Path | bytes, scaler: ValueScaler | None = None) -> Pixels:
    """Read a JPEG, PNG, TIFF, BMP or DICOM image of any mode as grey, upright by its EXIF tag.

    Colour becomes luma; transparent parts become black. More than 8 bits are scaled by the range
    that the file declares (`imaging.bit_depth`), else by the scaler. DICOM is converted by its
    window (`convert_frame`).

    Args:
        source: Path or content of the file.
        scaler: A new one for each file; None: values without a declared range are scaled by their
            own, so that the brightness of two such files is not comparable.

    Returns:
        uint8 [H, W]

    Raises:
        ImageError: Unreadable, truncated, empty, another format, over MAX_PIXELS, or a DICOM file
            of several frames.
    """
    scaler = scaler or ValueScaler()
    if _is_dicom(source):
        (pixels,) = read_dicom_frames(source, scaler, single=True)
        return pixels
    with _open_image(source) as (stream, image):
        orientation = _read_orientation(image)
        inverted = _is_inverted(image)
        _check_content(stream, image)
        image.draft("L", None)  # luma channel of a JPEG only: half the time of colour
        image.load()
        if image.mode.startswith("I") or image.mode == "F":
            values = np.asarray(image)
            pixels = scaler.scale(values, _find_declared_range(stream, image, values))
            pixels = 255 - pixels if inverted else pixels
        else:
            pixels = _convert_grey(image)
        if orientation in _TRANSPOSES:
            pixels = np.asarray(Image.fromarray(pixels).transpose(_TRANSPOSES[orientation]))
        return np.ascontiguousarray(pixels)


def read_size(source: Path | bytes) -> tuple[int, int]:
    """Return upright width and height in pixels from the header.

    Raises:
        ImageError: As `read_grey`, for errors that the header reveals.
    """
    if _is_dicom(source):
        header = read_header(source)
        return header.width, header.height
    with _open_image(source) as (_, image):
        width, height = image.size
        return (height, width) if _read_orientation(image) in {5, 6, 7, 8} else (width, height)


def read_mode(source: Path | bytes) -> str:
    """Return Pillow's mode (L, RGB, I;16, ...); for DICOM a text such as MONOCHROME2 16-bit.

    Raises:
        ImageError: As `read_grey`, for errors that the header reveals.
    """
    if _is_dicom(source):
        return read_header(source).mode
    with _open_image(source) as (_, image):
        return image.mode


def read_patient(source: Path | bytes) -> str:
    """Return the pseudonym of the patient of a DICOM file; "" for other formats or without ID.

    Raises:
        ImageError: As `read_grey`, for errors that the header reveals.
    """
    return read_dicom_patient(source) if _is_dicom(source) else ""


def read_study(source: Path | bytes) -> str:
    """Return the pseudonym of the study of a DICOM file, or of its series if it names no study.

    Returns "" for other formats and for files that name neither.

    Raises:
        ImageError: As `read_grey`, for errors that the header reveals.
    """
    if not _is_dicom(source):
        return ""
    header = read_header(source)
    return header.study or header.series


def _is_dicom(source: Path | bytes) -> bool:
    """Return whether the content is DICOM; False for a file that cannot be opened."""
    with contextlib.suppress(OSError), _open_stream(source) as stream:
        return is_dicom(stream.read(START_BYTES))
    return False


def _open_stream(source: Path | bytes) -> IO[bytes]:
    return source.open("rb") if isinstance(source, Path) else io.BytesIO(source)


@contextlib.contextmanager
def _open_image(source: Path | bytes) -> Iterator[tuple[IO[bytes], ImageFile.ImageFile]]:
    """Open a file that is not DICOM; every error, also in the body, becomes an ImageError."""
    try:
        with _open_stream(source) as stream, _open_header(stream) as image:
            yield stream, image
    except Exception as error:  # damaged files raise exceptions of any type
        raise _to_image_error(error, source) from error


def _open_header(stream: IO[bytes]) -> ImageFile.ImageFile:
    """Parse the header and check the pixel limit before decoding."""
    start = stream.read(8)
    stream.seek(0)
    if not start:
        raise ImageError("empty file")
    for signature, plugin in _SIGNATURES:
        if start.startswith(signature):
            image = plugin(stream)
            check_size(*image.size)
            return image
    raise ImageError("not a JPEG, PNG, TIFF, BMP or DICOM image")


def _check_content(stream: IO[bytes], image: ImageFile.ImageFile) -> None:
    """Check the number of JPEG scans and the checksums of PNG pixels, which Pillow does not."""
    position = stream.tell()
    stream.seek(0)
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        check_scans(stream.read(_MAX_JPEG_BYTES))
    elif isinstance(image, PngImagePlugin.PngImageFile):
        _check_png_checksums(stream)
    stream.seek(position)


def _check_png_checksums(stream: IO[bytes]) -> None:
    """Verify the checksums of IDAT chunks; Pillow verifies only those of the chunks before them."""
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
        stored = stream.read(4)
        if len(stored) < 4:
            raise ImageError("truncated")
        if checksum != int.from_bytes(stored):
            raise ImageError("damaged (pixel data does not match its checksum)")


def _read_orientation(image: ImageFile.ImageFile) -> int:
    """Return the EXIF orientation; 1 (upright) if the tag is missing or damaged."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return 1  # Pillow applies the orientation of TIFF
    try:
        # the base method, as PngImageFile.getexif decodes the pixels first
        return int(Image.Image.getexif(image).get(_EXIF_ORIENTATION, 1))
    except Exception:  # noqa: BLE001  the pixels are readable with a damaged tag
        return 1


def _is_inverted(image: ImageFile.ImageFile) -> bool:
    """Return whether 0 is white in a 16-bit TIFF, which Pillow does not invert."""
    return (
        isinstance(image, TiffImagePlugin.TiffImageFile)
        and image.mode.startswith("I;16")
        and image.tag_v2.get(_TIFF_PHOTOMETRIC) == 0
    )


def _find_declared_range(
    stream: IO[bytes], image: ImageFile.ImageFile, values: npt.NDArray
) -> Range | None:
    """Return the range that the file of a loaded image of more than 8 bits declares, if any."""
    if values.dtype.kind == "f":
        return None
    if isinstance(image, PngImagePlugin.PngImageFile):
        return find_png_range(stream, values)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return find_tiff_range(image.tag_v2)
    return None


def _convert_grey(image: Image.Image) -> Pixels:
    """Convert a loaded image of 8 bits and any mode to grey uint8 [H, W]."""
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        opaque = image.convert("RGBA")
        black = Image.new("RGBA", opaque.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, opaque)
    if image.mode not in {"L", "1"}:
        image = image.convert("RGB")
    return np.asarray(image.convert("L"))


def _to_image_error(error: Exception, source: Path | bytes) -> ImageError:
    """Convert any exception to an ImageError with a short, reproducible reason."""
    if isinstance(error, ImageError):
        return type(error)(error.reason, source)
    if isinstance(error, OSError) and error.errno is not None:
        return ImageError(error.strerror or describe_error(error), source)
    if any(isinstance(part, KeyError) for part in (error, *error.args)):
        return ImageError("damaged (unknown value in the header)", source)  # the key is a number
    lines = str(error).splitlines()
    has_message = lines and " at 0x" not in lines[0]
    detail = lines[0][:100] if has_message else type(error).__name__
    return ImageError(f"damaged ({detail})", source)
