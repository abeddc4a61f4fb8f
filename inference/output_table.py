"""The table of predict.py: its columns, rows, counts and the file that it is written to."""

import contextlib
import csv
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from evaluation.thresholds import Thresholds
from helper import NOTICE, UserError, log
from inference.image_stream import Picture
from inference.predictor import Prediction, SlicePredictor

Row = dict[str, Any]
DIGITS = 6
PARTIAL_SUFFIX = ".part"
COLUMN_NOTES = (
    "patient: pseudonym of the patient number in a DICOM file, the same in every table; empty "
    "for other formats. A pseudonym can be traced back by trying all numbers: handle it as "
    "patient data. In the row of a patient who was found by folders, it is the folder.",
    "confidence: probability of the predicted class, the most probable one unless a THRESHOLD is "
    "named above.",
    "A file name that ends with #seriesN (… slices) or #patient (… slices) is a row for a series "
    "or a patient.",
    "prediction_set: classes that cannot be ruled out. needs_review: a human should check it, as "
    "the set does not hold the predicted class alone or the image is out of distribution. "
    "out_of_distribution: the image differs from the training images; do not trust its prediction.",
    "Empty cells: not fitted, unreadable image (see error), or empty set.",
)


# ---- rows


def list_columns(classes: list[str]) -> list[str]:
    """Return the columns of the table."""
    return [
        *("file", "patient", "predicted", "confidence"),
        *(f"p_{name}" for name in classes),
        *("prediction_set", "needs_review", "out_of_distribution", "error"),
    ]


def build_row(picture: Picture, prediction: Prediction | None, classes: list[str]) -> Row:
    """Return the row of an image; values that do not exist are None.

    Args:
        picture: The image.
        prediction: None for an unreadable image.
        classes: In the order of the probabilities.
    """
    name = {"file": picture.name, "patient": picture.patient}
    if prediction is None:
        return {**dict.fromkeys(list_columns(classes)), **name, "error": picture.error}
    in_set = prediction.prediction_set
    return {
        **name,
        **_list_probs(prediction.probs, classes, prediction.predicted),
        "prediction_set": None if in_set is None else list(in_set),
        "needs_review": prediction.needs_review,
        "out_of_distribution": prediction.out_of_distribution,
        "error": None,
    }


def describe_probs(probs: NDArray[np.float64], rule: Thresholds) -> Row:
    """Return the cells that follow from probabilities [K]: class, confidence, each probability."""
    classes = list(rule.classes)
    return _list_probs(probs, classes, classes[int(rule.predict(probs[None])[0])])


def _list_probs(probs: NDArray[np.float64], classes: list[str], predicted: str) -> Row:
    cells = {
        f"p_{name}": round(float(prob), DIGITS) for name, prob in zip(classes, probs, strict=True)
    }
    return {"predicted": predicted, "confidence": cells[f"p_{predicted}"], **cells}


class Counts:
    """Numbers of rows, of unreadable images, and of images by flag (True, False, None)."""

    def __init__(self) -> None:
        self.rows = self.errors = 0
        self.first_error = ""
        self._notes: Counter[str] = Counter()
        self._review: Counter[bool | None] = Counter()
        self._ood: Counter[bool | None] = Counter()

    def add(self, row: Row, note: str = "") -> None:
        """Count one more row, and the note on its image."""
        self.rows += 1
        self._notes[note] += 1
        if row["error"] is not None:
            self.errors += 1
            self.first_error = self.first_error or row["error"]
        else:
            self._review[row["needs_review"]] += 1
            self._ood[row["out_of_distribution"]] += 1

    def list_notes(self) -> list[str]:
        """Return each note on images with the number of images."""
        return [f"{count} images: {note}" for note, count in self._notes.items() if note]

    def describe(self) -> str:
        """Return the counts as text; a flag that was not fitted must not appear as 0."""
        review = (
            "review not fitted" if None in self._review else f"{self._review[True]} need review"
        )
        ood = "OOD not fitted" if None in self._ood else f"{self._ood[True]} out of distribution"
        return f"{review}, {ood}, {self.errors} unreadable"


# ---- the file


class TableWriter:
    """Writes rows to a stream, as CSV or as JSON lines."""

    def __init__(self, stream: TextIO, classes: list[str], *, as_json: bool = False) -> None:
        self._stream, self._as_json = stream, as_json
        self._csv = csv.DictWriter(stream, list_columns(classes), lineterminator="\n")
        if not as_json:
            self._csv.writeheader()

    def write(self, rows: list[Row]) -> None:
        """Write and flush rows, so that other programs can read the table while it grows."""
        for row in rows:
            if self._as_json:
                self._stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            else:
                in_set = "|".join(row["prediction_set"] or ())
                names = {key: _escape_formula(row[key] or "") for key in ("file", "patient")}
                self._csv.writerow({**row, **names, "prediction_set": in_set})
        self._stream.flush()


def _escape_formula(name: str) -> str:
    """Return a file name that no spreadsheet reads as a formula."""
    return f"'{name}" if name[:1] in {"=", "+", "-", "@", "\t", "\r"} else name


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse to replace a table, or the partial table of an interrupted run.

    Raises:
        UserError: One exists and `overwrite` is False, or the path is a folder.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it")
    for existing in (path, _partial_path(path)):
        if existing.exists() and not overwrite:
            raise UserError(f"{existing} exists; name another --out, or give --overwrite")


@contextlib.contextmanager
def open_table(path: Path, classes: list[str]) -> Iterator[TableWriter]:
    """Open a table, as JSON lines for `.jsonl`; it has the suffix .part until it is complete."""
    partial = _partial_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # file names that are not valid UTF-8 are written with escaped bytes
    with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        try:
            yield TableWriter(stream, classes, as_json=path.suffix == ".jsonl")
        except BaseException:
            log.info("the rows written so far are in %s", partial)
            raise
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def _partial_path(path: Path) -> Path:
    return path.with_name(path.name + PARTIAL_SUFFIX)


def about_path(path: Path) -> Path:
    """Return the path of the notes on a table: `all.csv.about.txt` for `all.csv`."""
    return path.with_name(f"{path.name}.about.txt")


def describe_table(predictor: SlicePredictor, notes: Sequence[str] = ()) -> str:
    """Return the notes on a table: its checkpoints, warnings, notes on images, columns."""
    runs = ", ".join(f"{member.checkpoint['run']} ({member.path})" for member in predictor.members)
    lines = [
        NOTICE,
        *predictor.list_warnings(),
        *notes,
        f"Predictions of {runs}; classes: {', '.join(predictor.classes)}.",
        *COLUMN_NOTES,
    ]
    return "\n".join(lines) + "\n"
