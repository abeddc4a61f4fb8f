"""Conversion of DICOM values to grey, compared with hand-worked values and with pydicom."""

from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_windowing

from imaging.reader import read_frames, read_grey
from tests.support.dicom_files import build_dataset, encode_dataset, encode_dicom, wrap_item

NOISE = np.random.default_rng(0).integers(0, 4096, (12, 10), dtype=np.uint16)
CT = {"RescaleSlope": 1, "RescaleIntercept": -1024}
HALF = {"RescaleSlope": 0.5, "RescaleIntercept": 1}
SMALL = {"RescaleSlope": "1e-6", "RescaleIntercept": "0"}
DOUBLE = {"RescaleSlope": 2, "RescaleIntercept": 0, "WindowCenter": 100}
WINDOW: dict[str, Any] = {"WindowCenter": [100, 7], "WindowWidth": [101, 3]}  # the first counts
EXACT: dict[str, Any] = {"WindowWidth": 100, "VOILUTFunction": "LINEAR_EXACT"}
EIGHT_BIT_TABLE, SIXTEEN_BIT_TABLE = bytes([0, 200, 50, 0]), bytes([0, 0, 200, 0, 50, 0])
TWELVE_BIT_TABLE = np.array([0, 2048, 4095], "<u2").tobytes()


def read_row(values: list[int], photometric: str = "MONOCHROME2", **elements: Any) -> list[int]:
    """Return the grey of a row of 16-bit values, signed if one is negative."""
    row = np.array([values], np.int16 if min(values) < 0 else np.uint16)
    return read_grey(encode_dicom(row, photometric, **elements))[0].tolist()


@pytest.mark.parametrize(
    ("values", "elements", "expected"),
    [
        ([0, 2048, 4095], {}, [0, 128, 255]),  # 12 bit
        ([0, 257, 65535], {}, [0, 1, 255]),
        ([-1024, 1024, 3071], {}, [0, 128, 255]),  # signed, range of 4095
        # a rescale maps values and range alike: 1024 * 255 / 4095 = 63.8
        ([0, 1024, 4095], CT, [0, 64, 255]),
        ([0, 10, 200], HALF, [0, 10, 200]),
        ([0, 1500, 3000], SMALL, [0, 93, 187]),
        ([0, 1024, 4095], {"RescaleSlope": -1}, [255, 191, 0]),
        ([25, 50, 75], DOUBLE | EXACT, [0, 128, 255]),  # 50, 100, 150 in a window from 50 to 150
        # from 49.5 to 149.5; 50 is 0.5 of 100, 100 is 50.5, 149 is 99.5
        ([0, 49, 50, 100, 149, 150, 999], WINDOW, [0, 0, 1, 129, 254, 255, 255]),
        ([99, 100], WINDOW | {"WindowWidth": 1, "VOILUTFunction": "LINEAR"}, [0, 255]),
        ([40, 50, 100, 150], WINDOW | EXACT, [0, 0, 128, 255]),
        # 1 / (1 + exp(2)), one half, 1 / (1 + exp(-2))
        ([50, 100, 150], WINDOW | EXACT | {"VOILUTFunction": "SIGMOID"}, [30, 128, 225]),
    ],
)
def test_values(values: list[int], elements: dict[str, Any], expected: list[int]) -> None:
    assert read_row(values, **elements) == expected
    assert read_row(values, "MONOCHROME1", **elements) == [255 - grey for grey in expected]


def test_invalid_windows_are_ignored() -> None:
    for width in (0, -5, 0.5, None):
        assert read_row([0, 2048, 4095], WindowCenter=5, WindowWidth=width) == [0, 128, 255]


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_agree_with_pydicom(function: str) -> None:
    elements: dict[str, Any] = {"WindowCenter": 300.5, "WindowWidth": 777}
    elements |= {"VOILUTFunction": function, "RescaleSlope": 1.5, "RescaleIntercept": -1024}
    data = build_dataset(NOISE, **elements)
    windowed = apply_windowing(apply_modality_lut(NOISE, data), data)
    ends = -1024.0, 65535 * 1.5 - 1024  # the output range of pydicom
    expected = np.interp(windowed, ends, (0, 255))
    np.testing.assert_allclose(read_grey(encode_dataset(data)), expected, atol=0.5001)


