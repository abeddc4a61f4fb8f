"""The frames of a DICOM file as the numbers that it stores, one at a time.

Decoders fill up what is missing and take the memory that a compressed frame asks for, so frames are
held to the header's words first.
"""

import contextlib
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
_ITEM, _DELIMITER = 0xE000FFFE, 0xE0DDFFFE  # as numbers of 32 bits, little endian
_JPEG2000_START = b"\xff\x4f\xff\x51"  # it begins, and its size comes next
_JPEG_SIZES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}


@dataclass(frozen=True)
class Layout:
    """What the header says of the pixels.

    `samples` is numbers a pixel; each takes `bits`, of which `bits_stored` are used.
    """

    n_frames: int
    width: int
    height: int
    kind: str
    samples: int
    bits: int
    bits_stored: int
    signed: bool


class PixelFinder:
    """Stops pydicom at the pixels and remembers where they lie in the stream."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.keyword = ""
        self.vr: str | None = None
        self.start = self.length = 0
        self.is_directory = False

    def __call__(self, tag: int, vr: str | None, length: int) -> bool:
        """Whether this element, whose value comes next, is where to stop."""
        self.start, self.length, self.vr = self.stream.tell(), length, vr
        self.keyword = _PIXEL_TAGS.get(int(tag), "")
        self.is_directory = tag == _DIRECTORY_TAG
        return bool(self.keyword) or self.is_directory


def decode_frames(
    stream: BinaryIO, data: "Dataset", layout: Layout, pixels: PixelFinder
) -> Iterator[npt.NDArray]:
    """Decode one frame after another.

    Args:
        stream: The file.
        data: Its elements before the pixels.
        layout: What they say of the pixels.
        pixels: Where these lie.

    Yields:
        As stored, [H, W]; of colour RGB, [H, W, 3].

    Raises:
        ImageError: Pixels cut short or unlike the header, or compressed as cannot be decoded here.
        Exception: Of any kind, from the decoders; its words may repeat what the file says.
    """
    from pydicom.pixels.utils import as_pixel_options

    decoder = _find_decoder(data)
    options = as_pixel_options(
        data,
        number_of_frames=layout.n_frames,
        photometric_interpretation=layout.kind,
        samples_per_pixel=layout.samples,
        bits_stored=layout.bits_stored,
        pixel_representation=int(layout.signed),
        pixel_keyword=pixels.keyword,
        allow_excess_frames=False,
    )
    if pixels.vr:
        options["pixel_vr"] = pixels.vr
    if decoder.UID.is_encapsulated:
        _check_fragments(stream, pixels)
        stream.seek(pixels.start)
        yield from _decode_compressed(stream, decoder, layout, options)
    else:
        _check_length(stream, layout, pixels)
        stream.seek(pixels.start)
        yield from (values for values, _ in decoder.iter_array(stream, **options))


def _find_decoder(data: "Dataset") -> "Decoder":
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    syntax = data.file_meta.get("TransferSyntaxUID")
    if not syntax:  # an old file: as pydicom found it to be
        implicit, little = data.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        syntax = ImplicitVRLittleEndian if implicit else explicit
    syntax = UID(syntax)
    with contextlib.suppress(NotImplementedError):
        decoder = get_decoder(syntax)
        if decoder.is_available:
            return decoder
    # a number that the dictionary has not is its own name, and is not to be repeated
    name = syntax.name if syntax.name != str(syntax) else "an unknown transfer syntax"
    raise ImageError(f"compressed by {name}, which cannot be decoded here")


def _check_length(stream: BinaryIO, layout: Layout, pixels: PixelFinder) -> None:
    samples = 2 if layout.kind == "YBR_FULL_422" else layout.samples  # colour for every second
    n_bits = layout.n_frames * layout.width * layout.height * samples * layout.bits
    n_left = stream.seek(0, os.SEEK_END) - pixels.start
    if math.ceil(n_bits / 8) > min(n_left, pixels.length):
        raise ImageError("cut short")


def _check_fragments(stream: BinaryIO, pixels: PixelFinder) -> None:
    n_bytes = stream.seek(0, os.SEEK_END)
    stream.seek(pixels.start)
    while len(item := stream.read(8)) == 8:
        tag, length = struct.unpack("<II", item)
        if tag == _DELIMITER:
            return
        if tag != _ITEM:
            raise ImageError("damaged DICOM (its pixels are no sequence of fragments)")
        if stream.seek(length, os.SEEK_CUR) > n_bytes:
            raise ImageError("cut short")
    if item:
        raise ImageError("cut short")


def _decode_compressed(
    stream: BinaryIO, decoder: "Decoder", layout: Layout, options: dict
) -> Iterator[npt.NDArray]:
    from pydicom.encaps import encapsulate, generate_frames
    from pydicom.uid import RLELossless

    # of run lengths pydicom's own: that of pylibjpeg-rle ends the program at some damage
    plugin = "pydicom" if RLELossless == decoder.UID else ""
    options = {**options, "number_of_frames": 1, "decoding_plugin": plugin}
    offsets = options.pop("extended_offsets", None)
    found = generate_frames(stream, number_of_frames=layout.n_frames, extended_offsets=offsets)
    for frame in range(layout.n_frames):
        codestream = next(found, None)
        if codestream is None:
            raise ImageError(f"cut short after {frame} of {layout.n_frames} frames")
        if RLELossless != decoder.UID:  # run lengths have no size of their own
            _check_codestream(codestream, layout)
        alone = encapsulate([codestream], has_bot=False)
        yield decoder.as_array(alone, index=0, **options)[0]


def _check_codestream(codestream: bytes, layout: Layout) -> None:
    """Hold JPEG of any kind to the header's size: decoders believe it and take the memory."""
    if codestream.startswith(b"\xff\xd8"):
        check_scans(codestream)
        found = _find_jpeg_size(codestream)
    else:
        found = _find_jpeg2000_size(codestream)
    if found != (layout.width, layout.height, layout.samples):
        raise ImageError("damaged DICOM (compressed pixels of another size than its header's)")


def _find_jpeg2000_size(codestream: bytes) -> tuple[int, int, int] | None:
    """Width, height and samples of JPEG 2000, plain or within the boxes of a JP2 file."""
    place = 0
    while not codestream.startswith(_JPEG2000_START, place):
        length, kind = struct.unpack_from(">I4s", codestream, place)
        if length == 1 or (kind == b"jp2h" and b"pclr" in codestream[place : place + length]):
            return None  # a box of over 4 GiB; a palette, which multiplies what is decoded
        place += 8 if kind == b"jp2c" else max(8, length)
    right, bottom, left, top = struct.unpack_from(">4I", codestream, place + 8)
    (samples,) = struct.unpack_from(">H", codestream, place + 40)
    return right - left, bottom - top, samples


def _find_jpeg_size(codestream: bytes) -> tuple[int, int, int] | None:
    """Width, height and samples by the start of frame of JPEG or JPEG-LS."""
    place = 2
    while place + 10 <= len(codestream) and codestream[place] == 0xFF:
        marker = codestream[place + 1]
        if marker in _JPEG_SIZES:
            height, width, samples = struct.unpack_from(">HHB", codestream, place + 5)
            return width, height, samples
        length = int.from_bytes(codestream[place + 2 : place + 4])
        place += 1 if marker == 0xFF else 2 + length  # markers may be filled up with FF
    return None
