"""DICOM as grey: values worked by hand, and the same slice written in many ways."""

import concurrent.futures
import io
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

import imaging.dicom
from imaging.dicom import has_preamble, is_dicom, read_header
from imaging.grayscale import ImageError, ImageTooLargeError
from imaging.reader import read_frames, read_grey, read_mode, read_size
from tests.support.dicom_files import (
    BUNDLED,
    build_dataset,
    encode_dataset,
    encode_dicom,
    wrap_item,
)

# as the reader does outside pytest, which takes its filter away after each test
pytestmark = pytest.mark.filterwarnings("ignore:::pydicom")

ROW = np.array([[0, 100, 255]], np.uint8)
NOISE = np.random.default_rng(0).integers(0, 4096, (12, 10), dtype=np.uint16)


def read_row(values: list[int], kind: str = "MONOCHROME2", **elements: Any) -> list[int]:
    """The grey of 16-bit values in one row; signed where one is under zero."""
    signed = min(values) < 0
    content = encode_dicom(np.array([values], np.int16 if signed else np.uint16), kind, **elements)
    return read_grey(content)[0].tolist()


# ---- values


def test_white_is_bright_in_both_kinds_of_grey() -> None:
    assert read_grey(encode_dicom(ROW)).tolist() == [[0, 100, 255]]
    assert read_grey(encode_dicom(ROW, "MONOCHROME1")).tolist() == [[255, 155, 0]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 2048, 4095], [0, 128, 255]),  # 12 bit
        ([0, 257, 65535], [0, 1, 255]),
        ([-1024, 1024, 3071], [0, 128, 255]),  # signed, 4095 in all
    ],
)
def test_without_a_window_the_house_rule_scales(values: list[int], expected: list[int]) -> None:
    assert read_row(values) == expected


def test_values_are_rescaled() -> None:
    # -1024, 0, 3071 are whole and of 12 bit: 1024 * 255 / 4095 = 63.8
    assert read_row([0, 1024, 4095], RescaleSlope=1, RescaleIntercept=-1024) == [0, 64, 255]
    # 1, 6, 11 are no whole numbers by right and are stretched
    assert read_row([0, 10, 20], RescaleSlope=0.5, RescaleIntercept=1) == [0, 128, 255]
    # 100 of the scanner is in the middle of its window, and stored as 50
    window: dict[str, Any] = {
        "WindowCenter": 100,
        "WindowWidth": 100,
        "VOILUTFunction": "LINEAR_EXACT",
    }
    assert read_row([25, 50, 75], RescaleSlope=2, RescaleIntercept=0, **window) == [0, 128, 255]


@pytest.mark.parametrize(
    ("function", "width", "values", "expected"),
    [
        # from 49.5 to 149.5; 50 is 0.5 of 100, 100 is 50.5, 149 is 99.5
        (None, 101, [0, 49, 50, 100, 149, 150, 999], [0, 0, 1, 129, 254, 255, 255]),
        ("LINEAR", 1, [99, 100], [0, 255]),
        ("LINEAR_EXACT", 100, [40, 50, 100, 150], [0, 0, 128, 255]),
        # 1 / (1 + exp(2)), a half, 1 / (1 + exp(-2))
        ("SIGMOID", 100, [50, 100, 150], [30, 128, 225]),
    ],
)
def test_a_window_is_obeyed(
    function: str | None, width: int, values: list[int], expected: list[int]
) -> None:
    elements: dict[str, Any] = {"WindowCenter": [100, 7], "WindowWidth": [width, 3]}
    if function:
        elements["VOILUTFunction"] = function
    assert read_row(values, **elements) == expected  # the first of two
    assert read_row(values, "MONOCHROME1", **elements) == [255 - grey for grey in expected]


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_agree_with_those_of_pydicom(function: str) -> None:
    elements: dict[str, Any] = {
        "WindowCenter": 300.5,
        "WindowWidth": 777,
        "VOILUTFunction": function,
    }
    elements |= {"RescaleSlope": 1.5, "RescaleIntercept": -1024}
    data = build_dataset(NOISE, **elements)
    shown = apply_windowing(apply_modality_lut(NOISE, data), data)
    ends = -1024.0, 65535 * 1.5 - 1024  # what pydicom makes of the window's ends
    expected = np.interp(shown, ends, (0, 255))
    np.testing.assert_allclose(read_grey(encode_dataset(data)), expected, atol=0.5001)


@pytest.mark.parametrize("width", [0, -5, 0.5, None])
def test_a_window_that_is_none_is_passed_over(width: float | None) -> None:
    assert read_row([0, 2048, 4095], WindowCenter=5, WindowWidth=width) == [0, 128, 255]


