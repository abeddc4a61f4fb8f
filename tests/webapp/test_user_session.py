"""What lies before a reader of the page, without a browser: files, frames, heat maps, threads."""

import os
import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from imaging.grayscale import ImageError
from inference.predictor import PreprocessedSlice, SliceClassifier, load_classifier
from phantoms.generator import plan_phantoms, render_phantom
from tests.support.builders import Run
from tests.support.dicom_files import HIDDEN, build_dataset, encode_dataset, encode_dicom
from webapp import user_session

BEST = Path("session/first/best.pt")


@pytest.fixture
def classifier(trained: Run) -> SliceClassifier:
    return load_classifier([BEST], "cpu", 1)


@pytest.fixture
def pictures() -> list[np.ndarray]:
    return [render_phantom(plan)[0] for plan in plan_phantoms(6, 5)]


def collect(batches: Iterable[list[dict]]) -> list[dict]:
    return [row for batch in batches for row in batch]


def save(folder: Path, name: str, pixels: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / name)
    return folder / name


def test_what_was_not_dropped_is_refused(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    folder, foreign = tmp_path / "page", save(tmp_path / "home", "mine.png", pictures[0])
    own = save(folder, "own.png", pictures[0])
    (folder / "inner").mkdir()
    (folder / "link.png").symlink_to(foreign)
    (tmp_path / "here").symlink_to(folder, target_is_directory=True)
    for path in (own, tmp_path / "here" / "own.png"):
        assert user_session.check_upload(path, tmp_path / "here") == own
    assert user_session.check_upload(folder / "gone.png", folder) == folder / "gone.png"
    up = folder / ".." / "home" / "mine.png"
    for path in (foreign, up, folder / "link.png", folder, folder / "inner", Path("mine.png")):
        with pytest.raises(ImageError, match="not dropped on this page"):
            user_session.check_upload(path, folder)


def test_a_picture_is_judged_and_its_file_deleted(
    classifier: SliceClassifier, tmp_path: Path, pictures: list[np.ndarray]
) -> None:
    own, path = user_session.Desk(), save(tmp_path / "in", "mine.png", pictures[0])
    user_session.lay_file(own, classifier, path)
    assert own.verdict is not None
    assert own.slice is not None
    plain = classifier.judge([classifier.preprocess(pictures[0])])[0]
    assert np.array_equal(own.verdict.probs, plain.probs)
    assert (own.name, own.path, own.n_frames) == ("mine.png", None, 1)
    assert max(own.slice.picture.shape) == 512
    assert list((tmp_path / "in").iterdir()) == []


def test_the_frames_of_a_file_are_kept_until_the_next_one_comes(
    classifier: SliceClassifier, tmp_path: Path, pictures: list[np.ndarray]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    several, own = folder / "several.dcm", user_session.Desk()
    several.write_bytes(encode_dataset(build_dataset(np.stack(pictures[:1] * 3), n_frames=3)))
    user_session.lay_file(own, classifier, several)
    assert (own.frame, own.n_frames) == (1, 3)
    user_session.lay_frame(own, classifier, 3)
    assert own.frame == 3
    with pytest.raises(ImageError, match="it has no frame 4"):
        user_session.lay_frame(own, classifier, 4)
    assert own.verdict is None
    user_session.lay_file(own, classifier, save(folder, "next.png", pictures[1]))
    assert list(folder.iterdir()) == []
    with pytest.raises(ImageError, match="no longer here"):
        user_session.lay_frame(own, classifier, 1)


def test_two_readers_may_drop_the_same_file(
    classifier: SliceClassifier, tmp_path: Path, pictures: list[np.ndarray]
) -> None:
    content = encode_dataset(build_dataset(np.stack(pictures[:1] * 2), n_frames=2))
    first, second, path = user_session.Desk(), user_session.Desk(), tmp_path / "same.dcm"
    for one in (first, second):
        path.write_bytes(content)  # as Gradio does: one place for one content
        user_session.lay_file(one, classifier, path)
    user_session.lay_file(second, classifier, save(tmp_path / "in", "next.png", pictures[1]))
    user_session.lay_frame(first, classifier, 2)
    assert first.verdict is not None


def test_a_file_that_is_dropped_twice_while_it_waits_keeps_its_answer(
    classifier: SliceClassifier, tmp_path: Path, pictures: list[np.ndarray]
) -> None:
    own, path = user_session.Desk(), save(tmp_path / "in", "a.png", pictures[0])
    user_session.lay_file(own, classifier, path)
    verdict, turn = own.verdict, own.turn
    user_session.lay_file(own, classifier, path)
    assert verdict is not None
    assert (own.verdict, own.turn) == (verdict, turn)
    user_session.lay_file(own, classifier, save(tmp_path / "in", "a.png", pictures[1]))
    assert own.turn > turn


def test_a_file_that_is_gone_leaves_no_other_answer(
    classifier: SliceClassifier, tmp_path: Path, pictures: list[np.ndarray]
) -> None:
    own, path = user_session.Desk(), tmp_path / "two.dcm"
    path.write_bytes(encode_dataset(build_dataset(np.stack(pictures[:1] * 2), n_frames=2)))
    user_session.lay_file(own, classifier, path)
    with pytest.raises(ImageError, match="no longer here; drop it again"):
        user_session.lay_file(own, classifier, tmp_path / "taken.png")
    assert (own.slice, own.path, own.n_frames) == (None, None, 1)
    assert list(tmp_path.glob("*")) == [tmp_path / "work"]


def test_a_file_whose_first_frame_is_damaged_offers_no_others(
    classifier: SliceClassifier, tmp_path: Path, pictures: list[np.ndarray]
) -> None:
    own, path = user_session.Desk(), tmp_path / "in.dcm"
    path.write_bytes(encode_dataset(build_dataset(np.stack(pictures[:1] * 3), n_frames=3))[:-9])
    with pytest.raises(ImageError, match="cut short"):
        user_session.lay_file(own, classifier, path)
    assert (own.path, own.n_frames) == (None, 1)
    assert list(tmp_path.glob("*")) == [tmp_path / "work"]


def test_what_nobody_uses_is_swept_away(
    classifier: SliceClassifier, tmp_path: Path, pictures: list[np.ndarray]
) -> None:
    folder = tmp_path / "page"
    own, left = user_session.Desk(), user_session.Desk()
    for one in (own, left):
        path = folder / "upload" / "two.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_dataset(build_dataset(np.stack(pictures[:1] * 2), n_frames=2)))
        user_session.lay_file(one, classifier, path)
    young, broken_off = save(folder, "young.png", pictures[0]), folder / "tmpabc"
    broken_off.write_bytes(b"half")
    assert own.path is not None
    assert left.path is not None
    for path in (own.path, left.path, broken_off):
        os.utime(path, (0, time.time() - 4000))
    user_session.lay_frame(own, classifier, 2)
    user_session.sweep(folder, 3600)
    assert {path for path in folder.rglob("*") if path.is_file()} == {own.path, young}
    user_session.lay_frame(own, classifier, 1)
    with pytest.raises(ImageError, match="no longer here; drop it again"):
        user_session.lay_frame(left, classifier, 2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"this is text", "not a JPEG, PNG, TIFF, BMP or DICOM picture"),
        (b"", "empty file"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
    ],
)
def test_a_bad_file_is_told_and_deleted(
    classifier: SliceClassifier, tmp_path: Path, content: bytes, words: str
) -> None:
    own, path = user_session.Desk(), tmp_path / "Hidden Person.png"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        user_session.lay_file(own, classifier, path)
    assert words in caught.value.reason
    assert "Hidden" not in caught.value.reason
    assert own.slice is None
    assert own.verdict is None
    assert not path.exists()


def test_a_damaged_dicom_file_tells_nothing_of_its_patient(
    classifier: SliceClassifier, tmp_path: Path, pictures: list[np.ndarray]
) -> None:
    path = tmp_path / "cut.dcm"
    path.write_bytes(encode_dicom(pictures[0])[:-5000])
    with pytest.raises(ImageError) as caught:
        user_session.lay_file(user_session.Desk(), classifier, path)
    assert not any(word in caught.value.reason.lower() for word in HIDDEN)


def test_too_large_a_file_is_refused(
    classifier: SliceClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_session, "MAX_FILE_MIB", 0)
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(ImageError, match="over the limit of 0 MiB a file"):
        user_session.lay_file(user_session.Desk(), classifier, tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(b"x")
    (row,) = collect(user_session.judge_files(classifier, [tmp_path / "a.png"]))
    assert row["error"] == "over the limit of 0 MiB a file"


def test_a_heat_map_is_made_once_for_each_class(
    classifier: SliceClassifier,
    tmp_path: Path,
    pictures: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[str] = []
    explain = SliceClassifier.explain

    def count(
        self: SliceClassifier, preprocessed: PreprocessedSlice, class_name: str
    ) -> NDArray[np.float32]:
        made.append(class_name)
        return explain(self, preprocessed, class_name)

    monkeypatch.setattr(SliceClassifier, "explain", count)
    own = user_session.Desk()
    user_session.make_heatmap(own, classifier)
    user_session.lay_file(own, classifier, save(tmp_path / "in", "a.png", pictures[0]))
    for name in ("Menin", "Glioma", "Menin"):
        own.class_name = name
        user_session.make_heatmap(own, classifier)
    assert made == ["Menin", "Glioma"]
    assert own.slice is not None
    assert own.heatmaps["Menin"].shape == own.slice.picture.shape


def test_a_heat_map_that_comes_late_is_not_laid_over_the_next_picture(
    classifier: SliceClassifier,
    tmp_path: Path,
    pictures: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = user_session.Desk()
    user_session.lay_file(own, classifier, save(tmp_path / "in", "a.png", pictures[0]))
    explain = SliceClassifier.explain

    def drop_another(
        self: SliceClassifier, preprocessed: PreprocessedSlice, class_name: str
    ) -> NDArray[np.float32]:
        user_session.lay_file(own, classifier, save(tmp_path / "in", "b.png", pictures[1]))
        return explain(self, preprocessed, class_name)

    monkeypatch.setattr(SliceClassifier, "explain", drop_another)
    user_session.make_heatmap(own, classifier)
    assert own.name == "b.png"
    assert own.heatmaps == {}


def test_verdicts_beside_heat_maps_are_the_same(
    classifier: SliceClassifier, pictures: list[np.ndarray]
) -> None:
    preprocessed = [classifier.preprocess(pixels) for pixels in pictures]
    expected = [classifier.judge([one])[0] for one in preprocessed]
    classifier.explain(preprocessed[0], classifier.classes[0])  # once before, as app.warm_up does
    is_over, failures = threading.Event(), []

    def make_maps() -> None:
        while not is_over.is_set():
            try:
                classifier.explain(preprocessed[0], classifier.classes[0])
            except Exception as error:  # noqa: BLE001  told below
                failures.append(error)

    thread = threading.Thread(target=make_maps)
    thread.start()
    try:
        for _ in range(10):
            for one, alone in zip(preprocessed, expected, strict=True):
                verdict = classifier.judge([one])[0]
                assert np.array_equal(verdict.probs, alone.probs)
                assert (verdict.distance, verdict.nearest) == (alone.distance, alone.nearest)
    finally:
        is_over.set()
        thread.join()
    assert failures == []


def test_files_become_the_rows_of_predict(
    classifier: SliceClassifier, tmp_path: Path, pictures: list[np.ndarray]
) -> None:
    folder = tmp_path / "in"
    good = save(folder, "good.png", pictures[0])
    (folder / "bad.png").write_text("no picture")
    for number in (1, 2):
        (folder / f"{number}.dcm").write_bytes(encode_dicom(pictures[number]))
    paths = [good, folder / "bad.png", folder / "1.dcm", folder / "2.dcm"]
    shutil.copy(good, tmp_path / "kept.png")
    rows = collect(user_session.judge_files(classifier, paths))
    names = ["good.png", "bad.png", "1.dcm", "2.dcm", "series1 (2 slices)"]
    assert [row["file"] for row in rows] == names
    assert "not a JPEG" in rows[1]["error"]
    assert [row["error"] for row in rows if row is not rows[1]] == [None] * 4
    assert list(folder.iterdir()) == []
    alone = user_session.Desk()
    user_session.lay_file(alone, classifier, tmp_path / "kept.png")
    assert alone.verdict is not None
    assert rows[0]["predicted"] == alone.verdict.predicted


def test_a_file_that_is_gone_does_not_stop_the_others(
    classifier: SliceClassifier, tmp_path: Path, pictures: list[np.ndarray]
) -> None:
    good = save(tmp_path / "in", "good.png", pictures[0])
    rows = collect(user_session.judge_files(classifier, [tmp_path / "in" / "gone.png", good]))
    assert [(row["file"], row["error"]) for row in rows] == [
        ("gone.png", "no longer here; drop it again"),
        ("good.png", None),
    ]
    assert list((tmp_path / "in").iterdir()) == []
