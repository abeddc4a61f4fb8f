"""Images of every format but DICOM: any bytes give a grey image or one ImageError."""

import concurrent.futures
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from imaging import grayscale
from imaging.content_checks import read_webp_size
from imaging.grayscale import MAX_SCANS, ImageError, ImageTooLargeError
from imaging.kinds import START_BYTES, find_kind, is_image_file
from imaging.reader import (
    count_frames,
    read_frames,
    read_grey,
    read_mode,
    read_size,
)
from imaging.volumes import VOLUME_SUFFIXES
from tests.support.fuzz_corpus import GREY, build_chunk, build_corpus, encode
from tests.support.fuzz_mutations import write_tag

SMALL = np.array([[0, 50, 100], [150, 200, 255]], np.uint8)
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "JPEG2000", "PPM")


# ---- pixels


def test_corpus_has_the_expected_pixels() -> None:
    for member in build_corpus():
        frames = list(read_frames(member.content))
        assert frames, member.name
        for pixels, expected in zip(frames, member.frames or frames, strict=True):
            error = np.abs(pixels.astype(int) - expected)
            assert error.max() <= member.tolerance, member.name


def test_threads_give_the_same_pixels() -> None:
    members = [
        member
        for member in build_corpus()
        if len(member.frames) == 1 and member.format not in VOLUME_SUFFIXES
    ] * 2
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        images = list(pool.map(read_grey, [member.content for member in members]))
    for member, pixels in zip(members, images, strict=True):
        assert np.array_equal(pixels, read_grey(member.content)), member.name


def test_every_mode_keeps_its_grey() -> None:
    modes = {"PNG": "L LA P RGB RGBA", "TIFF": "L LA P RGB RGBA CMYK", "BMP": "L P RGB RGBA"}
    if int(PIL.__version__.split(".")[0]) >= 13:  # earlier versions cannot read what they wrote
        modes["TIFF"] += " YCbCr"
    for format_, names in modes.items():
        for mode in names.split():
            assert np.array_equal(read_grey(encode(SMALL, format_, mode)), SMALL), (format_, mode)


def test_tiff_with_white_as_zero_is_inverted() -> None:
    content = encode(np.array([[0, 65535]], np.uint16), "TIFF", tiffinfo={262: 0})
    assert read_mode(content) == "I;16"
    assert read_grey(content).tolist() == [[255, 0]]


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_exif_orientation(format_: str) -> None:
    flipped, rotated = SMALL[:, ::-1], SMALL[::-1, ::-1]
    expected = {2: flipped, 3: rotated, 4: SMALL[::-1], 5: SMALL.T, 6: SMALL[::-1].T}
    expected |= {7: rotated.T, 8: flipped.T}
    for orientation, pixels in expected.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encode(SMALL, format_, exif=exif)
        np.testing.assert_array_equal(read_grey(content), pixels)
        assert read_size(content) == pixels.shape[::-1]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # the reader's filter, which pytest resets
