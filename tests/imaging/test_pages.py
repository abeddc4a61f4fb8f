"""A file of several pictures becomes files of one picture that show exactly the same grey."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from imaging.bit_depth import ValueScaler
from imaging.grayscale import ImageError
from imaging.kinds import START_BYTES
from imaging.pages import encode_values, may_hold_several, unpack
from imaging.reader import count_frames, read_frames, read_grey, read_patient, read_study
from tests.support.dicom_files import BUNDLED, encode_dicom
from tests.support.fuzz_corpus import DEEP, GREY, Member, build_corpus, encode

SEVERAL = [member for member in build_corpus() if len(member.frames) > 1]


@pytest.mark.parametrize("member", SEVERAL, ids=lambda member: member.name)
def test_pages_show_the_grey_that_they_have_in_their_file(member: Member) -> None:
    assert may_hold_several(member.content[:START_BYTES])
    pages = [read_grey(page.content) for page in unpack(member.content)]
    for page, frame in zip(pages, read_frames(member.content), strict=True):
        np.testing.assert_array_equal(page, frame)


@pytest.mark.parametrize("name", ["PNG grey", "JPEG grey", "BMP grey", "PNM grey"])
def test_plain_files_are_not_opened_for_it(name: str) -> None:
    (member,) = (member for member in build_corpus() if member.name == name)
    assert not may_hold_several(member.content[:START_BYTES])


UIDS = ("StudyInstanceUID", "SeriesInstanceUID")
RANGES = {"integers": (0, 8191), "floats": (-1.0, 3.0)}


@pytest.mark.parametrize(
    "values",
    [DEEP, DEEP.astype(np.int16) - 100, DEEP.astype(np.int32) * 9, GREY / np.float32(90) - 1, GREY],
    ids=["uint16", "int16", "int32", "float32", "uint8"],
)
def test_values_without_a_declared_depth_are_scaled_like_those_in_the_file(
    values: np.ndarray,
) -> None:
    pages = [Image.fromarray(values[::-1])]
    content = encode(Image.fromarray(values), "TIFF", save_all=True, append_images=pages)
    inside = list(read_frames(content, ValueScaler(RANGES)))
    alone = [read_grey(page.content, ValueScaler(RANGES)) for page in unpack(content)]
    np.testing.assert_array_equal(alone, inside)
    np.testing.assert_array_equal(
        read_grey(encode_values(values).content, ValueScaler(RANGES)), inside[0]
    )


def test_a_tiff_with_white_as_zero() -> None:
    pages = [Image.fromarray(DEEP[::-1])]
    content = encode(DEEP, "TIFF", save_all=True, append_images=pages, tiffinfo={262: 0})
    inside = list(read_frames(content, ValueScaler(RANGES)))
    alone = [read_grey(page.content, ValueScaler(RANGES)) for page in unpack(content)]
    np.testing.assert_array_equal(alone, inside)


def find_files_of_several_frames() -> list[Path]:
    found = []
    for path in sorted(BUNDLED.rglob("*.dcm")):
        with contextlib.suppress(ImageError):
            if count_frames(path) > 1:
                found.append(path)
    return found


def test_frames_of_dicom_keep_grey_and_patient() -> None:
    paths = find_files_of_several_frames()
    assert len(paths) > 5
    for path in paths:
        content = path.read_bytes()
        frames = list(read_frames(content, ValueScaler(RANGES)))
        files = [page.content for page in unpack(content)]
        assert len(files) == len(frames), path.name
        for file, frame in zip(files, frames, strict=True):
            np.testing.assert_array_equal(read_grey(file, ValueScaler(RANGES)), frame, path.name)
        assert {read_patient(file) for file in files} == {read_patient(content)}
        if any(study := read_study(content)):
            assert {read_study(file) for file in files} == {study}


def test_frames_of_a_file_without_study_form_one_series() -> None:
    files = [
        encode_dicom(np.stack([DEEP, DEEP + shift]), n_frames=2, **dict.fromkeys(UIDS, ""))
        for shift in (0, 1)
    ]
    series = [{read_study(page.content) for page in unpack(file)} for file in files]
    assert [len(each) for each in series] == [1, 1]
    assert series[0] != series[1]
    assert not any(read_study(files[0]))


def test_groups_of_a_frame_become_elements_of_its_file() -> None:
    windows = []
    for centre in (1000, 3000):
        window = Dataset()
        window.WindowCenter, window.WindowWidth = str(centre), "1000"
        group = Dataset()
        group.FrameVOILUTSequence = Sequence([window])
        windows.append(group)
    content = encode_dicom(
        np.stack([DEEP, DEEP]),
        n_frames=2,
        PerFrameFunctionalGroupsSequence=Sequence(windows),
        WindowCenter="50",
        WindowWidth="7",
    )
    first, second = (read_grey(page.content) for page in unpack(content))
    np.testing.assert_array_equal([first, second], list(read_frames(content)))
    assert not np.array_equal(first, second)


def test_pages_before_the_damage_are_unpacked() -> None:
    content = encode_dicom(np.stack([GREY, GREY]), n_frames=2, syntax="1.2.840.10008.1.2.5")
    pages = unpack(content[:-100])
    with pytest.raises(ImageError):
        list(pages)
