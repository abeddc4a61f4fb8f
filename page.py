"""What the page of app.py shows, in words and pictures; nothing here knows the page's framework."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import answers
import dataset
import intake
from classifier import FittedSlice, SliceClassifier, Verdict
from helper import NOTICE, UserError
from imaging.archive import MAX_FILE_MIB
from imaging.dicom import is_dicom, read_header
from imaging.grey import ImageError, Pixels, resize_grey
from imaging.read import read_frames, read_grey, read_start

SIDE_PX = 160  # of the nearest training slices
BATCH_SIZE = 32
PUBLISHED = {"Glioma", "Menin", "Tumor"}
HEALTHY = "It knows no healthy brain: it must name a tumour for any picture, whatever it shows."
FORCED = "It must name one of its classes for any picture, whatever it shows."


@dataclass(frozen=True)
class Shown:
    """The picture on the page and what is said of it; `frame` is 0 where a file holds one."""

    fitted: FittedSlice
    verdict: Verdict
    frame: int = 0


def count_frames(path: Path) -> int:
    """How many pictures a file holds.

    Raises:
        ImageError: It is too large, or no picture; without its name, which may be a patient's.
    """
    if path.stat().st_size > MAX_FILE_MIB * 2**20:
        raise ImageError(f"over the limit of {MAX_FILE_MIB} MiB a file")
    return read_header(path).n_frames if is_dicom(read_start(path)) else 1


def read_frame(path: Path, number: int) -> Pixels:
    """One picture of a file, counted from 1: uint8 [H, W].

    Raises:
        ImageError: It cannot be read, or there are not so many.
    """
    for current, pixels in enumerate(read_frames(path), start=1):
        if current == number:
            return pixels
    raise ImageError(f"it has no frame {number}")


def judge_picture(classifier: SliceClassifier, path: Path, number: int) -> Shown:
    """Read one picture of a file and judge it; errors as `read_frame`."""
    n_frames = count_frames(path)
    fitted = classifier.fit(read_frame(path, number))
    return Shown(fitted, classifier.judge([fitted])[0], number if n_frames > 1 else 0)


def describe_failure(error: Exception) -> str:
    """What the page says where there is no verdict."""
    if isinstance(error, ImageError):
        return _box("bad", "This file cannot be read", f"{error.reason}. Drop another one.")
    if isinstance(error, UserError):
        return _box("bad", "No verdict", str(error))
    return _box("bad", "No verdict", f"something failed ({type(error).__name__}); try again")


def describe_classes(classifier: SliceClassifier) -> str:
    """What no verdict of this classifier can say."""
    return HEALTHY if set(classifier.classes) <= PUBLISHED else FORCED


def describe_shown(shown: Shown, classifier: SliceClassifier) -> str:
    """A verdict as HTML: its warnings first, then a bar a class, then what they mean."""
    verdict = shown.verdict
    parts = [f"<p>Frame {shown.frame}</p>"] if shown.frame else []
    if verdict.unlike:
        parts.append(
            _box(
                "bad",
                "Unlike the slices of training",
                "The network has learnt from nothing like this picture. Do not believe what it "
                "says of it.",
            )
        )
    elif verdict.refer:
        parts.append(_box("refer", "Refer to a radiologist", _explain_set(verdict)))
    elif verdict.prediction_set is not None and not verdict.unlike:
        parts.append(_box("good", "One class stands alone", _explain_set(verdict)))
    bars = zip(classifier.classes, verdict.probs, strict=True)
    parts.append("".join(_bar(name, prob, name == verdict.predicted) for name, prob in bars))
    if verdict.unlike is None:
        parts.append("<p>Whether the picture is like those of training is not known.</p>")
    parts.append(f"<p class='small'>{escape(describe_classes(classifier))} {escape(NOTICE)}</p>")
    return f"<div class='verdict'>{''.join(parts)}</div>"


def _explain_set(verdict: Verdict) -> str:
    chosen = verdict.prediction_set or ()
    if not chosen:
        return "It resembles none of the classes as 95 % of their slices do."
    if len(chosen) == 1:
        return f"At 95 %, {chosen[0]} alone cannot be ruled out. It can still be wrong."
    return f"At 95 %, {' and '.join(chosen)} cannot be told apart here."


def _bar(name: str, prob: float, is_likeliest: bool) -> str:
    shown = f"<b>{escape(name)}</b>" if is_likeliest else escape(name)
    return (
        f"<div class='bar'><span>{shown}</span><i><u style='width:{100 * prob:.1f}%'></u></i>"
        f"<span>{prob:.1%}</span></div>"
    )


def _box(kind: str, title: str, text: str) -> str:
    mark = {"bad": "✕", "refer": "!", "good": "✓", "note": "i"}[kind]
    return (
        f"<div class='box {kind}' role='status'><b aria-hidden='true'>{mark}</b>"
        f"<div><b>{escape(title)}</b><br>{escape(text)}</div></div>"
    )


def describe_top(classifier: SliceClassifier) -> str:
    """What stands above everything: the research-use notice and the warnings of the checkpoint."""
    notes = [f"{NOTICE} {describe_classes(classifier)}", *classifier.list_warnings()]
    return "".join(_box("note", "Read first", note) for note in notes[:1]) + "".join(
        _box("refer", "Note", note) for note in notes[1:]
    )


class TrainingSlices:
    """The training slices by their sha256, where the data folder is at hand.

    Args:
        data_dir: What prepare.py wrote; nothing is known where it is not there.
    """

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        try:
            table = dataset.load_table(data_dir)
        except UserError:
            self.paths: dict[str, str] = {}
        else:
            self.paths = dict(zip(table["sha256"], table["path"], strict=True))

    def show(self, verdict: Verdict) -> list[tuple[NDArray[np.uint8], str]]:
        """The nearest slices of a verdict that are at hand, with their class as caption."""
        found = []
        for digest, label in verdict.nearest:
            if digest not in self.paths:
                continue
            try:
                pixels = read_grey(self.data_dir / self.paths[digest])
            except ImageError:
                continue
            found.append((resize_grey(pixels, SIDE_PX), label))
        return found

    def describe(self, verdict: Verdict) -> str:
        """A line above them, or why there are none."""
        if not verdict.nearest:
            return "The checkpoint keeps no training slices to compare with."
        labels = ", ".join(escape(label) for _, label in verdict.nearest)
        if not self.paths:
            return f"Nearest training slices: {labels}. Their pictures are not at hand here."
        return f"Nearest training slices: {labels}."


def judge_files(
    classifier: SliceClassifier, files: Sequence[tuple[Path, str]]
) -> list[answers.Row]:
    """The rows of predict.py's table for files, under the names that they were dropped with."""
    names = dict(files)
    rows: list[answers.Row] = []
    batches = intake.read_batches(
        list(names), classifier.fit, BATCH_SIZE, overlap=classifier.device.type != "cpu"
    )
    for batch in batches:
        for picture, verdict in answers.judge_batch(classifier, batch):
            name = names[picture.path] + (f"#{picture.frame}" if picture.frame else "")
            rows.append(answers.describe_picture(name, verdict, picture.error, classifier.classes))
    return rows
