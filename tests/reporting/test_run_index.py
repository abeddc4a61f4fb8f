"""The list of all runs: order, links, and folders that are not readable."""

import json
import os
import re
from pathlib import Path

from reporting.run_index import write_index

METRICS = {
    "split": "test",
    "n_images": 70,
    "accuracy": {"value": 0.9, "ci95": [0.8, 0.95]},
    "accuracy_per_slice": {"value": 0.8, "ci95": None},
    "accuracy_per_patient": {"value": None, "ci95": None},
    "f1_macro": {"value": 0.7, "ci95": [0.5, 0.8]},
    "baselines": {"brightness": 0.6, "majority": 0.4},
}


def add_run(folder: Path, name: str, metrics: str, time_s: int) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "metrics.json").write_text(metrics)
    (folder / name / "report.html").write_text("")
    os.utime(folder / name / "report.html", (time_s, time_s))


def test_runs_are_listed_by_time_with_their_metrics(tmp_path: Path) -> None:
    add_run(tmp_path, "old", json.dumps(METRICS), 1000)
    add_run(tmp_path, "<b>new & odd", json.dumps(METRICS), 2000)
    add_run(tmp_path, "damaged", "{", 500)
    (tmp_path / "no run").mkdir()
    write_index(tmp_path)
    page = (tmp_path / "index.html").read_text("utf-8")
    rows = re.findall(r"<tr><td>.*?</tr>", page)
    assert [re.search(r'href="([^"]*)"', row).group(1) for row in rows] == [  # type: ignore[union-attr]
        "%3Cb%3Enew%20%26%20odd/report.html",
        "old/report.html",
        "damaged/report.html",
    ]
    assert "<b>" not in page
    for text in ("0.9000 [0.8000,\N{NO-BREAK SPACE}0.9500]", "undefined", "0.6000", "70"):
        assert text in rows[1]
    assert rows[2].count("–") == 7


def test_a_second_run_joins_the_list(tmp_path: Path) -> None:
    for number in range(2):
        add_run(tmp_path, f"run {number}", json.dumps(METRICS), number)
        write_index(tmp_path)
    assert (tmp_path / "index.html").read_text("utf-8").count("report.html") == 2
