"""The words and pictures of the page, without a browser."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from helper import UserError
from imaging.grayscale import ImageError
from inference.predictor import SliceClassifier, Verdict, load_classifier
from tests.support.builders import Run
from webapp import page_content
from webapp.user_session import Desk

NEAREST = (("aa", "Glioma"), ("bb", "<b>"))


@pytest.fixture
def classifier(trained: Run) -> SliceClassifier:
    return load_classifier([Path("session/first/best.pt")], "cpu", 1)


def make_verdict(
    chosen: tuple[str, ...] | None,
    unlike: bool | None = False,
    nearest: tuple[tuple[str, str], ...] = NEAREST,
) -> Verdict:
    refer = None if chosen is None else len(chosen) != 1
    return Verdict(np.array([0.7, 0.2, 0.1]), "Glioma", 0.7, chosen, refer, unlike, 0.5, nearest)


def describe(classifier: SliceClassifier, verdict: Verdict, **values: object) -> str:
    own = Desk(verdict=verdict, slice=classifier.preprocess(np.zeros((9, 9), np.uint8)))
    for name, value in {"name": "a.png", **values}.items():
        setattr(own, name, value)
    return page_content.describe_answer(own, classifier)


def test_one_class_stands_alone(classifier: SliceClassifier) -> None:
    words = describe(classifier, make_verdict(("Glioma",)))
    assert "One class stands alone" in words
    assert "It can still be wrong" in words
    assert "<p class='likeliest'>Glioma 70.0%</p>" in words
    assert "It could be Glioma. For 95 of 100 slices" in words
    assert "knows no healthy brain" in words
    assert "a.png</h2>" in words


def test_doubt_is_referred(classifier: SliceClassifier) -> None:
    words = describe(classifier, make_verdict(("Glioma", "Menin")))
    assert "Refer to a radiologist" in words
    assert "does not tell the classes apart" in words
    assert "It could be Glioma or Menin." in words
    words = describe(classifier, make_verdict(()))
    assert "Refer to a radiologist" in words
    assert "No class is left: it resembles none" in words


def test_strangers_are_not_to_be_believed(classifier: SliceClassifier) -> None:
    words = describe(classifier, make_verdict(("Glioma",), unlike=True))
    assert words.index("Do not believe") < words.index("70.0%")
    assert "stands alone" not in words
    words = describe(classifier, make_verdict(("Glioma", "Menin"), unlike=True))
    assert "Refer to a radiologist" not in words
    assert "It could be Glioma or Menin." in words


def test_what_was_not_fitted_is_said(classifier: SliceClassifier) -> None:
    words = describe(classifier, make_verdict(None, unlike=None))
    assert "There is no prediction set" in words
    assert "is not known" in words
    assert "Refer" not in words
    assert "stands alone" not in words


def test_a_frame_says_which_it_is(classifier: SliceClassifier) -> None:
    words = describe(classifier, make_verdict(None), name="a.dcm", frame=2, n_frames=3)
    assert "a.dcm, frame 2 of 3</h2>" in words


def test_no_box_is_told_by_its_colour_alone(classifier: SliceClassifier) -> None:
    words = describe(classifier, make_verdict(("Glioma", "Menin"), unlike=True))
    assert words.count("class='mark'") == 1
    assert (
        f"<div class='box bad'><b class='mark' aria-hidden='true'>{page_content.MARKS['bad']}"
        in words
    )
    assert len(set(page_content.MARKS.values())) == len(page_content.MARKS)


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
def test_an_error_is_one_line_without_the_file_s_name(error: Exception, words: str) -> None:
    told = page_content.describe_error(error)
    assert words in told
    assert "<script>" not in told
    assert "Person" not in told
    assert told.count("box bad") == 1


def test_names_are_escaped(classifier: SliceClassifier) -> None:
    assert (
        "<i>" not in describe(classifier, make_verdict(None), name="<i>.png").partition("</h2>")[0]
    )
    assert "<td>&lt;i&gt;.png</td>" in page_content.show_table("file\n<i>.png\n")
    assert "<b></figcaption>" not in page_content.TrainingSlices(Path(), {}).describe(
        make_verdict(None)
    )


def test_the_top_says_what_must_be_read_first(classifier: SliceClassifier) -> None:
    assert "PHANTOM" in page_content.describe_top(classifier)
    notice = page_content.describe_notice(classifier)
    assert "not a medical device" in notice
    assert "knows no healthy brain: it must name a tumour for any picture" in notice


def test_other_classes_are_not_called_tumours(classifier: SliceClassifier) -> None:
    classifier.classes = ["Glioma", "Healthy"]
    assert "healthy" not in page_content.describe_notice(classifier)
    assert "must name one of its classes" in page_content.describe_notice(classifier)


def test_the_picture_is_in_the_page_itself(classifier: SliceClassifier) -> None:
    own = Desk()
    assert "<img" not in page_content.show_picture(own, 0.5)
    assert page_content.describe_heatmap(own) == ""
    own.slice, own.class_name = classifier.preprocess(np.full((9, 9), 100, np.uint8)), "Menin"
    plain = page_content.show_picture(own, 0.5)
    assert plain.startswith('<img src="data:image/png;base64,')
    assert 'alt="The slice"' in plain
    assert "heat map for Menin is being made" in page_content.describe_heatmap(own)
    own.heatmaps["Menin"] = np.ones((9, 9), np.float32)
    shown = [page_content.show_picture(own, strength) for strength in (0, 0.5, 1)]
    assert len(set(shown)) == 3
    assert all('alt="The slice under the heat map for Menin"' in each for each in shown)
    assert "no outline of a tumour" in page_content.describe_heatmap(own)


def test_the_nearest_slices_are_shown_where_they_are_at_hand(
    classifier: SliceClassifier, trained: Run
) -> None:
    training = page_content.find_training(classifier, Path("data/phantom"))
    digest, path = next(iter(training.paths.items()))
    verdict = make_verdict(None, nearest=((digest, "Menin"), ("gone", "Glioma")))
    words = training.describe(verdict)
    assert words.count("<img") == 1
    assert "1 of 2 pictures are not at hand in data/phantom" in words
    assert words.count("<figcaption>") == 2
    assert 'alt="Training slice, Menin"' in words
    assert "keeps no training slices" in training.describe(make_verdict(None, nearest=()))
    assert training.describe(None) == ""
    copy = Path("copy")
    (copy / path).parent.mkdir(parents=True)
    shutil.copy(Path("data/phantom") / path, copy / path)
    verdict = make_verdict(None, nearest=((digest, "Menin"),))
    assert "<img" in page_content.TrainingSlices(copy, training.paths).describe(verdict)
    with (copy / path).open("ab") as stream:
        stream.write(b"changed")
    assert "<img" not in page_content.TrainingSlices(copy, training.paths).describe(verdict)


def test_the_run_s_own_folder_may_be_gone_but_not_the_one_that_is_named(
    classifier: SliceClassifier,
) -> None:
    assert page_content.find_training(classifier, None).paths
    classifier.members[0].kept["data"] = "gone"
    assert page_content.find_training(classifier, None).paths == {}
    with pytest.raises(UserError, match="gone"):
        page_content.find_training(classifier, Path("gone"))


def test_the_name_of_a_table_warns(classifier: SliceClassifier) -> None:
    assert page_content.name_table(classifier) == "predictions-research-use-only-phantom.csv"
    classifier.members[0].kept["config"]["data"]["split_by"] = "image"
    assert (
        page_content.name_table(classifier)
        == "predictions-research-use-only-phantom-leaky-split.csv"
    )


def test_the_table_holds_what_the_csv_holds() -> None:
    text = "file,set,error\na.png,A|B,\nb.png,,no picture\n"
    table = page_content.show_table(text)
    assert table.count("<tr>") == 3
    assert "<td>A|B</td>" in table
    rows: list[dict] = [
        {"refer": True, "unlike": False, "error": None},
        {"refer": None, "unlike": None, "error": "no picture"},
    ]
    assert (
        "2 rows: 1 to refer, 0 unlike those of training, 1 not readable"
        in page_content.summarise(rows)
    )


def test_the_table_warns_before_it_names_a_class() -> None:
    text = (
        "file,predicted,confidence,set,refer,unlike,error\n"
        "a.png,Glioma,0.9,Glioma,True,True,\n"
        "b.png,Menin,0.9,Menin,False,False,\n"
        "c.png,Tumor,0.5,,True,False,\n"
        "d.png,,,,,,no picture\n"
    )
    head, *rows = page_content.show_table(text).split("<tr")[1:]
    names = ["file", "unlike", "refer", "error", "predicted", "confidence", "set"]
    assert [part.partition("<")[0] for part in head.split("<th scope='col'>")[1:]] == names
    cells = [[cell.partition("<")[0] for cell in row.split("<td>")[1:]] for row in rows]
    assert cells == [
        ["a.png", "✕ unlike: do not believe", "! refer", "", "Glioma", "0.9", "Glioma"],
        ["b.png", "no", "no", "", "Menin", "0.9", "Menin"],
        ["c.png", "no", "! refer", "", "Tumor", "0.5", ""],
        ["d.png", "", "", "no picture", "", "", ""],
    ]
    assert [row.startswith(" class='bad'") for row in rows] == [True, False, False, False]
