"""Unpack files of several pictures: pages, animations, frames of DICOM, slices of volumes.

Every picture becomes the content of a file of its own, which is read as exactly the grey that the
picture has inside its file (`reader.read_frames`).
"""

import hashlib
import io
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from imaging import dicom_frames, reader
from imaging.bit_depth import Range, ValueScaler
from imaging.grayscale import Pixels
from imaging.kinds import DICOM, START_BYTES, find_kind
from imaging.volumes import VOLUME_SUFFIXES, VolumeOptions

_MAY_HOLD_SEVERAL = {"TIFF", "PNG", "WebP", "GIF", *VOLUME_SUFFIXES, DICOM}
_ANIMATED_PNG = b"acTL"  # before the pixels
_WHITE_IS_ZERO = {262: 0}  # photometric interpretation of TIFF


class Page(NamedTuple):
    """The content of a file of one picture, and the suffix of its name."""

    content: bytes
    suffix: str


def may_hold_several(start: bytes) -> bool:
    """Return whether a file with these first START_BYTES may hold several pictures, or arrays."""
    kind = find_kind(start)
    return kind in _MAY_HOLD_SEVERAL and (kind != "PNG" or _ANIMATED_PNG in start)


def unpack(content: bytes, options: VolumeOptions | None = None) -> Iterator[Page]:
    """Unpack the pictures of a file, one at a time.

    DICOM frames become uncompressed DICOM files. Of other formats, pictures of 8 bits, or with a
    declared bit depth, become a PNG of 8 bits; other values are kept in a TIFF. The new files name
    the file that they come from as their series (`reader.read_study`), by its SHA-256.

    Args:
        content: The file.
        options: How NIfTI and MATLAB files are read.

    Raises:
        ImageError: As `reader.read_frames`; valid pictures before the error are yielded.
    """
    if find_kind(content[:START_BYTES]) == DICOM:
        for frame in dicom_frames.split_frames(content):
            yield Page(frame, ".dcm")
        return
    scaler = _ValueKeeper(hash_series(content))
    for pixels in reader.read_frames(content, scaler, options):
        yield scaler.encode(pixels)


def hash_series(content: bytes) -> str:
    """Return the name of the series that the pictures of a file form."""
    return hashlib.sha256(content).hexdigest()[: reader.SERIES_DIGITS]


def encode_values(values: npt.NDArray, series: str = "", *, inverted: bool = False) -> Page:
    """Encode values [H, W]: 8 bits as PNG, others as TIFF, which keeps them.

    Args:
        values: uint8, int16, uint16, int32 or float32.
        series: Name of the series that the picture belongs to, from `hash_series`.
        inverted: 0 is white; only for uint16.
    """
    stream = io.BytesIO()
    image = Image.fromarray(values)
    if values.dtype == np.uint8:
        texts = PngImagePlugin.PngInfo()
        texts.add_text(reader.SERIES_KEY, series)
        image.save(stream, "PNG", pnginfo=texts)
        return Page(stream.getvalue(), ".png")
    tags: dict[int, object] = {reader.TIFF_DESCRIPTION: f"{reader.SERIES_KEY}: {series}"}
    image.save(stream, "TIFF", tiffinfo=tags | (_WHITE_IS_ZERO if inverted else {}))
    return Page(stream.getvalue(), ".tif")


class _ValueKeeper(ValueScaler):
    """Keeps the values of a picture that have no declared range, instead of scaling them."""

    def __init__(self, series: str) -> None:
        super().__init__()
        self._series = series
        self._page: Page | None = None

    def scale(
        self, values: npt.NDArray, declared: Range | None = None, *, inverted: bool = False
    ) -> Pixels:
        """Scale values with a declared range; keep others for `encode`."""
        if declared is None:
            self._page = encode_values(values, self._series, inverted=inverted)
        return super().scale(values, declared, inverted=inverted)

    def encode(self, pixels: Pixels) -> Page:
        """Encode the picture that was read last."""
        page, self._page = self._page, None
        return page or encode_values(pixels, self._series)
