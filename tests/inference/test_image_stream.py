"""Files and folders on their way to a verdict."""

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helper import UserError
from imaging.grayscale import ImageError
from inference import image_stream, output_table
from inference.predictor import Verdict
from tests.support.dicom_files import encode_dicom


def save(path: Path, level: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), level, np.uint8)).save(path)
    return path


def read_all(paths: list[Path], batch_size: int, overlap: bool = False) -> list[list[int | str]]:
    batches = image_stream.read_batches(
        image_stream.find_files(paths),
        lambda pixels: int(pixels[0, 0]),
        batch_size,
        overlap=overlap,
    )
    return [[one.error if one.made is None else one.made for one in batch] for batch in batches]


@pytest.mark.parametrize("overlap", [False, True])
def test_pictures_come_in_order_in_whole_batches(tmp_path: Path, overlap: bool) -> None:
    for number in range(7):
        save(tmp_path / f"{number}.png", number)
    assert read_all([tmp_path], 3, overlap) == [[0, 1, 2], [3, 4, 5], [6]]


def test_folders_are_walked_by_name_and_named_files_taken_whatever_they_are(tmp_path: Path) -> None:
    save(tmp_path / "b" / "2.png", 2)
    save(tmp_path / "a" / "1.png", 1)
    save(tmp_path / "a" / ".hidden.png", 9)
    save(tmp_path / ".cache" / "3.png", 9)
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    named = tmp_path / "report.txt"
    named.write_text("no picture")
    assert [
        path.relative_to(tmp_path).as_posix() for path in image_stream.find_files([tmp_path])
    ] == [
        "a/1.png",
        "b/2.png",
    ]
    assert read_all([named, tmp_path], 8)[0][1:] == [1, 2]
    assert "not a JPEG" in str(read_all([named], 8)[0][0])


def test_a_bad_file_is_no_end(tmp_path: Path) -> None:
    save(tmp_path / "1.png", 1)
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    (tmp_path / "3.png").write_bytes(b"")
    save(tmp_path / "4.png", 4)
    first, cut, empty, last = read_all([tmp_path], 8)[0]
    assert (first, last) == (1, 4)
    assert empty == "empty file"
    assert cut


def test_what_is_not_there_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such file or folder"):
        image_stream.find_files([tmp_path / "nowhere"])
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"no JPEG, PNG, TIFF, BMP or DICOM picture in it"):
        list(image_stream.find_files([tmp_path]))


def test_no_more_is_read_than_is_asked_for(tmp_path: Path) -> None:
    for number in range(20):
        save(tmp_path / f"{number:02d}.png", number)
    read, lock = [], threading.Lock()

    def make(pixels: np.ndarray) -> int:
        with lock:
            read.append(int(pixels[0, 0]))
        return int(pixels[0, 0])

    batches = image_stream.read_batches(image_stream.find_files([tmp_path]), make, 4, overlap=False)
    next(batches)
    assert sorted(read) == [0, 1, 2, 3]
    next(batches)
    assert len(read) == 8


def test_what_cannot_be_opened_is_a_row_and_what_is_no_file_is_none(tmp_path: Path) -> None:
    save(tmp_path / "1.png", 1)
    (tmp_path / "2.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    (batch,) = image_stream.read_batches(
        image_stream.find_files([tmp_path]), lambda pixels: int(pixels[0, 0]), 8, overlap=False
    )
    assert [(picture.path.name, picture.made, picture.error) for picture in batch] == [
        ("1.png", 1, ""),
        ("2.png", None, "No such file or directory"),
    ]


def test_a_folder_that_cannot_be_opened_is_given_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, walk = tmp_path / "closed", os.walk

    def walk_closed(folder: Path, onerror: Any) -> Any:
        onerror(PermissionError(13, "Permission denied", str(closed)))
        return walk(folder)

    save(tmp_path / "1.png", 1)
    monkeypatch.setattr(os, "walk", walk_closed)
    assert list(image_stream.find_files([tmp_path])) == [tmp_path / "1.png", closed]


@pytest.mark.parametrize("judged", ["maps", "maps/inner", "maps/2.png"])
def test_what_is_written_is_not_to_be_judged(tmp_path: Path, judged: str) -> None:
    save(tmp_path / "maps" / "2.png", 2)
    (tmp_path / "maps" / "inner").mkdir()
    with pytest.raises(UserError, match="lies where is written to"):
        image_stream.find_files([tmp_path / judged], leave_out=tmp_path / "maps")


def test_frames_behind_a_damaged_one_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_two(path: Path) -> Any:
        yield from np.zeros((2, 4, 4), np.uint8)
        raise ImageError("cut short", path)

    (tmp_path / "5.dcm").write_bytes(encode_dicom(np.ones((5, 4, 4), np.uint8), n_frames=5))
    monkeypatch.setattr(image_stream, "read_frames", read_two)
    (batch,) = image_stream.read_batches([tmp_path / "5.dcm"], np.sum, 8, overlap=False)
    assert [(one.frame, one.error, one.n_lost) for one in batch] == [
        (1, "", 0),
        (2, "", 0),
        (3, "cut short, and the 2 frames after it are not read", 2),
    ]
    tally = output_table.SeriesTally(["A"])
    verdict = Verdict(np.ones(1), "A", 1.0, ("A",), False, False, 0.5, ())
    for picture in batch:
        tally.add(picture, None if picture.error else verdict)
    assert tally.close()[0]["file"].endswith("#series1 (2 of 5 slices)")


def test_a_folder_that_is_written_into_is_left_out(tmp_path: Path) -> None:
    save(tmp_path / "1.png", 1)
    save(tmp_path / "maps" / "2.png", 2)
    found = image_stream.find_files([tmp_path], leave_out=tmp_path / "maps")
    assert [path.name for path in found] == ["1.png"]
