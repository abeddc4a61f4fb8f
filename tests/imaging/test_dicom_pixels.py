"""Decoding of DICOM frames: one at a time, and never larger than the header states."""

import struct
from typing import Any
from unittest.mock import Mock

import imagecodecs
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import UID, JPEGLSLossless, RLELossless

import imaging.dicom
from imaging import grayscale
from imaging.grayscale import ImageError
from imaging.reader import read_frames, read_grey
from tests.support.dicom_files import (
    BUNDLED,
    build_dataset,
    encode_dataset,
    encode_dicom,
    encode_jpeg_dicom,
)
from tests.support.fuzz_mutations import resize_codestream

NOISE = np.random.default_rng(0).integers(0, 4096, (12, 10), dtype=np.uint16)
TEST_FILES = BUNDLED / "test_files"
JP2_FILE = TEST_FILES / "MR_small_jp2klossless.dcm"
JPEG_LS_FILE = TEST_FILES / "MR_small_jpeg_ls_lossless.dcm"
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


COMPRESSED = (
    *("JPGExtended", "SC_rgb_jpeg_gdcm", "SC_rgb_jpeg_dcmtk", "MR_small_jpeg_ls_lossless"),
    *("JPEGLSNearLossless_16", "MR_small_jp2klossless", "693_J2KI", "MR_small_RLE"),
)


@pytest.mark.parametrize("name", COMPRESSED)
def test_other_decoders_are_not_used(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = TEST_FILES / f"{name}.dcm"
    decoder = get_decoder(dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID)
    expected, other = read_grey(path), Mock(side_effect=ValueError)
    monkeypatch.setattr(decoder, "_available", {"other": other} | decoder._available)
    np.testing.assert_array_equal(read_grey(path), expected)
    monkeypatch.setattr(decoder, "_available", {"other": other})  # its own is not installed
    with pytest.raises(ImageError, match=r"compressed with .*pip install -r requirements\.txt"):
        read_grey(path)
    other.assert_not_called()


# ---- JPEG


@pytest.mark.parametrize("bits", [2, 8, 12, 15, 16])
@pytest.mark.parametrize("predictor", range(1, 8))
def test_lossless_jpeg(bits: int, predictor: int) -> None:
    values = np.random.default_rng(bits).integers(0, 2**bits, (12, 10))
    values = values.astype("u2" if bits > 8 else "u1")
    content = encode_jpeg_dicom(values, bits, predictor)
    plain = encode_dicom(values, BitsStored=bits, HighBit=bits - 1)
    np.testing.assert_array_equal(read_grey(content), read_grey(plain))


def test_lossless_jpeg_of_another_program() -> None:
    lossless, original = (TEST_FILES / f"SC_rgb_{name}.dcm" for name in ("jpeg_gdcm", "rle"))
    np.testing.assert_array_equal(read_grey(lossless), read_grey(original))


def test_signed_lossless_jpeg() -> None:
    values = np.linspace(-2048, 2047, 120).round().astype(np.int16).reshape(12, 10)
    window: dict[str, Any] = {"WindowCenter": "0", "WindowWidth": "4096"}
    content = encode_jpeg_dicom(values, 12, 1, **window)
    np.testing.assert_array_equal(read_grey(content), read_grey(encode_dicom(values, **window)))


def test_12_bit_jpeg_whose_scan_states_no_frequencies() -> None:
    # the second file is the first with another end of the spectral selection
    invalid, mended = (TEST_FILES / f"{name}.dcm" for name in ("JPEG-lossy", "JPGExtended"))
    np.testing.assert_array_equal(read_grey(invalid), read_grey(mended))


def test_truncated_jpeg_ls_is_refused() -> None:
    data = dcmread(JPEG_LS_FILE)
    codestream = next(generate_frames(data.PixelData, number_of_frames=1))
    data.PixelData = encapsulate([codestream[: len(codestream) // 2] + b"\xff\xd9"])
    with pytest.raises(ImageError, match="damaged DICOM"):
        read_grey(encode_dataset(data))


def test_jpeg_ls_with_a_scan_for_each_colour() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    codestream = b"\xff\xd8\xff\xf7" + struct.pack(">HBHHB", 17, 8, 12, 10, 3)
    codestream += bytes((1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0))
    for index in range(3):
        plane = imagecodecs.jpegls_encode(np.ascontiguousarray(rgb[..., index]), out=999)
        scan = bytes(plane).partition(bytes.fromhex("ffda000801"))[2][1:-2]
        codestream += struct.pack(">HHBB", 0xFFDA, 8, 1, index + 1) + scan
    data = build_dataset(rgb, "RGB")
    plain = encode_dataset(data)
    data.file_meta.TransferSyntaxUID = JPEGLSLossless
    data.PixelData = encapsulate([codestream + b"\xff\xd9"])
    np.testing.assert_array_equal(read_grey(encode_dataset(data)), read_grey(plain))


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
