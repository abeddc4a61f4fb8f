"""The state of a user: files, frames, heat maps, many files."""

import functools
import os
import time
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from imaging.grayscale import ImageError
from inference.predictor import SlicePredictor
from phantoms.generator import plan_phantoms, render_phantom
from tests.support.builders import Patch, list_files
from tests.support.dicom_files import HIDDEN, encode_dicom
from webapp import user_session
from webapp.user_session import Session, open_file, open_frame


@functools.cache
def render(number: int) -> np.ndarray:
    """Return one of three phantoms, uint8 [128, 128]."""
    return render_phantom(plan_phantoms(6, 5)[number])[0][::4, ::4]


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def save_frames(path: Path, pixels: np.ndarray, n_frames: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_dicom(np.stack([pixels] * n_frames), n_frames=n_frames))
    return path


def predict_files(predictor: SlicePredictor, *paths: Path) -> list[dict]:
    return list(chain.from_iterable(user_session.predict_files(predictor, paths)))


def test_only_files_of_the_upload_folder_are_accepted(tmp_path: Path) -> None:
    folder, foreign = tmp_path / "page", save(tmp_path / "home" / "mine.png", render(0))
    own = save(folder / "own.png", render(0))
    (folder / "inner").mkdir()
    (folder / "link.png").symlink_to(foreign)
    (tmp_path / "here").symlink_to(folder, target_is_directory=True)
    for path in (own, tmp_path / "here" / "own.png"):
        assert user_session.check_upload(path, tmp_path / "here") == own
    assert user_session.check_upload(folder / "gone.png", folder) == folder / "gone.png"
    up = folder / ".." / "home" / "mine.png"
    for path in (foreign, up, folder / "link.png", folder, folder / "inner", Path("mine.png")):
        with pytest.raises(ImageError, match="not uploaded on this page"):
            user_session.check_upload(path, folder)


def test_an_image_is_predicted_and_deleted(predictor: SlicePredictor, tmp_path: Path) -> None:
    session, path = Session(), save(tmp_path / "mine.png", render(0))
    open_file(session, predictor, path)
    (expected,) = predictor.predict([predictor.preprocess(render(0))])
    assert session.prediction is not None
    assert session.slice is not None
    assert np.array_equal(session.prediction.probs, expected.probs)
    assert (session.name, session.path, session.n_frames) == ("mine.png", None, 1)
    assert session.slice.picture.shape == render(0).shape
    assert not list_files(tmp_path)


def test_frames_are_kept_until_the_next_file(predictor: SlicePredictor, tmp_path: Path) -> None:
    session = Session()
    open_file(session, predictor, save_frames(tmp_path / "3.dcm", render(0), 3))
    assert (session.frame, session.n_frames) == (1, 3)
    open_frame(session, predictor, 3)
    assert session.frame == 3
    with pytest.raises(ImageError, match="no frame 4"):
        open_frame(session, predictor, 4)
    assert session.prediction is None
    open_file(session, predictor, save(tmp_path / "next.png", render(1)))
    assert not list_files(tmp_path)
    with pytest.raises(ImageError, match="drop it again"):
        open_frame(session, predictor, 1)


def test_two_users_may_drop_the_same_file(predictor: SlicePredictor, tmp_path: Path) -> None:
    first, second = Session(), Session()
    for session in (first, second):  # Gradio stores equal content at one path
        open_file(session, predictor, save_frames(tmp_path / "same.dcm", render(0), 2))
    open_file(second, predictor, save(tmp_path / "next.png", render(1)))
    open_frame(first, predictor, 2)
    assert first.prediction is not None


def test_a_second_drop_keeps_the_prediction(predictor: SlicePredictor, tmp_path: Path) -> None:
    session, path = Session(), save(tmp_path / "a.png", render(0))
    open_file(session, predictor, path)
    prediction, version = session.prediction, session.version
    open_file(session, predictor, path)
    assert prediction is not None
    assert (session.prediction, session.version) == (prediction, version)
    open_file(session, predictor, save(tmp_path / "a.png", render(1)))
    assert session.version > version


def test_a_deleted_file_clears_the_session(predictor: SlicePredictor, tmp_path: Path) -> None:
    session = Session()
    open_file(session, predictor, save_frames(tmp_path / "2.dcm", render(0), 2))
    with pytest.raises(ImageError, match="deleted; drop it again"):
        open_file(session, predictor, tmp_path / "gone.png")
    assert (session.slice, session.path, session.n_frames) == (None, None, 1)
    assert not list_files(tmp_path)