def test_damaged_exif_does_not_matter() -> None:
    content = encode(GREY, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert read_grey(content).shape == GREY.shape


def test_path_and_bytes_are_read_alike(tmp_path: Path) -> None:
    path = tmp_path / "image.txt"  # the content decides, not the name
    for format_ in FORMATS:
        path.write_bytes(encode(GREY, format_))
        pixels = read_grey(path)
        assert np.array_equal(pixels, read_grey(path.read_bytes()))
        assert [np.array_equal(frame, pixels) for frame in read_frames(path)] == [True]
        assert read_size(path) == GREY.shape[::-1]


def test_the_suffix_or_the_content_makes_an_image_file() -> None:
    def refuse() -> bytes:
        raise AssertionError("the name is sufficient")

    for name in ("a.JPG", "a.png", "a.tiff", "a.dcm", "a.DICOM", "MR.ima", "a.webp", "a.jfif"):
        assert is_image_file(name, refuse)
    for name in (".a.png", "DICOMDIR", "dicomdir"):
        assert not is_image_file(name, refuse)
    for name in ("IM000001", "1.2.840.113619.2.5", "I0.img", "I0.MR", "scan 1.5T T1 0"):
        assert is_image_file(name, lambda: bytes(128) + b"DICM")
        assert not is_image_file(name, lambda: bytes(132))
        assert not is_image_file(name, lambda: b"")


def test_every_format_is_recognized_by_its_content() -> None:
    kinds = {member.name: find_kind(member.content[:START_BYTES]) for member in build_corpus()}
    expected = {name: name.split()[0].replace("JPEG2000", "JPEG 2000") for name in kinds}
    assert kinds == expected


@pytest.mark.parametrize(
    "start",
    [
        b"BMW is a car, not a bitmap",
        b"P1 and P2 are patients",
        b"P5 1",
        b"RIFF1234WAVE",
        b"II*",
        b"",
    ],
)
def test_other_files_are_no_images(start: bytes) -> None:
    assert find_kind(start) == ""


def test_several_pictures_are_not_one_image() -> None:
    for member in build_corpus():
        if len(member.frames) > 1 and member.format not in {"DICOM", *VOLUME_SUFFIXES}:
            assert count_frames(member.content) == len(member.frames)
            with pytest.raises(ImageError, match="pictures instead of one"):
                read_grey(member.content)


def test_thumbnails_of_a_tiff_are_no_pages() -> None:
    small = Image.fromarray(GREY[::2, ::2])
    content = encode(GREY, "TIFF", save_all=True, append_images=[small])
    np.testing.assert_array_equal(read_grey(content), GREY)


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 50}, {"exif": b"Exif\0\0"}])
def test_the_size_of_a_webp_is_checked_before_it_is_opened(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = encode(GREY, "WEBP", **options)
    assert read_webp_size(content) == GREY.shape[::-1]
    monkeypatch.setattr(grayscale, "MAX_PIXELS", GREY.size - 1)
    with pytest.raises(ImageTooLargeError):
        read_size(content)


# ---- refusals


def test_errors_name_the_file_and_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "notes.jpg"
    path.write_text("text")
    with pytest.raises(ImageError, match=r"not a JPEG, PNG, .* or DICOM") as caught:
        read_grey(path)
    assert str(caught.value) == f"{path}: {caught.value.reason}"
    with pytest.raises(ImageError, match="No such file"):
        read_grey(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="directory"):
        read_size(tmp_path)
    with pytest.raises(ImageError, match="empty file"):
        read_grey(b"")


def test_truncated_images_are_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 40), dtype=np.uint8)
    for format_ in FORMATS:
        content = encode(noise, format_)
        for share in (0.02, 0.3, 0.6, 0.95):
            with pytest.raises(ImageError):
                read_grey(content[: int(len(content) * share)])


def test_size_is_checked_in_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode(GREY, "PNG")
    monkeypatch.setattr(grayscale, "MAX_PIXELS", GREY.size)
    assert read_grey(content).shape == GREY.shape
    monkeypatch.setattr(grayscale, "MAX_PIXELS", GREY.size - 1)
    for read in (read_grey, read_size, read_mode):
        with pytest.raises(ImageTooLargeError, match="40 x 24 pixels, over the limit"):
            read(content[:60])  # without pixels


def test_large_header_gives_no_warning() -> None:
    side = 10_000  # over Pillow's own limit, which warns
    content = b"BM" + bytes(12) + struct.pack("<IIIHH", 40, side, side, 1, 8) + bytes(2000)
    too_large = pytest.raises(ImageTooLargeError, match="10000 x 10000")
    with warnings.catch_warnings(action="error"), too_large:
        read_size(content)


def test_png_with_wrong_checksum_is_refused() -> None:
    content = encode(GREY, "PNG")
    start = content.index(b"IDAT")
    n_bytes = int.from_bytes(content[start - 4 : start])
    rows = bytearray(zlib.decompress(content[start + 4 : start + 4 + n_bytes]))
    rows[20] ^= 255
    changed = build_chunk(b"IDAT", zlib.compress(bytes(rows)))
    head, tail = content[: start - 4], content[start + 8 + n_bytes :]
    assert read_grey(head + changed + tail).shape == GREY.shape
    with pytest.raises(ImageError, match="does not match its checksum"):
        read_grey(head + changed[:-4] + content[start + 4 + n_bytes :])
    with pytest.raises(ImageError, match=r"^truncated$"):
        read_grey(head + changed[:-1])


def test_unknown_value_is_not_the_whole_reason() -> None:
    # a compression that Pillow looks up in a dict
    content = write_tag(encode(GREY, "TIFF"), struct.pack("<HHI", 259, 3, 1), 43291)
    with pytest.raises(ImageError, match=r"^damaged \(unknown value in the header\)$"):
        read_grey(content)


def test_jpeg_with_too_many_scans_is_refused() -> None:
    content = encode(GREY, "JPEG", progressive=True)
    start = content.rindex(b"\xff\xda")
    head, scan, end = content[:start], content[start:-2], content[-2:]
    assert read_grey(head + scan * (MAX_SCANS // 2) + end).shape == GREY.shape
    with pytest.raises(ImageError, match="more than 100 scans"):
        read_grey(head + scan * (MAX_SCANS + 1) + end)
    # data after the end, as phones append
    assert read_grey(content + b"\xff\xda\0\x02" * 1000).shape == GREY.shape
