"""report.html and model_card.md: complete, self-contained, safe against hostile names."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation import conformal
from helper import NOTICE
from reporting import plots
from reporting.galleries import Gallery, GalleryItem
from reporting.html_report import write_report
from reporting.model_card import write_model_card
from reporting.wording import Context, describe_origin, list_limits
from tests.support.builders import Run, read_metrics

CONTEXT = Context(
    "slices of there", "slices of here", "Patients: known for all", "calibrated probabilities"
)
HOSTILE = "<script>alert('x')</script>"
PUBLISHED = ["Glioma", "Menin", "Tumor"]
CHECKPOINT: dict[str, Any] = {
    "model": "net",
    "start": "scratch",
    "best": {"epoch": 3},
    "preprocess": {"image_size": 32},
    "config": {"data": {"split_by": "group"}},
    "split": {"sha256": ["a", "b", "c"], "split": ["train", "train", "val"]},
}
BLANK = {
    "covered": 0.9,
    "accuracy": {"value": 0.4, "ci95": [0.3, 0.5]},
    "majority": 0.35,
    "brightness": None,
}
STRESS = {
    "clean": {"value": 0.75, "ci95": [0.6, 0.9]},
    "orientation_agreement": 0.97,
    "corruptions": {"blur": [{"accuracy": {"value": value / 10}} for value in range(5)]},
    "probes": {"blank_interior": BLANK, "matched_brightness": BLANK},
}


@pytest.fixture
def report(first_run: Run) -> dict[str, Any]:
    """The content of metrics.json of the run `first`, with known values and without notes."""
    known = {
        "notes": [],
        "accuracy": {"value": 0.75, "ci95": [0.5, 0.875]},
        "accuracy_per_patient": {"value": 0.625, "ci95": [0.25, 0.75]},
        "baselines": {"majority": 0.5, "brightness": 0.625},
    }
    return read_metrics(first_run.root, "first") | known


def write_page(folder: Path, report: dict[str, Any], context: Context = CONTEXT) -> str:
    write_report(folder / "report.html", report, folder / "plots", context)
    return (folder / "report.html").read_text("utf-8")


def write_card(folder: Path, report: dict[str, Any], *checkpoints: dict[str, Any]) -> str:
    write_model_card(folder / "model_card.md", report, checkpoints or [CHECKPOINT], CONTEXT)
    return (folder / "model_card.md").read_text("utf-8")


@pytest.fixture
def page(tmp_path: Path, report: dict[str, Any]) -> str:
    """A page with one plot, every section but the comparison, and hostile names."""
    plots.save(plots.build_figure("title", 4, 3), tmp_path / "plots/confusion_matrix.png")
    report["per_class"][HOSTILE] = report["per_class"].pop("Glioma")
    report |= {"run": HOSTILE, "stress": STRESS, "environment": {"device": HOSTILE}}
    return write_page(tmp_path, report)


# ---- report.html


def test_hostile_names_stay_text(page: str) -> None:
    assert "script" not in re.findall(r"<(\w+)", page)
    assert page.count("&lt;script&gt;") >= 3


def test_the_page_loads_nothing(page: str) -> None:
    sources, links = (re.findall(rf'{name}="([^"]*)"', page) for name in ("src", "href"))
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert links
    anchors = {f"#{anchor}" for anchor in re.findall(r'id="([^"]*)"', page)}
    assert set(links) <= {*anchors, "../index.html"}
    assert not [word for word in ("@import", "url(") if word in page]
    assert len(page) < 5_000_000


def test_the_page_states_metrics_baselines_and_limits(page: str) -> None:
    text = re.sub(r"<[^>]+>", " ", page)
    for words in (
        *(NOTICE, "no healthy class", "majority-class baseline 0.5000"),
        *("accuracy 0.7500 [", "brightness baseline 0.6250", "calibrated (temperature "),
        *("ECE without its bias 0", "if every group counts once", "AUGRC"),
        *("Prediction sets", "97.0%", "0.4000 [0.3000, 0.5000]", "slices of there"),
        *("accuracy per patient 0.6250 [0.2500, 0.7500]", "Patients: known for all."),
        *("recall per patient", "every patient counts once"),
    ):
        assert words in " ".join(text.split()), words
    assert all(re.search(r'alt="\w', image) for image in re.findall(r"<img[^>]*>", page))


def test_sections_without_content_are_left_out(tmp_path: Path, report: dict[str, Any]) -> None:
    report["operating_points"] = None
    report["conformal"] = dict.fromkeys(conformal.CONFORMAL_KEYS)
    report["calibration"]["temperature"] = None
    page = write_page(tmp_path, report)
    assert "not calibrated" in page
    for words in ("Prediction sets", "95 % specificity", "Robustness", "Comparison", "<img"):
        assert words not in page


def test_without_known_patients_nothing_is_stated_per_patient(
    tmp_path: Path, report: dict[str, Any]
) -> None:
    before = [write_page(tmp_path, report), write_card(tmp_path, report)]
    report |= {"n_patients": 0, "accuracy_per_patient": {"value": None, "ci95": None}}
    after = [write_page(tmp_path, report), write_card(tmp_path, report)]
    for known, unknown in zip(before, after, strict=True):
        assert "per patient" not in unknown
        assert unknown.count("undefined") == known.count("undefined")  # metrics of a class


def test_the_publisher_is_named_for_its_own_data_only() -> None:
    assert "10.17632" in describe_origin("data", PUBLISHED, phantom=False)
    assert describe_origin("data/phantom", PUBLISHED, True) == "generated phantoms of data/phantom"
    assert describe_origin("mine", ["A", "B"], phantom=False) == "slices of mine"
    for phantom in (False, True):
        named = any("Bangladesh" in text for text in list_limits(PUBLISHED, phantom))
        assert named == (not phantom)


# ---- model_card.md


def test_the_model_card(tmp_path: Path, report: dict[str, Any]) -> None:
    card = write_card(tmp_path, report)
    for words in (
        *(NOTICE, "net, started from scratch", "Best epoch 3,", "healthy", "Prediction sets"),
        *("Output: calibrated probabilities, of Glioma, Menin", "| accuracy | 0.7500 ["),
        *("brightness baseline, accuracy | 0.6250 |", "majority-class baseline, accuracy | 0.5000"),
        *("Training data: slices of there", "Evaluation data: slices of here", "| Menin | "),
        *("| accuracy per patient | 0.6250 [", "- Patients: known for all", "recall per patient |"),
        *("| ECE without its bias | 0", "(AUGRC; ", "if every group counts once"),
        *("Trained on 2 distinct images", "1 distinct val images; split by group", "SHA-256"),
    ):
        assert words in card, words
    assert "blanked" not in card  # robustness was not measured
    changes = {"stress": STRESS, "conformal": dict.fromkeys(conformal.CONFORMAL_KEYS)}
    card = write_card(tmp_path, report | changes)
    assert "Prediction sets" not in card
    for words in ("90.0% of the slices", "0.4000 [0.3000, 0.5000]", "0.3500", "undefined"):
        assert words in card


def test_the_card_of_several_networks_names_each(tmp_path: Path, report: dict[str, Any]) -> None:
    changes = {"model": "resnet18", "best": {"epoch": 7}, "preprocess": {"image_size": 64}}
    card = write_card(tmp_path, report, CHECKPOINT, CHECKPOINT | changes)
    for words in ("- net, ", "- resnet18, ", "2 networks, best epochs 3, 7", "32, 64 px"):
        assert words in card


def test_warnings_stand_above_the_metrics(tmp_path: Path, report: dict[str, Any]) -> None:
    report["notes"] = ["a remark", "PHANTOM: generated"]
    card = write_card(tmp_path, report)
    places = [card.index(text) for text in ("PHANTOM: generated", "| accuracy |", "a remark")]
    assert places == sorted(places)
    assert card.count("PHANTOM") == 1
    assert '<p class="warning">PHANTOM: generated' in write_page(tmp_path, report)


def test_names_in_the_card_stay_text(tmp_path: Path, report: dict[str, Any]) -> None:
    report["run"] = HOSTILE + "![x](http://a)"
    for key in ("per_class", "recall_per_patient"):
        report[key]["A | B"] = report[key].pop("Glioma")
    card = write_card(tmp_path, report)
    assert "\\![x\\](http://a)" in card
    assert "<script>" not in card
    row = next(line for line in card.splitlines() if line.startswith("| A"))
    assert "A \\| B" in row
    assert row.replace("\\|", "").count("|") == 9


def test_the_first_screen_answers_how_good_and_how_sure(
    tmp_path: Path, report: dict[str, Any]
) -> None:
    page = write_page(tmp_path, report)
    for words in (
        f"62.5% of {report['n_patients']} patients and 75.0% of {report['n_images']} slices are",
        "25.0% to 75.0% of patients and 50.0% to 87.5% of slices would be classified",
        "reaches 62.5% of the slices, the most frequent class 50.0%",
    ):
        assert words in page
    assert 'style="left:50.00%;width:37.50%"' in page  # the interval of the accuracy
    report["accuracy_per_patient"] = {"value": None, "ci95": None}
    report["accuracy"]["ci95"] = None
    page = write_page(tmp_path, report)
    assert f"<dd>75.0% of {report['n_images']} slices are classified correctly.</dd>" in page
    assert "too few groups for an interval" in page


def test_warnings_qualify_the_first_screen(tmp_path: Path, report: dict[str, Any]) -> None:
    report["notes"] = ["LEAKY SPLIT: split by image"]
    page = write_page(tmp_path, report)
    assert f"<dd>With care: see the warnings above. {CONTEXT.patients}.</dd>" in page
    report["notes"] = [CONTEXT.patients.upper()]
    shouted = dataclasses.replace(CONTEXT, patients=CONTEXT.patients.upper())
    assert "<dd>With care: see the warnings above.</dd>" in write_page(tmp_path, report, shouted)


def test_slices_to_check_open_larger(tmp_path: Path, report: dict[str, Any]) -> None:
    pixels = np.full((24, 24), 90, np.uint8)
    item = GalleryItem(pixels, np.ones((24, 24), np.float32), f"true {HOSTILE}\nname.png")
    gallery = Gallery("errors", "Errors of highest confidence", [item, item])
    path = tmp_path / "report.html"
    write_report(path, report, tmp_path / "plots", CONTEXT, [gallery])
    page = path.read_text("utf-8")
    assert page.count('<button type="button" class="slice">') == 2
    assert page.count("data:image/webp;base64,") == 2
    assert re.findall(r"<(dialog|script)\b", page) == ["dialog", "script"]
    assert "Errors of highest confidence" in page
