"""Find image files, read them in batches, report what cannot be read."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helper import UserError
from imaging.grayscale import ImageError
from inference import image_stream
from inference.image_stream import Picture
from tests.support.builders import Patch
from tests.support.dicom_files import HIDDEN, encode_dicom


def save(path: Path, level: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), level, np.uint8)).save(path)
    return path


def read_level(pixels: np.ndarray) -> int:
    return int(pixels[0, 0])


def read_all(*paths: Path, batch_size: int = 8, overlap: bool = False) -> list[list[Picture[int]]]:
    files = image_stream.find_files(paths)
    return list(image_stream.read_batches(files, read_level, batch_size, overlap=overlap))


def test_images_come_in_order_in_whole_batches(tmp_path: Path) -> None:
    for number in range(7):
        save(tmp_path / f"{number}.png", number)
    for overlap in (False, True):
        batches = read_all(tmp_path, batch_size=3, overlap=overlap)
        levels = [[picture.prepared for picture in batch] for batch in batches]
        assert levels == [[0, 1, 2], [3, 4, 5], [6]]


def test_folders_are_sorted_and_named_files_are_always_read(tmp_path: Path) -> None:
    save(tmp_path / "b" / "2.png", 2)
    save(tmp_path / "a" / "1.png", 1)
    save(tmp_path / "a" / ".hidden.png", 9)
    save(tmp_path / ".cache" / "3.png", 9)
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    named = tmp_path / "report.txt"
    named.write_text("not an image")
    found = [path.relative_to(tmp_path).as_posix() for path in image_stream.find_files([tmp_path])]
    assert found == ["a/1.png", "b/2.png"]
    ((first, *others),) = read_all(named, tmp_path)
    assert "not a JPEG" in first.error
    assert [picture.prepared for picture in others] == [1, 2]


def test_masks_are_passed_over_and_counted(tmp_path: Path) -> None:
    pictures = ("a/1.png", "a/2.png", "a/label_9.png", "a/GroundTruth/../3.png")
    masks = ("a/1_mask.png", "a/mask_2.png", "a/GroundTruth/1.png")
    (tmp_path / "a" / "GroundTruth").mkdir(parents=True)
    for name in (*pictures, *masks):
        save(tmp_path / name, 1)
    passed_over = image_stream.PassedOver()
    found = {
        path.relative_to(tmp_path).as_posix()
        for path in image_stream.find_files([tmp_path], passed_over=passed_over)
    }
    assert found == {"a/1.png", "a/2.png", "a/label_9.png", "a/3.png"}
    assert "3 masks of tumours" in passed_over.describe()[0]
    # a folder of masks that the user names is read
    assert len(list(image_stream.find_files([tmp_path / "a" / "GroundTruth"]))) == 1


def test_unreadable_files_do_not_stop_the_others(tmp_path: Path) -> None:
    save(tmp_path / "1.png", 1)
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    (tmp_path / "3.png").write_bytes(b"")
    (tmp_path / "4.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")  # neither opened nor reported
    save(tmp_path / "5.png", 5)
    (batch,) = read_all(tmp_path)
    assert [picture.prepared for picture in batch] == [1, None, None, None, 5]
    assert [bool(picture.error) for picture in batch] == [False, True, True, True, False]
    assert batch[2].error == "empty file"
    assert batch[3].error == "No such file or directory"


def test_missing_paths_and_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such file or folder"):
        image_stream.check_paths([tmp_path / "nowhere"])
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"no JPEG, PNG, .* image .*1 .txt"):
        list(image_stream.find_files([tmp_path]))


def test_files_are_read_one_batch_at_a_time(tmp_path: Path) -> None:
    for number in range(20):
        save(tmp_path / f"{number:02d}.png", number)
    read: list[int] = []
    batches = image_stream.read_batches(
        image_stream.find_files([tmp_path]),
        lambda pixels: read.append(read_level(pixels)),
        batch_size=4,
        overlap=False,
    )
    next(batches)
    assert sorted(read) == [0, 1, 2, 3]
    next(batches)
    assert len(read) == 8


def test_a_closed_folder_is_reported(tmp_path: Path, monkeypatch: Patch) -> None:
    closed, walk = tmp_path / "closed", os.walk

    def walk_closed(folder: Path, onerror: Any) -> Any:
        onerror(PermissionError(13, "Permission denied", str(closed)))
        return walk(folder)

    save(tmp_path / "1.png", 1)
    monkeypatch.setattr(os, "walk", walk_closed)
    assert list(image_stream.find_files([tmp_path])) == [tmp_path / "1.png", closed]


def test_the_output_folder_is_not_read(tmp_path: Path) -> None:
    save(tmp_path / "1.png", 1)
    save(tmp_path / "maps" / "2.png", 2)
    (tmp_path / "maps" / "inner").mkdir()
    found = image_stream.find_files([tmp_path], exclude=tmp_path / "maps")
    assert [path.name for path in found] == ["1.png"]
    for inside in ("maps", "maps/inner", "maps/2.png"):
        with pytest.raises(UserError, match="inside the output folder"):
            image_stream.check_paths([tmp_path / inside], tmp_path / "maps")


def test_lost_frames_are_counted(tmp_path: Path, monkeypatch: Patch) -> None:
    def read_two(path: Path, *_: object) -> Any:
        yield from np.zeros((2, 4, 4), np.uint8)
        raise ImageError("truncated", path)

    (tmp_path / "5.dcm").write_bytes(encode_dicom(np.ones((5, 4, 4), np.uint8), n_frames=5))
    monkeypatch.setattr(image_stream, "read_frames", read_two)
    (batch,) = read_all(tmp_path / "5.dcm")
    assert [(one.frame, one.error, one.n_lost) for one in batch] == [
        (1, "", 0),
        (2, "", 0),
        (3, "truncated, and the 2 frames after it are not read", 2),
    ]
    assert batch[0].name.endswith("5.dcm#1")


def test_dicom_files_have_pseudonyms_of_patient_and_series(tmp_path: Path) -> None:
    pixels = np.ones((4, 4), np.uint8)
    (tmp_path / "1.dcm").write_bytes(encode_dicom(pixels))
    (tmp_path / "2.dcm").write_bytes(encode_dicom(pixels)[:-9])  # readable header
    (tmp_path / "3.dcm").write_bytes(encode_dicom(pixels, PatientID="", SeriesInstanceUID=""))
    frames = encode_dicom(np.ones((2, 4, 4), np.uint8), n_frames=2, SeriesInstanceUID="")
    (tmp_path / "4.dcm").write_bytes(frames)
    save(tmp_path / "5.png", 1)
    (batch,) = read_all(tmp_path)
    first, damaged, nameless, frame_1, frame_2, png = batch
    assert first.patient.startswith("p")
    assert not any(word in first.patient + first.series for word in HIDDEN)
    assert first.patient == damaged.patient == frame_1.patient == frame_2.patient
    assert first.series == damaged.series != ""
    assert damaged.error
    assert (nameless.patient, nameless.series) == (png.patient, png.series) == ("", "")
    assert frame_1.series == frame_2.series == "4.dcm"