def test_tables_stand_for_slope_and_window() -> None:
    for entries in (bytes([0, 200, 50, 0]), bytes([0, 0, 200, 0, 50, 0])):  # of 8 bit or 16
        table = wrap_item(LUTDescriptor=[3, 10, 8], LUTData=entries)
        # under the first entry, the three, over the last
        assert read_row([0, 10, 11, 12, 99], VOILUTSequence=table) == [0, 0, 200, 50, 50]
    entries = np.array([0, 2048, 4095], "<u2").tobytes()
    table = wrap_item(LUTDescriptor=[3, 10, 12], LUTData=entries)
    assert read_row([10, 11, 12], ModalityLUTSequence=table) == [0, 128, 255]


@pytest.mark.parametrize("written", [-2000, 63536])
def test_padding_is_black_and_has_no_say_in_the_scale(written: int) -> None:
    data = build_dataset(np.array([[-2000, 0, 1000, 1023]], np.int16))
    data.add_new("PixelPaddingValue", "SS" if written < 0 else "US", written)
    assert read_grey(encode_dataset(data)).tolist() == [[0, 0, 249, 255]]
    data.PhotometricInterpretation = "MONOCHROME1"
    assert read_grey(encode_dataset(data)).tolist() == [[0, 255, 6, 0]]


def test_a_range_of_padding() -> None:
    limits: dict[str, Any] = {"PixelPaddingValue": 4000, "PixelPaddingRangeLimit": 4095}
    assert read_row([0, 255, 4000, 4095], **limits) == [0, 255, 0, 0]


def test_one_bit_is_black_and_white() -> None:
    data = build_dataset(np.array([[0b00000101]], np.uint8))
    data.Columns, data.BitsAllocated, data.BitsStored, data.HighBit = 3, 1, 1, 0
    assert read_grey(encode_dataset(data)).tolist() == [[255, 0, 255]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats(dtype: type) -> None:
    values: np.ndarray = np.array([[-1.0, 0.0, 1.0]], dtype)
    data = build_dataset(values)
    del data.PixelData
    keyword = "FloatPixelData" if dtype is np.float32 else "DoubleFloatPixelData"
    setattr(data, keyword, values.tobytes())
    assert read_grey(encode_dataset(data)).tolist() == [[0, 128, 255]]


def test_colour_becomes_luma() -> None:
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]], np.uint8)
    assert read_grey(encode_dicom(colours, "RGB")).tolist() == [[76, 150, 29, 9]]
    deep = colours.astype(np.uint16) * 257
    assert read_grey(encode_dicom(deep, "RGB")).tolist() == [[76, 150, 29, 9]]
    grey = np.array([[[0, 128, 128], [77, 128, 128], [255, 128, 128]]], np.uint8)
    assert read_grey(encode_dicom(grey, "YBR_FULL")).tolist() == [[0, 77, 255]]


def test_palette_becomes_luma() -> None:
    table = {"Red": [0, 255, 0, 9], "Green": [0, 0, 255, 9], "Blue": [0, 0, 0, 9]}
    elements: dict[str, Any] = {}
    for colour, entries in table.items():
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [4, 0, 8]
        elements[f"{colour}PaletteColorLookupTableData"] = bytes(entries)
    content = encode_dicom(np.array([[0, 1, 2, 3]], np.uint8), "PALETTE COLOR", **elements)
    assert read_grey(content).tolist() == [[0, 76, 150, 9]]


# ---- frames


def build_enhanced() -> Dataset:
    """Two frames of 0, 50, 100 with a window of their own, and what all share."""
    frames = np.array([[[0, 50, 100]]] * 2, np.uint16)
    data = build_dataset(frames, n_frames=2, WindowCenter=9999, WindowWidth=2)
    exact = {"WindowWidth": 100, "VOILUTFunction": "LINEAR_EXACT"}
    data.PerFrameFunctionalGroupsSequence = [
        wrap_item(FrameVOILUTSequence=wrap_item(WindowCenter=centre, **exact))[0]
        for centre in (50, 100)
    ]
    rescaling = wrap_item(RescaleSlope=1, RescaleIntercept=0)
    data.SharedFunctionalGroupsSequence = wrap_item(PixelValueTransformationSequence=rescaling)
    return data


def test_each_frame_has_its_own_window() -> None:
    content = encode_dataset(build_enhanced())
    frames = [frame.tolist() for frame in read_frames(content)]
    assert frames == [[[0, 128, 255]], [[0, 0, 128]]]
    assert read_header(content).n_frames == 2


