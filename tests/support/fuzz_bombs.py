"""Small files that ask for as much as the limits allow: the most that a picture may cost."""

import math
import struct
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

from imaging.dicom import MAX_FRAME_PIXELS, MAX_INFLATED_BYTES
from imaging.grayscale import MAX_PIXELS, MAX_SCANS
from tests.support.dicom_files import build_dataset, encode_dataset
from tests.support.fuzz_corpus import GREY, build_chunk, build_corpus, encode
from tests.support.fuzz_mutations import (
    pack_zeros,
    resize_codestream,
    split_segments,
    write_element,
)

SIDE = math.isqrt(MAX_PIXELS)
FRAME_SIDE = math.isqrt(MAX_FRAME_PIXELS)


def build_zeros(depth: int, colour: int, n_bytes: int, *chunks: bytes, interlace: int = 0) -> bytes:
    """A PNG of SIDE x SIDE zeros, so many bytes a pixel."""
    header = struct.pack(">IIBBBBB", SIDE, SIDE, depth, colour, 0, 0, interlace)
    packed = pack_zeros(SIDE * (SIDE * n_bytes + 1) + (16 * SIDE if interlace else 0))
    parts = (build_chunk(b"IHDR", header), *chunks, build_chunk(b"IDAT", packed))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + build_chunk(b"IEND", b"")


def enlarge(name: str) -> bytes:
    """A JPEG of the corpus whose header asks for SIDE x SIDE; what is missing is filled up."""
    (member,) = (member for member in build_corpus() if member.name == name)
    return resize_codestream(member.content, SIDE, SIDE)


def repeat_scans(times: int) -> bytes:
    """A large progressive JPEG with its last scan many times over."""
    segments = split_segments(enlarge("JPEG progressive"))
    return b"".join([*segments[:-1], *segments[-2:-1] * times, segments[-1]])


def build_tiff(mode: str) -> bytes:
    """A deflated TIFF of SIDE x SIDE zeros."""
    return encode(Image.new(mode, (SIDE, SIDE)), "TIFF", compression="tiff_adobe_deflate")


def describe_dicom(bits: int, side: int, **elements: Any) -> Dataset:
    data = build_dataset(GREY.astype(f"u{bits // 8}"), Rows=side, Columns=side, **elements)
    del data.PixelData
    return data


def build_deflated(**elements: Any) -> bytes:
    """A deflated DICOM of 16 bits that unpacks to as much as may be, in a few frames."""
    n_frames = (MAX_INFLATED_BYTES - 4000) // (2 * FRAME_SIDE**2)
    plain = encode_dataset(describe_dicom(16, FRAME_SIDE, NumberOfFrames=n_frames, **elements))
    head, _, rest = plain.partition(b"1.2.840.10008.1.2.1\0")
    end = 144 + int.from_bytes(plain[140:144], "little")
    meta = (head + b"1.2.840.10008.1.2.1.99" + rest)[: end + 2]
    meta = meta[:140] + struct.pack("<I", end + 2 - 144) + meta[144:]
    n_name = int.from_bytes(head[-2:], "little") + 2
    meta = meta[: len(head) - 2] + struct.pack("<H", n_name) + meta[len(head) :]
    packer, block = zlib.compressobj(9, wbits=-zlib.MAX_WBITS), bytes(2**20)
    n_bytes = 2 * n_frames * FRAME_SIDE**2
    parts = [packer.compress(plain[end:] + struct.pack("<HH2s2xI", 0x7FE0, 0x10, b"OW", n_bytes))]
    parts += [packer.compress(block) for _ in range(n_bytes // 2**20)]
    return b"".join([meta, *parts, packer.compress(bytes(n_bytes % 2**20)), packer.flush()])


def build_run_lengths(bits: int, n_frames: int = 1, **elements: Any) -> bytes:
    """A DICOM of zeros in run lengths."""
    side = FRAME_SIDE if n_frames == 1 else 16
    data = describe_dicom(bits, side, NumberOfFrames=n_frames, **elements)
    segment = b"\x81\0" * math.ceil(side * side / 128)
    starts = [64 + place * len(segment) for place in range(bits // 8)]
    header = struct.pack("<16I", bits // 8, *starts, *[0] * (15 - len(starts)))
    data.file_meta.TransferSyntaxUID = RLELossless
    data.PixelData = encapsulate([header + segment * (bits // 8)] * n_frames, has_bot=False)
    return encode_dataset(data)


def enlarge_dicom(name: str) -> bytes:
    """A compressed DICOM of the corpus that asks for FRAME_SIDE x FRAME_SIDE in all its headers."""
    (member,) = (member for member in build_corpus() if member.name == f"DICOM {name}")
    content = member.content
    for element in ((0x28, 0x10), (0x28, 0x11)):
        content = write_element(content, element, struct.pack("<H", FRAME_SIDE))
    return resize_codestream(content, FRAME_SIDE, FRAME_SIDE)


HALF: dict[str, Any] = {"RescaleSlope": "0.5", "RescaleIntercept": "0.25"}
WINDOW: dict[str, Any] = {"WindowCenter": "2048", "WindowWidth": "4096"}
LARGE_PALETTE = build_chunk(b"PLTE", bytes(768)), build_chunk(b"tRNS", bytes(256))
BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG RGBA": lambda: build_zeros(8, 6, 4),
    "DICOM deflated": lambda: build_deflated(**HALF, **WINDOW),
    "JPEG progressive": lambda: enlarge("JPEG progressive"),
    "PNG grey": lambda: build_zeros(8, 0, 1),
    "PNG colour": lambda: build_zeros(8, 2, 3),
    "PNG palette": lambda: build_zeros(8, 3, 1, *LARGE_PALETTE),
    "PNG 16 bit": lambda: build_zeros(16, 0, 2),
    "PNG 16 bit RGBA": lambda: build_zeros(16, 6, 8),
    "PNG interlaced": lambda: build_zeros(8, 2, 3, interlace=1),
    "JPEG grey": lambda: enlarge("JPEG grey"),
    "JPEG colour": lambda: enlarge("JPEG full colour"),
    "JPEG CMYK progressive": lambda: enlarge("JPEG CMYK progressive"),
    "JPEG of many scans": lambda: repeat_scans(1000),
    "JPEG of as many scans as may be": lambda: repeat_scans(MAX_SCANS - 10),
    "TIFF colour": lambda: build_tiff("RGB"),
    "TIFF 16 bit": lambda: build_tiff("I;16"),
    "TIFF float": lambda: build_tiff("F"),
    "TIFF CMYK": lambda: build_tiff("CMYK"),
    "DICOM deflated without a window": lambda: build_deflated(**HALF),
    "DICOM padded": lambda: build_deflated(PixelPaddingValue=7),
    "DICOM run lengths": lambda: build_run_lengths(16, **HALF, **WINDOW),
    "DICOM run lengths of 32 bit": lambda: build_run_lengths(32),
    "DICOM of many frames": lambda: build_run_lengths(8, 1000),
    "DICOM JPEG 2000": lambda: enlarge_dicom("MR_small_jp2klossless"),
    "DICOM JPEG-LS": lambda: enlarge_dicom("MR_small_jpeg_ls_lossless"),
    "DICOM JPEG lossless": lambda: enlarge_dicom("SC_rgb_jpeg_gdcm"),
    "DICOM JPEG": lambda: enlarge_dicom("JPGExtended"),
    "DICOM JPEG colour": lambda: enlarge_dicom("SC_rgb_jpeg_dcmtk"),
}
