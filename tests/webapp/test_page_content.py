"""The HTML of the page."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helper import UserError
from imaging.grayscale import ImageError
from inference.predictor import Prediction, SlicePredictor
from tests.support.builders import Patch, Run
from webapp import page_content
from webapp.page_content import TrainingSlices
from webapp.user_session import Session

NEAREST = (("aa", "Glioma"), ("bb", "<b>"))


def make_prediction(
    prediction_set: tuple[str, ...] | None, is_ood: bool | None = False, nearest: Any = NEAREST
) -> Prediction:
    review = None if prediction_set is None else len(prediction_set) != 1
    probs = np.array([0.7, 0.2, 0.1])
    return Prediction(probs, "Glioma", 0.7, prediction_set, review, is_ood, 0.5, nearest)


def describe(predictor: SlicePredictor, prediction: Prediction, name: str = "a.png") -> str:
    session = Session(name=name, prediction=prediction, frame=2, n_frames=3)
    return page_content.describe_prediction(session, predictor)


BOTH = ("Glioma", "Menin")
TEXTS = [  # prediction set, out of distribution, texts that are present, texts that are not
    (("Glioma",), False, "box good|can still be wrong|It could be Glioma. For 95", "box review"),
    (BOTH, False, "Needs review|Several classes|It could be Glioma or Menin.", "box good|box bad"),
    ((), False, "Needs review|prediction set is empty", "box good|box bad"),
    (("Glioma",), True, "box bad|Do not trust", "box good"),
    (BOTH, True, "box bad|Do not trust|It could be Glioma or Menin.", "Needs review|box good"),
    (None, None, "no prediction set|no detector was fitted", "review|box"),
]


def test_a_note_on_the_brightness_is_shown(predictor: SlicePredictor) -> None:
    session = Session(name="a.png", prediction=make_prediction(("Glioma",)))
    assert "Brightness" not in page_content.describe_prediction(session, predictor)
    session.note = "values < 0"
    assert "Values &lt; 0." in page_content.describe_prediction(session, predictor)


@pytest.mark.parametrize(("prediction_set", "is_ood", "present", "absent"), TEXTS)
def test_a_prediction_with_its_warnings(
    predictor: SlicePredictor, prediction_set: Any, is_ood: bool | None, present: str, absent: str
) -> None:
    html = describe(predictor, make_prediction(prediction_set, is_ood))
    for text in (*present.split("|"), "'predicted'>Glioma 70.0%", "a.png, frame 2 of 3", "healthy"):
        assert text in html
    for text in absent.split("|"):
        assert text not in html
    assert html.count("class='mark'") == html.count("class='box")  # never by colour alone
    if is_ood:
        assert html.index("Do not trust") < html.index("70.0%")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ImageError("not a JPEG"), "Not a JPEG."),
        (ImageError("<script>alert(1)</script>"), "&lt;script&gt;"),
        (UserError("best.pt: its logits are NaN"), "best.pt: its logits are NaN."),
        (FileNotFoundError(2, "No such file", "/tmp/Person.png"), "No such file. Try another file"),
        (RuntimeError("/tmp/Person.png"), "RuntimeError. Try another file"),
    ],
)
def test_an_error_does_not_contain_the_file_name(error: Exception, words: str) -> None:
    html = page_content.describe_error(error)
    assert words in html
    assert "<script>" not in html
    assert "Person" not in html
    assert html.count("box bad") == 1


def test_names_are_escaped(predictor: SlicePredictor) -> None:
    html = describe(predictor, make_prediction(None), "<i>.png")
    assert "<i>" not in html.partition("</h2>")[0]
    assert "<td>&lt;i&gt;.png</td>" in page_content.show_table("file\n<i>.png\n")
    nearest = TrainingSlices(Path(), {}).describe(make_prediction(None))
    assert "<b></figcaption>" not in nearest


def test_warnings_and_notice(predictor: SlicePredictor) -> None:
    assert "PHANTOM" in page_content.describe_top(predictor)
    notice = page_content.describe_notice(predictor)
    assert "not a medical device" in notice
    assert "There is no healthy class: the model names a tumour for any image" in notice
    other = SlicePredictor(predictor.members, predictor.fitted)
    other.classes = ["Glioma", "Healthy"]
    notice = page_content.describe_notice(other)
    assert "healthy" not in notice
    assert "names one of its classes for any image" in notice


def test_the_image_is_inline(predictor: SlicePredictor) -> None:
    session = Session()
    assert "<img" not in page_content.show_picture(session, 0.5)
    assert page_content.describe_heatmap(session, predictor) == ""
    session.slice = predictor.preprocess(np.full((9, 9), 100, np.uint8))
    session.class_name = "Menin"
    plain = page_content.show_picture(session, 0.5)
    assert plain.startswith('<img src="data:image/png;base64,')
    assert 'alt="The slice"' in plain
    assert "heat map for Menin is being computed" in page_content.describe_heatmap(
        session, predictor
    )
    session.heatmaps["Menin"] = np.ones((9, 9), np.float32)
    shown = [page_content.show_picture(session, strength) for strength in (0, 0.5, 1)]
    assert len(set(shown)) == 3
    assert all('alt="The slice under the heat map for Menin"' in each for each in shown)
    described = page_content.describe_heatmap(session, predictor)
    assert "not an outline of a tumour" in described
    assert "not measured" in described


def test_nearest_slices_are_shown_if_unchanged(predictor: SlicePredictor, trained: Run) -> None:
    training = page_content.find_training(predictor, Path("data/phantom"))
    digest, path = next(iter(training.paths.items()))
    html = training.describe(make_prediction(None, nearest=((digest, "Menin"), ("gone", "Glioma"))))
    assert html.count("<img") == 1
    assert "1 of 2 images are not in data/phantom" in html
    assert html.count("<figcaption>") == 2
    assert 'alt="Training slice, Menin"' in html
    assert "no training slices" in training.describe(make_prediction(None, nearest=()))
    changed = Path("changed")
    (changed / path).parent.mkdir(parents=True)
    shutil.copy(Path("data/phantom") / path, changed / path)
    prediction = make_prediction(None, nearest=((digest, "Menin"),))
    assert "<img" in TrainingSlices(changed, training.paths).describe(prediction)
    with (changed / path).open("ab") as stream:
        stream.write(b"changed")
    assert "<img" not in TrainingSlices(changed, training.paths).describe(prediction)


def test_only_a_named_data_folder_must_exist(
    predictor: SlicePredictor, trained: Run, monkeypatch: Patch
) -> None:
    assert page_content.find_training(predictor, None).paths
    monkeypatch.setitem(predictor.members[0].checkpoint, "data", "gone")
    assert page_content.find_training(predictor, None).paths == {}
    with pytest.raises(UserError, match="gone"):
        page_content.find_training(predictor, Path("gone"))


def test_the_table_name_has_the_warnings(predictor: SlicePredictor, monkeypatch: Patch) -> None:
    monkeypatch.setitem(predictor.members[0].checkpoint["config"]["data"], "split_by", "image")
    name = page_content.name_table(predictor)
    assert name == "predictions-research-use-only-phantom-leaky-split.csv"


def test_the_table_shows_warnings_before_the_class() -> None:
    text = (
        "file,patient,predicted,prediction_set,needs_review,out_of_distribution,error\n"
        "a.png,,Glioma,Glioma,True,True,\n"
        "b.png,p1,Menin,Menin|Tumor,False,False,\n"
        "c.png,,,,,,not an image\n"
    )
    head, *rows = page_content.show_table(text).split("<tr")[1:]
    assert [part.partition("<")[0] for part in head.split("<th scope='col'>")[1:]] == [
        *("file", "out_of_distribution", "needs_review", "error"),
        *("patient", "predicted", "prediction_set"),
    ]
    cells = [[cell.partition("<")[0] for cell in row.split("<td>")[1:]] for row in rows]
    assert cells == [
        ["a.png", "✕ yes: do not trust", "! yes", "", "", "Glioma", "Glioma"],
        ["b.png", "no", "no", "", "p1", "Menin", "Menin|Tumor"],
        ["c.png", "", "", "not an image", "", "", ""],
    ]
    assert [row.startswith(" class='bad'") for row in rows] == [True, False, False]

    row = {"needs_review": True, "out_of_distribution": False, "error": None}
    summary = page_content.summarise([row])
    assert "1 rows: 1 need review, 0 out of distribution, 0 unreadable" in summary
