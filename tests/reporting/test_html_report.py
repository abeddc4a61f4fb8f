"""report.html and model_card.md: complete, self-contained, safe against hostile names."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation import calibration, metrics
from helper import NOTICE
from reporting import plots
from reporting.html_report import write_report
from reporting.model_card import write_model_card
from reporting.wording import Context, attribute

CONTEXT = Context("slices of there", "slices of here", "calibrated probabilities")
HOSTILE = "<script>alert('x')</script>"


def make_report(run: str = "run", class_name: str = "A") -> dict:
    labels = np.array([0, 0, 1, 1])
    logits = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    return dress(logits, labels, [class_name, "B"]) | {"run": run}


def dress(logits: np.ndarray, labels: np.ndarray, classes: list[str]) -> dict[str, Any]:
    """The content of metrics.json, as far as the page reads it."""
    fitted = calibration.fit_calibration(logits, labels, labels, classes)
    calibrated = calibration.apply_calibration(fitted, logits)
    assert calibrated.sets is not None
    assert calibrated.called is not None
    assert calibrated.unsure is not None
    measured = calibration.compute_calibration(calibrated.probs, labels)
    right = calibrated.probs.argmax(1) == labels
    return {
        **{"run": "run", "checkpoint": "session/run/best.pt", "split": "test", "data": "data"},
        **metrics.compute_metrics(calibrated.probs, labels, labels, labels, classes),
        "calibration": {**measured, "temperature": 1.5, "uncalibrated": measured},
        "conformal": calibration.compute_conformal(calibrated.sets, labels, classes),
        "referral": calibration.compute_referral(calibrated.unsure, right, labels),
        "operating_points": calibration.compute_operating_points(
            calibrated.called, labels, labels, classes
        ),
        "baselines": {"majority": 0.5, "brightness": 0.625},
        "provenance": {"split_sha256": "abc", "weights_sha256": "def"},
        "environment": {"python": "3", "device": HOSTILE},
    }


CHECKPOINT = {
    "model": "net",
    "start": "scratch",
    "best": {"epoch": 3},
    "preprocess": {"image_size": 32},
    "config": {"data": {"split_by": "group"}},
    "split": {"sha256": ["a", "b", "c"], "split": ["train", "train", "val"]},
}


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


@pytest.fixture
def page(tmp_path: Path) -> str:
    report = make_report(HOSTILE, HOSTILE)
    confusion = np.array(report["confusion_matrix"])
    plots.plot_confusion_matrix(confusion, ["A", "B"], tmp_path / "plots/confusion_matrix.png")
    write_report(tmp_path / "report.html", report, tmp_path / "plots", CONTEXT)
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
    return (tmp_path / "report.html").read_text("utf-8")


def test_hostile_names_stay_text(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    assert "script" not in {tag for tag, _ in tags.seen}
    assert page.count("&lt;script&gt;") >= 3


def test_nothing_is_fetched(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    sources = [attrs["src"] for _, attrs in tags.seen if "src" in attrs]
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources if source)
    links = [attrs["href"] or "" for _, attrs in tags.seen if "href" in attrs]
    anchors = {f"#{attrs['id']}" for _, attrs in tags.seen if "id" in attrs}
    assert links
    assert set(links) <= anchors  # within the page alone
    assert "@import" not in page
    assert "url(" not in page


def test_the_page_says_what_it_must(page: str) -> None:
    text = re.sub(r"<[^>]+>", " ", page)
    for words in (NOTICE, "no healthy one", "0.7500", "0.6250"):
        assert words in text
    images = Tags()
    images.feed(page)
    assert all(attrs.get("alt") for tag, attrs in images.seen if tag == "img")


def test_the_publisher_is_named_for_its_classes_alone(tmp_path: Path) -> None:
    labels = np.arange(6) % 3
    report = dress(np.eye(3)[labels], labels, ["Glioma", "Menin", "Tumor"])
    for notes, named in (([], True), (["PHANTOM: made up"], False)):
        write_report(tmp_path / "a.html", report | {"notes": notes}, tmp_path, CONTEXT)
        page = (tmp_path / "a.html").read_text("utf-8")
        assert ("No class holds healthy brains" in page) == named


def write_card(path: Path, report: dict[str, Any], *checkpoints: dict[str, Any]) -> str:
    write_model_card(path, report, checkpoints or [CHECKPOINT], CONTEXT)
    return path.read_text("utf-8")


def test_the_model_card(tmp_path: Path) -> None:
    card = write_card(tmp_path / "model_card.md", make_report())
    for words in (
        *(
            NOTICE,
            "net, started from scratch",
            "Best epoch 3,",
            "output: calibrated probabilities, of A, B",
            "healthy",
        ),
        *(
            "| accuracy | 0.7500 [",
            "accuracy of brightness alone | 0.6250 |",
            "slices of there",
            "on: slices of here",
        ),
        *("trained on 2 distinct", "of val; divided by group", "| B | ", "def", "Prediction sets"),
    ):
        assert words.lower() in card.lower()
    assert "blanked" not in card  # no stress was measured


def test_the_card_of_several_networks_names_each(tmp_path: Path) -> None:
    other = CHECKPOINT | {
        "model": "resnet18",
        "best": {"epoch": 7},
        "preprocess": {"image_size": 64},
    }
    card = write_card(tmp_path / "card.md", make_report(), CHECKPOINT, other)
    for words in ("- net, ", "- resnet18, ", "2 networks, best epochs 3, 7", "32, 64 px"):
        assert words in card


def test_the_card_tells_of_no_sets_where_none_were_fitted(tmp_path: Path) -> None:
    report = make_report()
    assert "Prediction sets" in write_card(tmp_path / "card.md", report)
    report["conformal"] = dict.fromkeys(calibration.CONFORMAL_KEYS)
    assert "Prediction sets" not in write_card(tmp_path / "card.md", report)


def test_the_publisher_is_named_for_its_own_folder() -> None:
    published = ["Glioma", "Menin", "Tumor"]
    assert "10.17632" in attribute("data", published, phantom=False)
    assert (
        attribute("data/phantom", published, phantom=True) == "generated phantoms of data/phantom"
    )
    assert attribute("mine", ["A", "B"], phantom=False) == "slices of mine"


def test_warnings_stand_above_the_figures_of_the_card(tmp_path: Path) -> None:
    report = make_report() | {"notes": ["a remark", "PHANTOM: made up"]}
    card = write_card(tmp_path / "card.md", report)
    assert card.index("PHANTOM: made up") < card.index("| accuracy |") < card.index("a remark")
    assert card.count("PHANTOM") == 1


def test_the_card_tells_stress_beside_what_is_no_skill(tmp_path: Path) -> None:
    blank = {"covered": 0.9, "accuracy": {"value": 0.4, "ci95": [0.3, 0.5]}, "majority": 0.35}
    probes = {"blank_interior": blank | {"brightness": None}}
    report = make_report() | {"stress": {"probes": probes, "position_agreement": 0.97}}
    card = write_card(tmp_path / "card.md", report)
    for words in ("90.0% of the slices", "0.4000 [0.3000, 0.5000]", "reach 0.3500", "undefined"):
        assert words in card
    assert "proves no absence" in card


def test_names_in_the_card_stay_text(tmp_path: Path) -> None:
    card = write_card(tmp_path / "card.md", make_report(HOSTILE + "![x](http://a)", "A | B"))
    assert "\\![x\\](http://a)" in card
    assert "<script>" not in card
    row = next(line for line in card.splitlines() if line.startswith("| A"))
    assert "A \\| B" in row
    assert row.replace("\\|", "").count("|") == 7
