"""The reader: any bytes give a grey picture or one ImageError, and never a clipped one."""

import concurrent.futures
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imaging import grayscale, reader
from imaging.grayscale import ImageError, ImageTooLargeError, resize_grey
from imaging.reader import is_picture, read_frames, read_grey, read_mode, read_size

GREY = np.array([[0, 50, 100], [150, 200, 255]], np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (24, 40), dtype=np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


NEW_PILLOW = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="Pillow before 13 cannot read what it wrote"
)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("PNG", mode) for mode in ("L", "LA", "P", "RGB", "RGBA")),
        *(("TIFF", mode) for mode in ("L", "LA", "P", "RGB", "RGBA", "CMYK")),
        pytest.param("TIFF", "YCbCr", marks=NEW_PILLOW),
        *(("BMP", mode) for mode in ("L", "P", "RGB", "RGBA")),
    ],
)
def test_every_mode_keeps_its_grey(kind: str, mode: str) -> None:
    image = Image.fromarray(GREY).convert(mode)
    np.testing.assert_array_equal(read_grey(encode(image, kind)), GREY)


def test_one_bit_is_black_and_white() -> None:
    content = encode(Image.fromarray(np.array([[0, 255, 255]], np.uint8)).convert("1"))
    assert read_grey(content).tolist() == [[0, 255, 255]]


def test_jpeg_in_colour_equals_jpeg_in_grey() -> None:
    smooth = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8) * 4
    colour = read_grey(encode(Image.fromarray(smooth).convert("RGB"), "JPEG", quality=95))
    np.testing.assert_allclose(colour.astype(int), smooth, atol=3)
    np.testing.assert_array_equal(colour, read_grey(encode(smooth, "JPEG", quality=95)))


def test_transparent_parts_are_black() -> None:
    pixels = np.array([[[200, 200, 200, 255], [200, 200, 200, 0]]], np.uint8)
    assert read_grey(encode(pixels)).tolist() == [[200, 0]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 257, 25700, 65535], [0, 1, 100, 255]),  # 16 bit: divided by 257
        ([0, 2048, 4095], [0, 128, 255]),  # 12 bit in 16: 255 / 4095
        ([0, 100, 255], [0, 100, 255]),  # 8 bit in 16: as it is
        ([0, 512, 1000], [0, 128, 249]),  # 10 bit
        ([0, 0, 0], [0, 0, 0]),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(
    values: list[int], expected: list[int], kind: str
) -> None:
    content = encode(np.array([values], np.uint16), kind)
    assert read_mode(content).startswith("I;16")
    assert read_grey(content).tolist() == [expected]


def test_white_is_zero_tiff_is_turned_over() -> None:
    # 16 bit, photometric 0: 0 is white
    content = encode(np.array([[0, 65535]], np.uint16), "TIFF", tiffinfo={262: 0})
    assert read_grey(content).tolist() == [[255, 0]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 0.1, 0.2], [0, 26, 51]),  # 0..1 is a range of its own
        ([-10.0, 0.0, 10.0], [0, 128, 255]),
        ([3.5, 3.5, 3.5], [0, 0, 0]),
        ([np.nan, 0.0, np.inf], [0, 0, 0]),
    ],
)
def test_floats(values: list[float], expected: list[int]) -> None:
    assert read_grey(encode(np.array([values], np.float32), "TIFF")).tolist() == [expected]


def test_negative_integers_are_lifted() -> None:
    content = encode(np.array([[-1024, 1024, 3071]], np.int32), "TIFF")  # 4095 in all: 12 bit
    assert read_grey(content).tolist() == [[0, 128, 255]]


ORIENTED = {
    2: [[100, 50, 0], [255, 200, 150]],
    3: [[255, 200, 150], [100, 50, 0]],
    4: [[150, 200, 255], [0, 50, 100]],
    5: [[0, 150], [50, 200], [100, 255]],
    6: [[150, 0], [200, 50], [255, 100]],
    7: [[255, 100], [200, 50], [150, 0]],
    8: [[100, 255], [50, 200], [0, 150]],
}


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(GREY, kind, exif=exif)
    expected = np.array(ORIENTED[orientation], np.uint8)
    np.testing.assert_array_equal(read_grey(content), expected)
    assert read_size(content) == expected.shape[::-1]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # as the reader does outside pytest
