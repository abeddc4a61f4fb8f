"""Files and folders on their way to a verdict."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import intake
from helper import UserError


def save(path: Path, level: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), level, np.uint8)).save(path)
    return path


def read_all(paths: list[Path], batch_size: int, overlap: bool = False) -> list[list[int | str]]:
    batches = intake.read_batches(
        intake.find_files(paths), lambda pixels: int(pixels[0, 0]), batch_size, overlap=overlap
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
    assert [path.relative_to(tmp_path).as_posix() for path in intake.find_files([tmp_path])] == [
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
        intake.find_files([tmp_path / "nowhere"])
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"no JPEG, PNG, TIFF, BMP or DICOM picture in it"):
        list(intake.find_files([tmp_path]))


def test_no_more_is_read_than_is_asked_for(tmp_path: Path) -> None:
    for number in range(20):
        save(tmp_path / f"{number:02d}.png", number)
    read, lock = [], threading.Lock()

    def make(pixels: np.ndarray) -> int:
        with lock:
            read.append(int(pixels[0, 0]))
        return int(pixels[0, 0])

    batches = intake.read_batches(intake.find_files([tmp_path]), make, 4, overlap=False)
    next(batches)
    assert sorted(read) == [0, 1, 2, 3]
    next(batches)
    assert len(read) == 8


def test_what_cannot_be_opened_is_a_row_and_what_is_no_file_is_none(tmp_path: Path) -> None:
    save(tmp_path / "1.png", 1)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    assert read_all([tmp_path], 8) == [[1]]


def test_a_folder_that_is_written_into_is_left_out(tmp_path: Path) -> None:
    save(tmp_path / "1.png", 1)
    save(tmp_path / "maps" / "2.png", 2)
    found = intake.find_files([tmp_path], leave_out=tmp_path / "maps")
    assert [path.name for path in found] == ["1.png"]