def test_what_all_frames_share_is_heard() -> None:
    data = build_enhanced()
    window = data.PerFrameFunctionalGroupsSequence[1].FrameVOILUTSequence
    data.PerFrameFunctionalGroupsSequence = [Dataset(), Dataset()]
    data.SharedFunctionalGroupsSequence[0].FrameVOILUTSequence = window
    rescaling = data.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0]
    rescaling.RescaleIntercept = 50  # 50, 100, 150 in a window from 50 to 150
    frames = [frame.tolist() for frame in read_frames(encode_dataset(data))]
    assert frames == [[[0, 128, 255]]] * 2


@pytest.mark.parametrize("packed", [False, True])
def test_frames_are_decoded_when_they_are_asked_for(
    packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8)
    data = build_dataset(frames, n_frames=3)
    if packed:
        data.compress(RLELossless, encoding_plugin="pydicom")
    converted: list[int] = []
    convert = imaging.dicom.convert_frame

    def count(*args: Any) -> np.ndarray:
        converted.append(1)
        return convert(*args)

    monkeypatch.setattr(imaging.dicom, "convert_frame", count)
    found = read_frames(encode_dataset(data))
    np.testing.assert_array_equal(next(found), frames[0])
    assert len(converted) == 1
    np.testing.assert_array_equal(list(found), frames[1:])


def test_several_frames_are_no_single_picture() -> None:
    content = encode_dataset(build_enhanced())
    with pytest.raises(ImageError, match=r"^2 frames; a picture has one: save each to a file"):
        read_grey(content)
    assert read_size(content) == (3, 1)
    assert read_mode(content) == "MONOCHROME2 16-bit"


# ---- ways of writing the same


def test_run_lengths_are_unpacked() -> None:
    data = build_dataset(NOISE)
    plain = read_grey(encode_dataset(data))
    data.compress(RLELossless, encoding_plugin="pydicom")
    np.testing.assert_array_equal(read_grey(encode_dataset(data)), plain)


def test_the_file_itself_may_be_deflated(monkeypatch: pytest.MonkeyPatch) -> None:
    data = build_dataset(NOISE)
    plain = read_grey(encode_dataset(data))
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    content = encode_dataset(data)
    np.testing.assert_array_equal(read_grey(content), plain)
    with pytest.raises(ImageError, match="cut short"):
        read_grey(content[:-40])
    monkeypatch.setattr(imaging.dicom, "MAX_INFLATED_BYTES", 100)
    with pytest.raises(ImageTooLargeError, match="unpacks to more than"):
        read_size(content)


@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True), (False, False)])
def test_old_files_without_a_preamble_are_known(implicit: bool, little: bool) -> None:
    data = build_dataset(ROW)
    del data.file_meta
    data.remove_private_tags()
    buffer = io.BytesIO()
    data.save_as(buffer, implicit_vr=implicit, little_endian=little)
    content = buffer.getvalue()
    assert is_dicom(content[:132])
    assert not has_preamble(content[:132])
    assert read_grey(content).tolist() == [[0, 100, 255]]
    assert is_dicom(encode_dicom(ROW)[132:])  # begins with the file information


def test_other_files_are_not_taken_for_dicom() -> None:
    for start in (b"", b"\x08\0", bytes(132), b"PatientName: nobody" * 9, b"\x08\0\x05\0" * 33):
        assert not is_dicom(start[:132])
    with pytest.raises(ImageError, match="not a JPEG, PNG, TIFF, BMP or DICOM picture"):
        read_grey(b"ISO_IR 100 DICM" * 9)


SAME = ("", "_RLE", "_bigendian", "_expb", "_implicit", "_padded")
COMPRESSED = ("_jp2klossless", "_jpeg_ls_lossless")


@pytest.mark.parametrize("ending", [*SAME, *COMPRESSED])
def test_one_slice_written_in_many_ways(ending: str) -> None:
    path = BUNDLED / "test_files" / f"MR_small{ending}.dcm"
    expected = read_grey(BUNDLED / "test_files" / "MR_small.dcm")
    np.testing.assert_array_equal(read_grey(path), expected)
    np.testing.assert_array_equal(read_grey(path.read_bytes()), expected)


def test_threads_agree_with_one() -> None:
    paths = [BUNDLED / "test_files" / f"MR_small{ending}.dcm" for ending in (*SAME, *COMPRESSED)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(read_grey, paths * 5))
    for pixels in together:
        np.testing.assert_array_equal(pixels, together[0])


def test_fractions_of_a_small_slope_are_no_black_picture() -> None:
    values = np.array([[0, 1500, 3000]], np.uint16)
    pixels = read_grey(encode_dicom(values, RescaleSlope="1e-6", RescaleIntercept="0"))
    assert pixels.tolist() == [[0, 128, 255]]