def test_damaged_exif_does_not_hide_a_picture() -> None:
    content = encode(NOISE, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert read_grey(content).shape == NOISE.shape


def test_reads_a_path_as_it_reads_bytes(tmp_path: Path) -> None:
    path = tmp_path / "picture.txt"  # the content decides, not the name
    path.write_bytes(encode(NOISE))
    np.testing.assert_array_equal(read_grey(path), read_grey(path.read_bytes()))
    assert read_size(path) == (40, 24)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP"])
def test_frames_of_a_picture_are_the_picture(kind: str) -> None:
    content = encode(NOISE, kind)
    (pixels,) = read_frames(content)
    np.testing.assert_array_equal(pixels, read_grey(content))


def test_what_is_taken_for_a_picture_by_its_name() -> None:
    def refuse() -> bytes:
        raise AssertionError("not to be read: the name says enough")

    for name in ("a.JPG", "a.png", "a.tiff", "a.dcm", "a.DICOM", "MR.ima"):
        assert is_picture(name, refuse)
    for name in (".a.png", "DICOMDIR", "dicomdir", "readme.txt", "a.dcm.zip"):
        assert not is_picture(name, refuse)
    for name in ("IM000001", "1.2.840.113619.2.5"):
        assert is_picture(name, lambda: bytes(128) + b"DICM")
        assert not is_picture(name, lambda: bytes(132))
        assert not is_picture(name, lambda: b"")


def test_errors_name_the_file_and_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "notes.jpg"
    path.write_text("no picture")
    with pytest.raises(ImageError) as caught:
        read_grey(path)
    assert str(caught.value) == f"{path}: not a JPEG, PNG, TIFF, BMP or DICOM picture"
    assert caught.value.reason == "not a JPEG, PNG, TIFF, BMP or DICOM picture"
    with pytest.raises(ImageError, match="No such file"):
        read_grey(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="directory"):
        read_size(tmp_path)
    with pytest.raises(ImageError, match="empty file"):
        read_grey(b"")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP"])
def test_a_picture_cut_short_is_an_error(kind: str) -> None:
    content = encode(NOISE, kind)
    for share in (0.02, 0.3, 0.6, 0.95):
        with pytest.raises(ImageError):
            read_grey(content[: int(len(content) * share)])


def test_pixel_limit_is_found_in_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode(NOISE)
    monkeypatch.setattr(grayscale, "MAX_PIXELS", 40 * 24)
    assert read_grey(content).shape == (24, 40)
    monkeypatch.setattr(grayscale, "MAX_PIXELS", 40 * 24 - 1)
    for read in (read_grey, read_size, read_mode):
        with pytest.raises(ImageTooLargeError, match="40 x 24 pixels"):
            read(content[:60])  # no pixels are there to be decoded


def test_large_header_warns_nothing() -> None:
    side = 10_000  # Pillow's own limit lies under this: it would warn
    content = b"BM" + bytes(12) + (40).to_bytes(4, "little") + 2 * side.to_bytes(4, "little")
    content += (1).to_bytes(2, "little") + (8).to_bytes(2, "little") + bytes(2000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageTooLargeError, match="10000 x 10000"):
            read_size(content)


def try_read(read: Callable[[bytes], Any], content: bytes) -> Any:
    try:
        return read(content)
    except ImageError as error:
        return error


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([b"", *(start for start, _ in reader._SIGNATURES)]), st.binary(max_size=300))
def test_any_bytes_give_an_array_or_an_image_error(start: bytes, rest: bytes) -> None:
    for read in (read_grey, read_size, read_mode):
        result = try_read(read, start + rest)
        if isinstance(result, ImageError):
            assert result.reason
            assert len(str(result).splitlines()) == 1
        elif read is read_grey:
            assert result.dtype == np.uint8


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["PNG", "JPEG", "TIFF", "BMP"]),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_altered_pictures_give_an_array_or_an_image_error(
    kind: str, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(encode(NOISE, kind))
    for place, value in changes:
        content[place % len(content)] = value
    result = try_read(read_grey, bytes(content))
    if isinstance(result, ImageError):
        assert " at 0x" not in result.reason
    else:
        assert result.ndim == 2
        assert result.size <= grayscale.MAX_PIXELS


def test_threads_agree_with_one() -> None:
    contents = [
        encode(np.roll(NOISE, shift), kind) for shift in range(20) for kind in ("PNG", "BMP")
    ]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(read_grey, contents))
    for content, pixels in zip(contents, together, strict=True):
        np.testing.assert_array_equal(pixels, read_grey(content))


def test_resize_keeps_aspect_and_centres_on_black() -> None:
    wide = np.full((10, 40), 200, np.uint8)
    square = resize_grey(wide, 20)
    assert square.shape == (20, 20)
    assert square.dtype == np.uint8
    assert (square[7:12] == 200).all()  # 40 x 10 becomes 20 x 5, 7 rows of black above
    assert not square[:7].any()
    assert not square[12:].any()


def test_resize_is_the_identity_at_its_own_size_and_enlarges() -> None:
    np.testing.assert_array_equal(resize_grey(NOISE[:, :24], 24), NOISE[:, :24])
    assert (resize_grey(np.full((3, 3), 9, np.uint8), 12) == 9).all()
    assert resize_grey(np.ones((1, 500), np.uint8), 16).shape == (16, 16)


def test_resize_is_antialiased() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    centre = resize_grey(stripes, 16)[4:12, 4:12].astype(int)
    assert np.abs(centre - 128).max() <= 3  # picking pixels would give 0 or 255
