"""The scale of values of more than 8 bits: declared by the file, recorded, or the file's own."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import TiffImagePlugin

from imaging.bit_depth import (
    Ranges,
    ValueScaler,
    find_range,
    find_ranges,
    find_stored_range,
    is_ranges,
    merge_extremes,
)
from imaging.reader import read_frames, read_grey
from tests.support.dicom_files import build_dataset, encode_dataset, encode_dicom, wrap_item
from tests.support.fuzz_corpus import build_chunk, encode

TISSUE = 800
# the brightest voxel of seven slices of one series
MAXIMA = (1000, 1023, 1024, 1500, 2047, 2048, 4000)
TWELVE: dict[str, Any] = {"BitsStored": 12, "HighBit": 11}
RECORDED: Ranges = {"integers": [0, 4095]}


def draw_slices(dtype: type = np.uint16) -> list[np.ndarray]:
    """Return slices of one tissue, each with another brightest voxel."""
    return [np.array([[0, TISSUE, maximum]], dtype) for maximum in MAXIMA]


def encode_png(values: np.ndarray, significant_bits: int = 0) -> bytes:
    """Encode 16-bit grey, with an sBIT chunk after the header if a number is given."""
    content, end = encode(values, "PNG"), 33  # signature of 8 bytes, IHDR of 25
    if not significant_bits:
        return content
    chunk = build_chunk(b"sBIT", bytes([significant_bits]))
    return content[:end] + chunk + content[end:]


def encode_tiff(values: np.ndarray, **options: Any) -> bytes:
    return encode(values, "TIFF", **options)


def read_row(content: bytes, ranges: Ranges | None = None) -> list[int]:
    return read_grey(content, ValueScaler(ranges))[0].tolist()


# ---- one grey for one tissue


def test_one_tissue_has_one_grey_in_seven_dicom_files() -> None:
    # 800 * 255 / 4095 = 49.8
    contents = [encode_dicom(values, **TWELVE) for values in draw_slices()]
    assert {tuple(read_row(content)[:2]) for content in contents} == {(0, 50)}


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_one_tissue_has_one_grey_by_the_scale_of_the_data_set(dtype: type) -> None:
    encoders: list[Callable[[np.ndarray], bytes]] = [encode_dicom]
    if dtype == np.uint16:
        encoders += [encode_png, encode_tiff]
    for encoder in encoders:
        contents = [encoder(values) for values in draw_slices(dtype)]
        found = []
        for content in contents:
            scaler = ValueScaler()
            read_grey(content, scaler)
            found.append(scaler.extremes)
        ranges = find_ranges(merge_extremes(found))
        assert ranges == {"integers": [0, 4095]}
        assert {read_row(content, ranges)[1] for content in contents} == {50}
        assert len({read_row(content)[1] for content in contents}) > 1  # each by its own maximum


def test_one_tissue_has_one_grey_in_floats() -> None:
    slices = [values / 1000 for values in draw_slices(np.float32)]
    ranges = find_ranges({"floats": (0.0, 4.0)})
    # 0.8 of 4
    greys = {read_row(encode_tiff(values.astype(np.float32)), ranges)[1] for values in slices}
    assert greys == {51}


# ---- what a file declares


@pytest.mark.parametrize(
    ("bits", "is_signed", "expected"),
    [
        (4, False, (0, 255)),  # values of 8 bits are never changed
        (8, False, (0, 255)),
        (12, False, (0, 4095)),
        (15, False, (0, 32767)),
        (16, False, None),
        (32, False, None),
        (12, True, None),
    ],
)
def test_bits_stored(bits: int, is_signed: bool, expected: tuple[int, int] | None) -> None:
    assert find_stored_range(bits, is_signed) == expected


def test_values_of_8_bits_are_unchanged() -> None:
    values = np.arange(256, dtype=np.uint8)[None]
    assert read_row(encode_dicom(values)) == list(range(256))
    assert read_row(encode_dicom(values[:, :128], BitsStored=7, HighBit=6)) == list(range(128))
    for encoder in (encode_png, encode_tiff):
        assert read_row(encoder(values), {"integers": [0, 4095]}) == list(range(256))


def test_a_modality_lut_declares_its_bits() -> None:
    entries = np.array([0, 1000, 2000], "<u2").tobytes()
    table = wrap_item(LUTDescriptor=[3, 0, 12], LUTData=entries)
    content = encode_dicom(np.array([[0, 1, 2]], np.uint16), ModalityLUTSequence=table)
    assert read_row(content) == [0, 62, 125]


def test_frames_of_a_file_have_one_scale() -> None:
    frames = np.array([[[0, TISSUE, 1000]], [[0, TISSUE, 4000]]], np.uint16)
    content = encode_dataset(build_dataset(frames, n_frames=2, **TWELVE))
    assert [frame[0, 1] for frame in read_frames(content)] == [50, 50]


@pytest.mark.parametrize(
    ("values", "bits", "expected"),
    [
        # not scaled up: the lower four bits are used
        ([0, 801, 2047], 12, [0, 50, 127]),
        # scaled up, with zeros (801 * 16) or the upper bits below; 801 * 255 / 4095 = 49.9
        ([0, 801 << 4, 2047 << 4], 12, [0, 50, 127]),
        ([0, 0x3213, 0xFFFF], 12, [0, 50, 255]),
        ([0, 16, 48], 12, [0, 0, 0]),
        # declares nothing: its own 10 bits
        ([0, 801, 1000], 16, [0, 200, 249]),
        ([0, 801, 1000], 0, [0, 200, 249]),
    ],
)
def test_significant_bits_of_png(values: list[int], bits: int, expected: list[int]) -> None:
    assert read_row(encode_png(np.array([values], np.uint16), bits)) == expected


@pytest.mark.parametrize(
    ("maximum", "expected"),
    # the last two declare nothing, so that the slice has its own 10 bits
    [(4095, [50, 62]), (16383, [12, 16]), (1000, [199, 249]), (65535, [199, 249])],
)
def test_max_sample_value_of_tiff(maximum: int, expected: list[int]) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[281] = maximum
    tags.tagtype[281] = 3
    content = encode_tiff(np.array([[0, TISSUE, 1000]], np.uint16), tiffinfo=tags)
    assert read_row(content) == [0, *expected]


# ---- recorded ranges


@pytest.mark.parametrize(
    ("kind", "low", "high", "expected"),
    [
        ("integers", 0, 255, (0, 255)),
        ("integers", 0, 256, (0, 1023)),
        ("integers", 7, 1023, (0, 1023)),
        ("integers", 0, 1024, (0, 4095)),
        ("integers", 0, 16384, (0, 65535)),
        ("integers", -1024, 3071, (-1024, 3071)),
        ("integers", -1, 4095, (-1, 16382)),
        ("integers", 0, 2**20, (0, 2**21 - 1)),
        ("floats", 0.0, 0.2, (0.0, 1.0)),
        ("floats", -1.0, 0.5, (-1.0, 0.5)),
        ("floats", 2.0, 7.0, (2.0, 7.0)),
    ],
)
def test_find_range(kind: str, low: float, high: float, expected: tuple[float, float]) -> None:
    assert find_range(kind, low, high) == expected


def test_notes() -> None:
    values = np.array([[0, TISSUE, 1023]], np.uint16)
    scaler = ValueScaler()
    assert scaler.scale(values).tolist() == [[0, 199, 255]]
    assert scaler.extremes == {"integers": (0, 1023)}
    assert "its own maximum" in scaler.note
    scaler = ValueScaler(RECORDED)
    assert scaler.scale(values).tolist() == [[0, 50, 64]]
    assert scaler.note == ""
    assert scaler.scale(values * 5).tolist() == [[0, 249, 255]]
    assert "clipped" in scaler.note
    scaler = ValueScaler(RECORDED)
    scaler.scale(values * 5, (0, 65535))
    assert (scaler.note, scaler.extremes) == ("", {})


def test_values_that_are_not_finite() -> None:
    values = np.array([[np.nan, 0.5, 1.0, np.inf]], np.float32)
    assert ValueScaler().scale(values).tolist() == [[128, 128, 255, 128]]
    assert ValueScaler().scale(np.full((1, 2), np.nan)).tolist() == [[0, 0]]


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"integers": [0]},
        {"other": [0, 1]},
        {"floats": [0, float("nan")]},
        {"floats": [1, 0]},
        {"integers": ["0", 1]},
        {"integers": (0, 1)},
    ],
)
def test_invalid_records(value: object) -> None:
    assert not is_ranges(value)
    assert is_ranges({"integers": [0, 4095], "floats": [0.0, 1.0]})
    assert is_ranges({})
