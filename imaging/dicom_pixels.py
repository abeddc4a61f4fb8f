"""Decode the pixel data of a DICOM file frame by frame.

Decoders pad missing data and allocate the size stated in a compressed frame, so frames are compared
with the header first.
"""

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy.typing as npt

from imaging.grayscale import ImageError, check_scans

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.pixels.decoders.base import Decoder

UNDEFINED_LENGTH = 0xFFFFFFFF
_PIXEL_TAGS = {
    0x7FE00008: "FloatPixelData",
    0x7FE00009: "DoubleFloatPixelData",
    0x7FE00010: "PixelData",
}
_DIRECTORY_TAG = 0x00041220
_ITEM, _DELIMITER = 0xE000FFFE, 0xE0DDFFFE  # tags read as little-endian 32-bit numbers
_JPEG2000_START = b"\xff\x4f\xff\x51"  # SOC and SIZ markers; the size follows
_JPEG_SOF = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}


@dataclass(frozen=True)
class PixelFormat:
    """Description of the pixel data in the header.

    Attributes:
        photometric: Photometric interpretation.
        samples: Samples per pixel.
        bits: Bits allocated per sample.
        bits_stored: Bits used per sample.
        signed: True for two's complement.
    """

    n_frames: int
    width: int
    height: int
    photometric: str
    samples: int
    bits: int
    bits_stored: int
    signed: bool

    @property
    def n_bytes(self) -> int:
        """Length of uncompressed pixel data."""
        subsampled = self.photometric == "YBR_FULL_422"
        n_samples = self.n_frames * self.width * self.height * (2 if subsampled else self.samples)
        return math.ceil(n_samples * self.bits / 8)


