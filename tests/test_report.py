"""report.html and model_card.md: complete, self-contained, safe against hostile names."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from assessment import metrics, plots
from assessment.report import write_model_card, write_report
from helper import NOTICE

HOSTILE = "<script>alert('x')</script>"


def make_report(run: str = "run", class_name: str = "A") -> dict:
    labels = np.array([0, 0, 1, 1])
    logits = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    figures = metrics.compute_metrics(logits, labels, labels, labels, [class_name, "B"])
    figures["baselines"] = {"majority": 0.5, "brightness": 0.625}
    environment = {"python": "3", "device": HOSTILE}
    return {"run": run, "split": "test", "data": "data", **figures, "environment": environment}


CHECKPOINT = {
    "model": "net",
    "start": "scratch",
    "best": {"epoch": 3},
    "preprocess": {"image_size": 32},
    "config": {"data": {"split_by": "group"}},
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
    write_report(tmp_path / "report.html", report, tmp_path / "plots")
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
    assert not [attrs for _, attrs in tags.seen if "href" in attrs]
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
    report = make_report() | metrics.compute_metrics(
        np.eye(3)[labels], labels, labels, labels, ["Glioma", "Menin", "Tumor"]
    )
    report["baselines"] = {"majority": 0.5, "brightness": 0.5}
    for notes, named in (([], True), (["PHANTOM: made up"], False)):
        write_report(tmp_path / "a.html", report | {"notes": notes}, tmp_path)
        page = (tmp_path / "a.html").read_text("utf-8")
        assert ("10.17632" in page) == named
        assert ("No class holds healthy brains" in page) == named


def test_the_model_card(tmp_path: Path) -> None:
    write_model_card(tmp_path / "model_card.md", make_report(), [CHECKPOINT])
    card = (tmp_path / "model_card.md").read_text("utf-8")
    for words in (NOTICE, "| accuracy | 0.7500 |", "best epoch 3", "healthy", "scratch"):
        assert words in card
