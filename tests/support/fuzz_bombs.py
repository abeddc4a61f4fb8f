"""Small files that take the most time or memory that the limits allow."""

import math
import struct
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from imaging.dicom import MAX_FRAME_PIXELS, MAX_INFLATED_BYTES
from imaging.grayscale import MAX_PIXELS, MAX_SCANS
from tests.support.dicom_files import build_dataset, encode_dataset, encode_dicom
from tests.support.fuzz_corpus import build_chunk, build_corpus, build_png, encode
from tests.support.fuzz_mutations import resize_codestream, resize_dicom, split_segments

SIDE = math.isqrt(MAX_PIXELS)
FRAME_SIDE = math.isqrt(MAX_FRAME_PIXELS)


def build_png_zeros(
    depth: int, colour: int, n_bytes: int, *chunks: bytes, interlace: int = 0
) -> bytes:
    idat = zlib.compress(bytes(SIDE * (SIDE * n_bytes + 17)))  # with a margin for interlacing
    return build_png((SIDE, SIDE), depth, colour, idat, *chunks, interlace=interlace)


def find_content(name: str) -> bytes:
    return next(member.content for member in build_corpus() if member.name == name)


def enlarge_jpeg(name: str) -> bytes:
    return resize_codestream(find_content(f"JPEG {name}"), SIDE, SIDE)


def repeat_scans(n_times: int) -> bytes:
    segments = split_segments(enlarge_jpeg("progressive"))
    return b"".join([*segments[:-1], *segments[-2:-1] * n_times, segments[-1]])


def build_tiff(mode: str) -> bytes:
    return encode(Image.new(mode, (SIDE, SIDE)), "TIFF", compression="tiff_adobe_deflate")


def build_deflated(**elements: Any) -> bytes:
    """Return a deflated 16-bit DICOM of zeros that inflates almost to the limit."""
    n_frames = (MAX_INFLATED_BYTES - 4000) // (2 * FRAME_SIDE**2)
    zeros = np.zeros((n_frames, FRAME_SIDE, FRAME_SIDE), np.uint16)
    elements |= {"n_frames": n_frames, "syntax": DeflatedExplicitVRLittleEndian}
    return encode_dicom(zeros, **elements)


def build_rle(bits: int, n_frames: int = 1, **elements: Any) -> bytes:
    side = FRAME_SIDE if n_frames == 1 else 16
    values = np.zeros((side, side), f"u{bits // 8}")
    data = build_dataset(values, NumberOfFrames=n_frames, **elements)
    segment = b"\x81\0" * math.ceil(side * side / 128)
    starts = [64 + index * len(segment) for index in range(bits // 8)]
    header = struct.pack("<16I", bits // 8, *starts, *[0] * (15 - len(starts)))
    data.file_meta.TransferSyntaxUID = RLELossless
    data.PixelData = encapsulate([header + segment * (bits // 8)] * n_frames, has_bot=False)
    return encode_dataset(data)


def enlarge_dicom(name: str) -> bytes:
    content = resize_dicom(find_content(f"DICOM {name}"), FRAME_SIDE, FRAME_SIDE)
    return resize_codestream(content, FRAME_SIDE, FRAME_SIDE)


HALF: dict[str, Any] = {"RescaleSlope": "0.5", "RescaleIntercept": "0.25"}
WINDOW: dict[str, Any] = {"WindowCenter": "2048", "WindowWidth": "4096"}
PALETTE = build_chunk(b"PLTE", bytes(768)), build_chunk(b"tRNS", bytes(256))
PNGS: dict[str, Any] = {"grey": (8, 0, 1), "colour": (8, 2, 3), "palette": (8, 3, 1, *PALETTE)}
PNGS |= {"RGBA": (8, 6, 4), "16 bit": (16, 0, 2), "16 bit RGBA": (16, 6, 8)}
JPEGS = ("progressive", "grey", "full colour", "CMYK progressive")
JPEG_DICOMS = ("JPGExtended", "SC_rgb_jpeg_gdcm", "SC_rgb_jpeg_dcmtk", "lossless 16 bit")
DICOMS = ("MR_small_jp2klossless", "MR_small_jpeg_ls_lossless", *JPEG_DICOMS)
BOMBS: dict[str, Callable[[], bytes]] = {
    **{f"PNG {name}": partial(build_png_zeros, *PNGS[name]) for name in PNGS},
    **{f"JPEG {name}": partial(enlarge_jpeg, name) for name in JPEGS},
    **{f"TIFF {mode}": partial(build_tiff, mode) for mode in ("RGB", "I;16", "F", "CMYK")},
    **{f"DICOM {name}": partial(enlarge_dicom, name) for name in DICOMS},
    "PNG interlaced": partial(build_png_zeros, 8, 2, 3, interlace=1),
    "JPEG many scans": partial(repeat_scans, 1000),
    "JPEG maximum of scans": partial(repeat_scans, MAX_SCANS - 10),
    "DICOM deflated": partial(build_deflated, **HALF, **WINDOW),
    "DICOM deflated, no window": partial(build_deflated, **HALF),
    "DICOM padded": partial(build_deflated, PixelPaddingValue=7),
    "DICOM RLE": partial(build_rle, 16, **HALF, **WINDOW),
    "DICOM RLE 32 bit": partial(build_rle, 32),
    "DICOM many frames": partial(build_rle, 8, 1000),
}
