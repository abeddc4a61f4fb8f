"""The words and pictures of the page, without a browser."""

from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from fixtures_dicom import build_dataset, encode_dataset
from PIL import Image

import page
from classifier import SliceClassifier, Verdict, load_classifier
from imaging.grey import ImageError

NEAREST = (("aa", "Glioma"), ("bb", "<b>"))


@pytest.fixture
def classifier(trained: Run) -> SliceClassifier:
    return load_classifier([Path("session/first/best.pt")], "cpu", 1)


def describe(classifier: SliceClassifier, chosen: tuple[str, ...] | None, unlike: bool) -> str:
    refer = None if chosen is None else len(chosen) != 1
    probs = np.array([0.7, 0.2, 0.1])
    verdict = Verdict(probs, "Glioma", 0.7, chosen, refer, unlike, 0.5, NEAREST)
    fitted = classifier.fit(np.zeros((9, 9), np.uint8))
    return page.describe_shown(page.Shown(fitted, verdict), classifier)


def test_one_class_stands_alone(classifier: SliceClassifier) -> None:
    words = describe(classifier, ("Glioma",), False)
    assert "One class stands alone" in words
    assert "It can still be wrong" in words
    assert "70.0%" in words
    assert "knows no healthy brain" in words
    assert "not a medical device" in words


def test_doubt_is_referred_and_strangers_are_not_to_be_believed(
    classifier: SliceClassifier,
) -> None:
    words = describe(classifier, ("Glioma", "Menin"), False)
    assert "Refer to a radiologist" in words
    assert "Glioma and Menin cannot be told apart" in words
    assert "resembles none of the classes" in describe(classifier, (), False)
    stranger = describe(classifier, ("Glioma",), True)
    assert "Do not believe" in stranger
    assert "stands alone" not in stranger


def test_what_comes_from_outside_is_escaped() -> None:
    words = page.describe_failure(ImageError("<script>alert(1)</script>"))
    assert "<script>" not in words
    assert "&lt;script&gt;" in words


def test_the_top_says_what_must_be_read_first(classifier: SliceClassifier) -> None:
    top = page.describe_top(classifier)
    assert top.index("not a medical device") < top.index("PHANTOM")


def test_frames_are_counted_and_read_one_by_one(tmp_path: Path) -> None:
    frames = np.stack([np.full((4, 4), level, np.uint8) for level in (0, 100, 255)])
    path = tmp_path / "several.dcm"
    path.write_bytes(encode_dataset(build_dataset(frames, n_frames=3)))
    assert page.count_frames(path) == 3
    assert page.read_frame(path, 2)[0, 0] == 100
    with pytest.raises(ImageError, match="it has no frame 4"):
        page.read_frame(path, 4)


def test_too_large_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_FILE_MIB", 0)
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(ImageError, match="over the limit of 0 MiB a file"):
        page.count_frames(tmp_path / "a.png")


def test_nearest_slices_are_shown_where_they_are_at_hand(classifier: SliceClassifier) -> None:
    training = page.TrainingSlices(Path("data/phantom"))
    digest = next(iter(training.paths))
    verdict = Verdict(np.ones(3) / 3, "Menin", 1 / 3, None, None, None, None, ((digest, "Menin"),))
    ((pixels, label),) = training.show(verdict)
    assert pixels.shape == (page.SIDE_PX, page.SIDE_PX)
    assert label == "Menin"
    elsewhere = page.TrainingSlices(Path("nowhere"))
    assert elsewhere.show(verdict) == []
    assert "not at hand" in elsewhere.describe(verdict)


def test_files_become_rows_under_the_names_they_were_dropped_with(
    classifier: SliceClassifier, tmp_path: Path
) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "x1.png")
    (tmp_path / "x2.png").write_text("no picture")
    rows = page.judge_files(
        classifier, [(tmp_path / "x1.png", "mine.png"), (tmp_path / "x2.png", "yours.png")]
    )
    assert [row["file"] for row in rows] == ["mine.png", "yours.png"]
    assert rows[0]["error"] is None
    assert "not a JPEG" in rows[1]["error"]
