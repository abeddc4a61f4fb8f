"""Decoding of DICOM frames: one at a time, and never larger than the header states."""

import struct
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import UID, RLELossless

import imaging.dicom
from imaging import grayscale
from imaging.grayscale import ImageError
from imaging.reader import read_frames, read_grey
from tests.support.dicom_files import BUNDLED, build_dataset, encode_dataset, encode_dicom
from tests.support.fuzz_mutations import resize_codestream

NOISE = np.random.default_rng(0).integers(0, 4096, (12, 10), dtype=np.uint16)
JP2_FILE = BUNDLED / "test_files" / "MR_small_jp2klossless.dcm"
JPEG_LS_FILE = BUNDLED / "test_files" / "MR_small_jpeg_ls_lossless.dcm"
SIZ = b"\xff\x4f\xff\x51" + struct.pack(">HHIIII", 41, 0, 64, 64, 0, 0)
LARGE = b"\xff\x4f\xff\x51" + struct.pack(">HHIIII", 41, 0, 64000, 64000, 0, 0)
ONE_SAMPLE = struct.pack(">IIIIH", 64, 64, 0, 0, 1) + bytes(64)


@pytest.mark.parametrize("syntax", ["", RLELossless], ids=["uncompressed", "RLE"])
def test_frames_are_decoded_on_demand(syntax: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8)
    convert = Mock(wraps=imaging.dicom.convert_frame)
    monkeypatch.setattr(imaging.dicom, "convert_frame", convert)
    decoded = read_frames(encode_dicom(frames, n_frames=3, syntax=syntax))
    np.testing.assert_array_equal(next(decoded), frames[0])
    assert convert.call_count == 1
    np.testing.assert_array_equal(list(decoded), frames[1:])


@pytest.mark.parametrize("syntax", ["", RLELossless], ids=["uncompressed", "RLE"])
def test_truncated_pixels_are_refused(syntax: str) -> None:
    content = encode_dicom(NOISE, syntax=syntax)
    for share in (0.3, 0.5, 0.7, 0.95):
        with pytest.raises(ImageError, match="truncated"):
            read_grey(content[: int(len(content) * share)])


def test_damaged_fragments_are_refused() -> None:
    content = encode_dicom(np.stack([NOISE] * 3), n_frames=3, syntax=RLELossless)
    for damaged, reason in (
        (content.replace(b"\xfe\xff\x00\xe0", b"ITEM"), "not a sequence of fragments"),
        (content[:-4], "truncated"),
        (content.replace(b"IS\2\x003 ", b"IS\2\x004 "), "truncated after 3 of 4 frames"),
    ):
        with pytest.raises(ImageError, match=reason):
            list(read_frames(damaged))


def test_unsupported_transfer_syntax_is_refused() -> None:
    data = build_dataset(NOISE)
    encode_dataset(data, RLELossless)
    data.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.102")
    with pytest.raises(ImageError, match=r"MPEG-4 AVC/H.264 High Profile.* not supported"):
        read_grey(encode_dataset(data))


@pytest.mark.parametrize("path", [JP2_FILE, JPEG_LS_FILE], ids=["JPEG 2000", "JPEG-LS"])
def test_codestream_of_another_size_is_refused(path: Any) -> None:
    content = path.read_bytes()
    with pytest.raises(ImageError, match="size of the compressed pixels differs"):
        read_grey(resize_codestream(content, 64 * 257, 64))


def test_scans_of_jpeg_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grayscale, "MAX_SCANS", 0)
    with pytest.raises(ImageError, match="more than 0 scans"):
        read_grey(JPEG_LS_FILE)


def build_boxed(*boxes: tuple[bytes, bytes]) -> bytes:
    """Return a DICOM file whose pixel data is a JP2 file of these boxes after its signature."""
    data = dcmread(JP2_FILE)
    plain = next(generate_frames(data.PixelData, number_of_frames=1))
    content = bytes.fromhex("0000000c6a5020200d0a870a")
    for name, inside in boxes:
        inside = inside.replace(b"PLAIN", plain)
        content += struct.pack(">I4s", 8 + len(inside), name) + inside
    data.PixelData = encapsulate([content])
    return encode_dataset(data)


PALETTE = struct.pack(">I4s", 12, b"pclr") + bytes(4)
NESTED = struct.pack(">I4s", 99, b"jp2c") + SIZ + ONE_SAMPLE
BOXES = {
    "size in another box": [(b"xml ", SIZ + ONE_SAMPLE), (b"jp2c", LARGE + ONE_SAMPLE)],
    "palette": [(b"jp2h", PALETTE), (b"jp2c", SIZ + ONE_SAMPLE)],
    "nested box": [(b"jp2h", NESTED), (b"jp2c", LARGE + ONE_SAMPLE)],
}


@pytest.mark.parametrize("name", BOXES)
def test_boxes_cannot_hide_the_size_of_jpeg_2000(name: str) -> None:
    with pytest.raises(ImageError, match="size of the compressed pixels differs"):
        read_grey(build_boxed(*BOXES[name]))


def test_jpeg_2000_in_boxes() -> None:
    header = struct.pack(">I4sIIHBBBB", 22, b"ihdr", 64, 64, 1, 0x8F, 7, 0, 0)
    header += struct.pack(">I4sBBBI", 15, b"colr", 1, 0, 0, 17)
    boxed = build_boxed((b"ftyp", b"jp2 \0\0\0\0jp2 "), (b"jp2h", header), (b"jp2c", b"PLAIN"))
    np.testing.assert_array_equal(read_grey(boxed), read_grey(JP2_FILE))
