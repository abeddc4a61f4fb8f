"""The table of predict.py: a row a picture as it comes, one more for each DICOM series."""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from inference.image_stream import Picture
from inference.predictor import PreprocessedSlice, SliceClassifier, Verdict

Row = dict[str, Any]
DIGITS = 6


def judge_batch(
    classifier: SliceClassifier, batch: list[Picture[PreprocessedSlice]]
) -> list[tuple[Picture[PreprocessedSlice], Verdict | None]]:
    """Each picture of a batch with its verdict, None where it cannot be read."""
    readable = [picture.made for picture in batch if picture.made is not None]
    verdicts = iter(classifier.judge(readable) if readable else [])
    return [(picture, None if picture.made is None else next(verdicts)) for picture in batch]


def list_columns(classes: list[str]) -> list[str]:
    """The columns of the table."""
    probs = [f"p_{name}" for name in classes]
    return ["file", "predicted", "confidence", *probs, "set", "refer", "unlike", "error"]


def describe_picture(name: str, verdict: Verdict | None, error: str, classes: list[str]) -> Row:
    """The row of a picture; what was not fitted is None, and all of one that cannot be read."""
    if verdict is None:
        return {**dict.fromkeys(list_columns(classes)), "file": name, "error": error}
    chosen = verdict.prediction_set
    return {
        "file": name,
        **_describe_probs(verdict.probs, classes),
        "set": None if chosen is None else list(chosen),
        "refer": verdict.refer,
        "unlike": verdict.unlike,
        "error": None,
    }


def _describe_probs(probs: NDArray[np.float64], classes: list[str]) -> Row:
    likeliest = int(probs.argmax())
    each = {
        f"p_{name}": round(float(prob), DIGITS) for name, prob in zip(classes, probs, strict=True)
    }
    return {"predicted": classes[likeliest], "confidence": max(each.values()), **each}


@dataclass
class Counts:
    """How many rows there are, and how many of them need a look; None: nobody can say."""

    rows: int = 0
    errors: int = 0
    refer: int | None = 0
    unlike: int | None = 0

    def add(self, row: Row) -> None:
        """Count one more row."""
        self.rows += 1
        if row["error"] is not None:
            self.errors += 1
            return
        # what was not fitted is said of no picture, and would read as "none"
        self.refer = _add(self.refer, row["refer"])
        self.unlike = _add(self.unlike, row["unlike"])

    def describe(self) -> str:
        """In words, from how many to refer on."""
        refer = "referral not fitted" if self.refer is None else f"{self.refer} to refer"
        unlike = (
            "unlike not fitted"
            if self.unlike is None
            else f"{self.unlike} unlike those of training"
        )
        return f"{refer}, {unlike}, {self.errors} not readable"


def _add(count: int | None, flag: bool | None) -> int | None:
    return None if count is None or flag is None else count + flag


@dataclass
class _Series:
    """What the slices of one DICOM series have said so far."""

    number: int
    n_slices: int = 0
    n_unread: int = 0
    n_unlike: int = 0
    n_agreeing: dict[str, int] = field(default_factory=dict)
    sum_familiar: NDArray[np.float64] | float = 0.0
    sum_unlike: NDArray[np.float64] | float = 0.0
    knows_sets: bool = True
    knows_unlike: bool = True


class SeriesTally:
    """Adds up the slices of each DICOM series of a folder, for a row when the folder is done.

    It remembers the series of one folder alone: a few numbers for each of them.
    """

    def __init__(self, classes: list[str]) -> None:
        self.classes = classes
        self._folder: Path | None = None
        self._series: dict[str, _Series] = {}

    def add(self, picture: Picture, verdict: Verdict | None) -> list[Row]:
        """Count a slice; the rows of the series before it, where it begins another folder.

        Args:
            picture: Of any kind; what belongs to no series is passed over.
            verdict: None where it cannot be read.
        """
        rows = self.close() if picture.path.parent != self._folder else []
        self._folder = picture.path.parent
        if picture.series:
            one = self._series.setdefault(picture.series, _Series(len(self._series) + 1))
            if verdict is None:
                one.n_unread += 1 + picture.n_lost
            else:
                self._count(one, verdict)
        return rows

    @staticmethod
    def _count(one: _Series, verdict: Verdict) -> None:
        one.n_slices += 1
        one.knows_unlike &= verdict.unlike is not None
        if verdict.unlike:
            one.n_unlike += 1
            one.sum_unlike = one.sum_unlike + verdict.probs
        else:
            one.sum_familiar = one.sum_familiar + verdict.probs
        if verdict.prediction_set is None:
            one.knows_sets = False
        elif len(verdict.prediction_set) == 1 and not verdict.unlike:
            name = verdict.prediction_set[0]
            one.n_agreeing[name] = one.n_agreeing.get(name, 0) + 1

    def close(self) -> list[Row]:
        """The rows of the series so far, of those with more than one slice and one to judge."""
        rows = [
            self._describe(one)
            for one in self._series.values()
            if one.n_slices and one.n_slices + one.n_unread > 1
        ]
        self._folder, self._series = None, {}
        return rows

    def _describe(self, one: _Series) -> Row:
        """The mean over the slices that are like those of training, or over all if none is.

        Nothing was fitted to series: there is no prediction set. `refer` says that no single
        class stands alone in the sets of more than half of the slices, or that some of them could
        not be read.
        """
        n_familiar, n_all = one.n_slices - one.n_unlike, one.n_slices + one.n_unread
        chosen, count = (
            (one.sum_familiar, n_familiar) if n_familiar else (one.sum_unlike, one.n_unlike)
        )
        row = _describe_probs(np.asarray(chosen) / count, self.classes)
        n_agreeing = one.n_agreeing.get(row["predicted"], 0)
        size = f"{one.n_slices} of {n_all}" if one.n_unread else f"{n_all}"
        return {
            "file": f"{self._folder}#series{one.number} ({size} slices)",
            **row,
            "set": None,
            "refer": 2 * n_agreeing <= n_all or one.n_unread > 0 if one.knows_sets else None,
            "unlike": 2 * one.n_unlike > one.n_slices if one.knows_unlike else None,
            "error": None,
        }


def _defuse(name: str) -> str:
    """A file's name that no spreadsheet takes for a formula."""
    return f"'{name}" if name[:1] in {"=", "+", "-", "@", "\t", "\r"} else name


class TableWriter:
    """Writes rows as they come: CSV, or JSON lines where the file's name ends with .jsonl."""

    def __init__(self, stream: TextIO, classes: list[str], *, as_json: bool) -> None:
        self._stream, self._as_json = stream, as_json
        self._csv = csv.DictWriter(stream, list_columns(classes), lineterminator="\n")
        if not as_json:
            self._csv.writeheader()

    def write(self, rows: list[Row]) -> None:
        """Write rows and hand them to the system, so that others can read along."""
        for row in rows:
            if self._as_json:
                self._stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            else:
                flat = "|".join(row["set"]) if row["set"] is not None else None
                self._csv.writerow({**row, "file": _defuse(row["file"]), "set": flat})
        self._stream.flush()
