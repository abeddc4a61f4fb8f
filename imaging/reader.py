"""Read an image of any supported format as grey uint8.

Pillow's process-wide state is not changed, so several threads can read at once.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from common.file_starts import describe_start
from helper import describe_error
from imaging.bit_depth import Range, ValueScaler, find_png_range, find_pnm_range, find_tiff_range
from imaging.content_checks import check_png_checksums, read_webp_size
from imaging.dicom import MAX_FRAMES, read_dicom_frames, read_dicom_patient, read_header
from imaging.grayscale import ImageError, Pixels, check_scans, check_size
from imaging.kinds import FORMATS, START_BYTES, find_kind, is_dicom
from imaging.volumes import (
    VOLUME_SUFFIXES,
    VolumeKind,
    VolumeOptions,
    count_slices,
    find_volume_kind,
    read_slices,
)

SERIES_KEY, SERIES_DIGITS = "MRI series", 16  # text of a PNG or TIFF that pages.py wrote
TIFF_DESCRIPTION = 270
READER_VERSION = 4  # part of cache keys: increase it when the same file gives different pixels

# Formats are opened by their plugin classes: Image.open would try dozens of others and warn about
# large images through the warnings module, which is not thread-safe.
_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "JPEG 2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
    "PNM": PpmImagePlugin.PpmImageFile,
}
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
_TIFF_SUBFILE_TYPE = 254

# Pillow warns about unusual metadata, which does not affect the pixels.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def read_frames(
    source: Path | bytes,
    scaler: ValueScaler | None = None,
    options: VolumeOptions | None = None,
) -> Iterator[Pixels]:
    """Read all pictures of a file, one at a time: frames, pages, or slices of a volume.

    Args:
        source: As for `read_grey`.
        scaler: As for `read_grey`.
        options: How NIfTI and MATLAB files are read.

    Yields:
        uint8 [H, W]

    Raises:
        ImageError: As `read_grey`; valid pictures before the error are yielded.
    """
    scaler = scaler or ValueScaler()
    if _is_dicom(source):
        yield from read_dicom_frames(source, scaler)
        return
    if kind := _find_volume_kind(source):
        for _, values in read_slices(source, kind, options):
            yield values if values.dtype == np.uint8 else scaler.scale(values)
        return
    with _open_image(source) as (stream, image):
        for page in list_pages(image):
            if page:
                image.seek(page)
            yield _read_page(stream, image, scaler)


def read_grey(source: Path | bytes, scaler: ValueScaler | None = None) -> Pixels:
    """Read the single image of a file of any format as grey, upright by its EXIF tag.

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
        ImageError: Unreadable, truncated, empty, another format, over MAX_PIXELS, or a file of
            several pictures.
    """
    scaler = scaler or ValueScaler()
    if _is_dicom(source):
        (pixels,) = read_dicom_frames(source, scaler, single=True)
        return pixels
    with _open_image(source) as (stream, image):
        if (n_pages := len(list_pages(image))) > 1:
            raise ImageError(f"{n_pages} pictures instead of one; prepare.py unpacks such files")
        return _read_page(stream, image, scaler)


def count_frames(source: Path | bytes, options: VolumeOptions | None = None) -> int:
    """Return the number of pictures of a file; 1 for most. Empty slices of a volume are none.

    Raises:
        ImageError: As `read_grey`, for errors that the header reveals.
    """
    if _is_dicom(source):
        return read_header(source).n_frames
    if kind := _find_volume_kind(source):
        return count_slices(source, kind, options).n_slices
    with _open_image(source) as (_, image):
        return len(list_pages(image))


def list_pages(image: ImageFile.ImageFile) -> Sequence[int]:
    """Return the places of the pictures of a file.

    Pages of a TIFF that are smaller than the first one are thumbnails or pyramid levels.

    Raises:
        ImageError: More than MAX_FRAMES.
    """
    n_frames = getattr(image, "n_frames", 1)
    if n_frames > MAX_FRAMES:
        raise ImageError(f"more than {MAX_FRAMES:,} pictures")
    if n_frames == 1 or not isinstance(image, TiffImagePlugin.TiffImageFile):
        return range(n_frames)
    size, pages = image.size, [0]
    for page in range(1, n_frames):
        image.seek(page)
        is_reduced = int(image.tag_v2.get(_TIFF_SUBFILE_TYPE, 0)) & 1
        if image.size == size and not is_reduced:
            pages.append(page)
    image.seek(0)
    return pages


def _read_page(stream: IO[bytes], image: ImageFile.ImageFile, scaler: ValueScaler) -> Pixels:
    """Read the picture at the present place of an opened file."""
    orientation = _read_orientation(image)
    inverted = _is_inverted(image)
    _check_content(stream, image)
    image.draft("L", None)  # luma channel of a JPEG only: half the time of colour
    image.load()
    check_size(*image.size)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        declared = _find_declared_range(stream, image, values)
        pixels = scaler.scale(values, declared, inverted=inverted)
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
    if kind := _find_volume_kind(source):
        count_slices(source, kind)  # for the reason why it cannot be read
        return kind
    with _open_image(source) as (_, image):
        return image.mode


def read_patient(source: Path | bytes) -> str:
    """Return the pseudonym of the patient of a DICOM file; "" for other formats or without ID.

    Raises:
        ImageError: As `read_grey`, for errors that the header reveals.
    """
    return read_dicom_patient(source) if _is_dicom(source) else ""


def read_study(source: Path | bytes) -> tuple[str, str]:
    """Return the pseudonyms of study and series of a DICOM file, "" for one that is missing.

    Pictures that `imaging.pages` has unpacked name the file that they come from as their series.

    Raises:
        ImageError: As `read_grey`, for errors that the header reveals.
    """
    if _is_dicom(source):
        header = read_header(source)
        return header.study, header.series
    with _open_image(source) as (_, image):
        text = ""
        if isinstance(image, PngImagePlugin.PngImageFile):
            text = f"{SERIES_KEY}: {image.info.get(SERIES_KEY, '')}"
        elif isinstance(image, TiffImagePlugin.TiffImageFile):
            text = str(image.tag_v2.get(TIFF_DESCRIPTION, ""))
        found = re.fullmatch(rf"{SERIES_KEY}: ([0-9a-f]{{{SERIES_DIGITS}}})", text)
        return "", found[1] if found else ""


def _is_dicom(source: Path | bytes) -> bool:
    """Return whether the content is DICOM; False for a file that cannot be opened."""
    return is_dicom(_read_start(source))


def _find_volume_kind(source: Path | bytes) -> VolumeKind | None:
    return find_volume_kind(_read_start(source))


def _read_start(source: Path | bytes) -> bytes:
    """Return the first START_BYTES of a file, b"" if it cannot be opened."""
    with contextlib.suppress(OSError), _open_stream(source) as stream:
        return stream.read(START_BYTES)
    return b""


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
    start = stream.read(START_BYTES)
    stream.seek(0)
    if not start:
        raise ImageError("empty file")
    kind = find_kind(start)
    if kind in VOLUME_SUFFIXES:
        raise ImageError(f"a {kind} file in the data folder; prepare.py unpacks those of a source")
    if kind not in _PLUGINS:
        if other := describe_start(start):
            raise ImageError(other)
        raise ImageError(f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image")
    if kind == "WebP":  # its plugin allocates the picture when it opens the file
        check_size(*read_webp_size(start))
    image = _PLUGINS[kind](stream)
    check_size(*image.size)
    return image


def _check_content(stream: IO[bytes], image: ImageFile.ImageFile) -> None:
    """Check the number of JPEG scans and the checksums of PNG pixels, which Pillow does not."""
    position = stream.tell()
    stream.seek(0)
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        check_scans(stream.read(_MAX_JPEG_BYTES))
    elif isinstance(image, PngImagePlugin.PngImageFile):
        check_png_checksums(stream)
    stream.seek(position)


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
    if isinstance(image, PpmImagePlugin.PpmImageFile):
        return find_pnm_range(stream)
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
    # addresses and parts of the file, which some messages repeat, are left out
    has_message = lines and not re.search(r" at 0x|b['\"]|invalid literal", lines[0])
    detail = lines[0][:100] if has_message else type(error).__name__
    return ImageError(f"damaged ({detail})", source)
