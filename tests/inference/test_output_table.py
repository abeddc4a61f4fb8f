"""Rows, counts and the file of predict.py's table."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd

from inference import output_table
from inference.image_stream import Picture
from inference.predictor import Prediction

CLASSES = ["A", "B"]
PICTURE: Picture = Picture(Path("in/1.dcm"), patient="p1")
PREDICTION = Prediction(np.array([0.3, 0.7]), "B", 0.7, ("B",), False, False, 0.5, ())


def test_a_row_has_the_columns_of_the_contract() -> None:
    row = output_table.build_row(PICTURE, PREDICTION, CLASSES)
    assert list(row) == output_table.list_columns(CLASSES)
    assert row == {
        "file": "in/1.dcm",
        "patient": "p1",
        "predicted": "B",
        "confidence": 0.7,
        "p_A": 0.3,
        "p_B": 0.7,
        "prediction_set": ["B"],
        "needs_review": False,
        "out_of_distribution": False,
        "error": None,
    }
    unreadable = output_table.build_row(Picture(Path("2.png"), error="empty file"), None, CLASSES)
    assert list(unreadable) == output_table.list_columns(CLASSES)
    assert {name: value for name, value in unreadable.items() if value is not None} == {
        "file": "2.png",
        "patient": "",
        "error": "empty file",
    }


def test_counts_distinguish_none_from_not_fitted() -> None:
    counts = output_table.Counts()
    row = {"needs_review": True, "out_of_distribution": False, "error": None}
    empty = {"needs_review": None, "out_of_distribution": None}
    for each in (row, {**row, "needs_review": False}, {**empty, "error": "truncated"}):
        counts.add(each)
    assert counts.describe() == "1 need review, 0 out of distribution, 1 unreadable"
    counts.add({**empty, "error": None})
    assert counts.describe() == "review not fitted, OOD not fitted, 1 unreadable"
    assert (counts.rows, counts.errors) == (4, 1)


def test_csv_joins_sets_and_escapes_formulas() -> None:
    stream = io.StringIO()
    table = output_table.TableWriter(stream, CLASSES)
    both = {**output_table.build_row(PICTURE, PREDICTION, CLASSES), "prediction_set": CLASSES}
    table.write([both, {**both, "file": "=1+1.png", "prediction_set": None}])
    written = pd.read_csv(io.StringIO(stream.getvalue()), keep_default_na=False)
    assert written["prediction_set"].tolist() == ["A|B", ""]
    assert written["file"].tolist() == ["in/1.dcm", "'=1+1.png"]


def test_json_lines_keep_lists_and_nulls(tmp_path: Path) -> None:
    path = tmp_path / "out" / "table.jsonl"
    row = output_table.build_row(PICTURE, PREDICTION, CLASSES)
    with output_table.open_table(path, CLASSES) as table:
        table.write([row])
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == [row]