class PixelDataFinder:
    """Stop condition for pydicom's parser that stores the position of the pixel data."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.keyword = ""
        self.vr: str | None = None
        self.start = self.length = 0
        self.is_directory = False

    def __call__(self, tag: int, vr: str | None, length: int) -> bool:
        """Return whether to stop before the value of this element."""
        self.start, self.length, self.vr = self.stream.tell(), length, vr
        self.keyword = _PIXEL_TAGS.get(int(tag), "")
        self.is_directory = tag == _DIRECTORY_TAG
        return bool(self.keyword) or self.is_directory


def decode_frames(
    stream: BinaryIO, data: "Dataset", pixel_format: PixelFormat, finder: PixelDataFinder
) -> Iterator[npt.NDArray]:
    """Decode the frames of a file one at a time; `data` holds the elements before the pixels.

    Yields:
        Stored values [H, W]; for colour, RGB [H, W, 3].

    Raises:
        ImageError: Truncated, different from the header, or an unsupported transfer syntax.
        Exception: Any error of a decoder; its message may repeat values of the file.
    """
    from pydicom.pixels.utils import as_pixel_options

    decoder = _find_decoder(data)
    options = as_pixel_options(
        data,
        number_of_frames=pixel_format.n_frames,
        photometric_interpretation=pixel_format.photometric,
        samples_per_pixel=pixel_format.samples,
        bits_stored=pixel_format.bits_stored,
        pixel_representation=int(pixel_format.signed),
        pixel_keyword=finder.keyword,
        allow_excess_frames=False,
    )
    if finder.vr:
        options["pixel_vr"] = finder.vr
    if decoder.UID.is_encapsulated:
        _check_fragments(stream, finder)
        stream.seek(finder.start)
        yield from _decode_compressed(stream, decoder, pixel_format, options)
    else:
        n_left = stream.seek(0, os.SEEK_END) - finder.start
        if pixel_format.n_bytes > min(n_left, finder.length):
            raise ImageError("truncated")
        stream.seek(finder.start)
        yield from (values for values, _ in decoder.iter_array(stream, **options))


def _find_decoder(data: "Dataset") -> "Decoder":
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    from imaging.dicom_codecs import PLUGINS

    syntax = data.file_meta.get("TransferSyntaxUID")
    if not syntax:  # no file meta information: pydicom has detected the encoding
        implicit, little = data.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        syntax = ImplicitVRLittleEndian if implicit else explicit
    syntax = UID(syntax)
    # an unknown UID is its own name, which must not be shown
    name = syntax.name if syntax.name != str(syntax) else "an unknown transfer syntax"
    if syntax not in PLUGINS:
        raise ImageError(f"compressed with {name}, which is not supported")
    decoder, plugin = get_decoder(syntax), PLUGINS[syntax]
    if plugin and plugin not in decoder.available_plugins:
        command = "python -m pip install -r requirements.txt"
        raise ImageError(f"compressed with {name}, whose decoder is not installed; {command}")
    return decoder


def _check_fragments(stream: BinaryIO, finder: PixelDataFinder) -> None:
    n_bytes = stream.seek(0, os.SEEK_END)
    stream.seek(finder.start)
    while len(item := stream.read(8)) == 8:
        tag, length = struct.unpack("<II", item)
        if tag == _DELIMITER:
            return
        if tag != _ITEM:
            raise ImageError("damaged DICOM (pixel data is not a sequence of fragments)")
        if stream.seek(length, os.SEEK_CUR) > n_bytes:
            raise ImageError("truncated")
    if item:
        raise ImageError("truncated")


def _decode_compressed(
    stream: BinaryIO, decoder: "Decoder", pixel_format: PixelFormat, options: dict
) -> Iterator[npt.NDArray]:
    from pydicom.encaps import encapsulate, generate_frames
    from pydicom.uid import RLELossless

    from imaging.dicom_codecs import PLUGINS

    options = {**options, "number_of_frames": 1, "decoding_plugin": PLUGINS[decoder.UID]}
    offsets = options.pop("extended_offsets", None)
    codestreams = generate_frames(
        stream, number_of_frames=pixel_format.n_frames, extended_offsets=offsets
    )
    for frame in range(pixel_format.n_frames):
        codestream = next(codestreams, None)
        if codestream is None:
            raise ImageError(f"truncated after {frame} of {pixel_format.n_frames} frames")
        if RLELossless != decoder.UID:  # RLE contains no size
            _check_codestream(codestream, pixel_format)
        single_frame = encapsulate([codestream], has_bot=False)
        yield decoder.as_array(single_frame, index=0, **options)[0]


def _check_codestream(codestream: bytes, pixel_format: PixelFormat) -> None:
    """Compare the size in a JPEG codestream with the header; decoders allocate the stated size."""
    if codestream.startswith(b"\xff\xd8"):
        check_scans(codestream)
        size = _find_jpeg_size(codestream)
    else:
        size = _find_jpeg2000_size(codestream)
    if size != (pixel_format.width, pixel_format.height, pixel_format.samples):
        raise ImageError("damaged DICOM (size of the compressed pixels differs from the header)")


def _find_jpeg2000_size(codestream: bytes) -> tuple[int, int, int] | None:
    """Return width, height and samples of JPEG 2000, plain or in the boxes of a JP2 file."""
    position = 0
    while not codestream.startswith(_JPEG2000_START, position):
        length, name = struct.unpack_from(">I4s", codestream, position)
        has_palette = name == b"jp2h" and b"pclr" in codestream[position : position + length]
        if length == 1 or has_palette:
            return None  # a box over 4 GiB, or a palette, which multiplies the samples
        position += 8 if name == b"jp2c" else max(8, length)
    right, bottom, left, top = struct.unpack_from(">4I", codestream, position + 8)
    (samples,) = struct.unpack_from(">H", codestream, position + 40)
    return right - left, bottom - top, samples


def _find_jpeg_size(codestream: bytes) -> tuple[int, int, int] | None:
    """Return width, height and samples in the first frame header of JPEG or JPEG-LS."""
    position = 2
    while position + 10 <= len(codestream) and codestream[position] == 0xFF:
        marker = codestream[position + 1]
        if marker in _JPEG_SOF:
            height, width, samples = struct.unpack_from(">HHB", codestream, position + 5)
            return width, height, samples
        length = int.from_bytes(codestream[position + 2 : position + 4])
        position += 1 if marker == 0xFF else 2 + length  # 0xFF may be repeated as padding
    return None