def test_old_files_are_deleted_unless_in_use(predictor: SlicePredictor, tmp_path: Path) -> None:
    used, unused = Session(), Session()
    for session in (used, unused):
        open_file(session, predictor, save_frames(tmp_path / "upload" / "2.dcm", render(0), 2))
    (tmp_path / "tmpabc").write_bytes(b"half")
    for name in list_files(tmp_path):
        os.utime(tmp_path / name, (0, time.time() - 4000))
    new = save(tmp_path / "new.png", render(0))
    open_frame(used, predictor, 2)
    user_session.delete_old_files(tmp_path, 3600)
    assert {tmp_path / name for name in list_files(tmp_path)} == {used.path, new}
    open_frame(used, predictor, 1)
    with pytest.raises(ImageError, match="drop it again"):
        open_frame(unused, predictor, 2)


def test_bad_files_are_refused_without_their_names(
    predictor: SlicePredictor, tmp_path: Path
) -> None:
    session, path, frames = Session(), tmp_path / "Hidden Person.png", np.stack([render(0)] * 3)
    for content, reason in (
        (b"this is text", "not a JPEG, PNG, .* or DICOM"),
        (b"", "empty file"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (encode_dicom(render(0))[:-5000], "truncated"),
        (encode_dicom(frames, n_frames=3)[:-9], "truncated"),
    ):
        path.write_bytes(content)
        with pytest.raises(ImageError, match=reason) as caught:
            open_file(session, predictor, path)
        assert not any(word in caught.value.reason.lower() for word in HIDDEN)
        assert (session.slice, session.prediction, session.path) == (None, None, None)
        assert session.n_frames == 1
        assert not list_files(tmp_path)


def test_a_large_file_is_refused(
    predictor: SlicePredictor, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(user_session, "MAX_FILE_MIB", 0)
    path = save(tmp_path / "a.png", render(0))
    with pytest.raises(ImageError, match="over the limit of 0 MiB"):
        open_file(Session(), predictor, path)
    again = save(tmp_path / "other" / path.name, render(0))  # files of one name have a row each
    row, _ = predict_files(predictor, save(path, render(0)), again)
    assert "over the limit of 0 MiB" in row["error"]
    assert not list_files(tmp_path)


def test_a_heat_map_is_computed_once_for_each_class(
    predictor: SlicePredictor, tmp_path: Path, monkeypatch: Patch
) -> None:
    explain = Mock(side_effect=predictor.explain)
    monkeypatch.setattr(predictor, "explain", explain)
    session = Session()
    user_session.make_heatmap(session, predictor)
    open_file(session, predictor, save(tmp_path / "a.png", render(0)))
    for name in ("Menin", "Glioma", "Menin"):
        session.class_name = name
        user_session.make_heatmap(session, predictor)
    assert [call.args[1] for call in explain.call_args_list] == ["Menin", "Glioma"]
    assert session.heatmaps["Menin"].shape == render(0).shape


def test_a_late_heat_map_is_discarded(
    predictor: SlicePredictor, tmp_path: Path, monkeypatch: Patch
) -> None:
    session = Session()
    open_file(session, predictor, save(tmp_path / "a.png", render(0)))
    explain = predictor.explain

    def open_another(preprocessed: Any, class_name: str) -> Any:
        open_file(session, predictor, save(tmp_path / "b.png", render(1)))
        return explain(preprocessed, class_name)

    monkeypatch.setattr(predictor, "explain", open_another)
    user_session.make_heatmap(session, predictor)
    assert session.name == "b.png"
    assert session.heatmaps == {}


def test_many_files_give_the_rows_of_predict(predictor: SlicePredictor, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    save(folder / "good.png", render(0))
    (folder / "bad.png").write_text("not an image")
    for number in (1, 2):
        (folder / f"{number}.dcm").write_bytes(encode_dicom(render(number)))
    names = ["gone.png", "good.png", "bad.png", "1.dcm", "2.dcm"]
    rows = predict_files(predictor, *(folder / name for name in names))
    assert [row["file"] for row in rows] == [*names, "series1 (2 slices)"]
    assert "drop it again" in rows[0]["error"]
    assert "not a JPEG" in rows[2]["error"]
    assert [bool(row["error"]) for row in rows] == [True, False, True, False, False, False]
    assert rows[3]["patient"] == rows[4]["patient"] == rows[5]["patient"] != ""
    assert not list_files(folder)
    session = Session()
    open_file(session, predictor, save(tmp_path / "alone.png", render(0)))
    assert session.prediction is not None
    assert rows[1]["predicted"] == session.prediction.predicted