def test_lookup_tables() -> None:
    for entries in (EIGHT_BIT_TABLE, SIXTEEN_BIT_TABLE):
        table = wrap_item(LUTDescriptor=[3, 10, 8], LUTData=entries)
        # below the first entry, the three entries, above the last one
        assert read_row([0, 10, 11, 12, 99], VOILUTSequence=table) == [0, 0, 200, 50, 50]
    table = wrap_item(LUTDescriptor=[3, 10, 12], LUTData=TWELVE_BIT_TABLE)
    assert read_row([10, 11, 12], ModalityLUTSequence=table) == [0, 128, 255]


def test_range_of_padding() -> None:
    padding: dict[str, Any] = {"PixelPaddingValue": 4000, "PixelPaddingRangeLimit": 4095}
    assert read_row([0, 255, 4000, 4095], **padding) == [0, 255, 0, 0]


@pytest.mark.parametrize("stored", [-2000, 63536])
def test_padding_is_black_and_does_not_affect_the_scale(stored: int) -> None:
    data = build_dataset(np.array([[-2000, 0, 1000, 1023]], np.int16))
    data.add_new("PixelPaddingValue", "SS" if stored < 0 else "US", stored)
    assert read_grey(encode_dataset(data)).tolist() == [[0, 0, 249, 255]]
    data.PhotometricInterpretation = "MONOCHROME1"
    assert read_grey(encode_dataset(data)).tolist() == [[0, 255, 6, 0]]


def test_one_bit() -> None:
    data = build_dataset(np.array([[0b00000101]], np.uint8))
    data.Columns, data.BitsAllocated, data.BitsStored, data.HighBit = 3, 1, 1, 0
    assert read_grey(encode_dataset(data)).tolist() == [[255, 0, 255]]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_floats(dtype: str) -> None:
    data = build_dataset(np.array([[-1.0, 0.0, 1.0]], dtype))
    keyword = "FloatPixelData" if dtype == "f4" else "DoubleFloatPixelData"
    setattr(data, keyword, data.PixelData)
    del data.PixelData
    assert read_grey(encode_dataset(data)).tolist() == [[0, 128, 255]]


def test_colour_becomes_luma() -> None:
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]], np.uint8)
    assert read_grey(encode_dicom(colours, "RGB")).tolist() == [[76, 150, 29, 9]]
    deep = colours.astype(np.uint16) * 257
    assert read_grey(encode_dicom(deep, "RGB")).tolist() == [[76, 150, 29, 9]]
    grey = np.array([[[0, 128, 128], [77, 128, 128], [255, 128, 128]]], np.uint8)
    assert read_grey(encode_dicom(grey, "YBR_FULL")).tolist() == [[0, 77, 255]]
    palette: dict[str, Any] = {}
    for index, colour in enumerate(("Red", "Green", "Blue")):
        palette[f"{colour}PaletteColorLookupTableDescriptor"] = [4, 0, 8]
        palette[f"{colour}PaletteColorLookupTableData"] = colours[0, :, index].tobytes()
    content = encode_dicom(np.array([[0, 1, 2, 3]], np.uint8), "PALETTE COLOR", **palette)
    assert read_grey(content).tolist() == [[76, 150, 29, 9]]


def build_enhanced() -> Dataset:
    """Return two frames of 0, 50, 100 with a window for each, and a rescale for both."""
    frames = np.array([[[0, 50, 100]]] * 2, np.uint16)
    data = build_dataset(frames, n_frames=2, WindowCenter=9999, WindowWidth=2)
    data.PerFrameFunctionalGroupsSequence = [
        wrap_item(FrameVOILUTSequence=wrap_item(WindowCenter=centre, **EXACT))[0]
        for centre in (50, 100)
    ]
    rescale = wrap_item(RescaleSlope=1, RescaleIntercept=0)
    data.SharedFunctionalGroupsSequence = wrap_item(PixelValueTransformationSequence=rescale)
    return data


def test_functional_groups() -> None:
    data = build_enhanced()
    frames = [frame.tolist() for frame in read_frames(encode_dataset(data))]
    assert frames == [[[0, 128, 255]], [[0, 0, 128]]]
    shared = data.SharedFunctionalGroupsSequence[0]
    shared.FrameVOILUTSequence = data.PerFrameFunctionalGroupsSequence[1].FrameVOILUTSequence
    data.PerFrameFunctionalGroupsSequence = [Dataset(), Dataset()]
    # 50, 100, 150 in a window from 50 to 150
    shared.PixelValueTransformationSequence[0].RescaleIntercept = 50
    frames = [frame.tolist() for frame in read_frames(encode_dataset(data))]
    assert frames == [[[0, 128, 255]]] * 2
