"""What the page of app.py shows, in words and pictures; nothing here knows the page's framework."""

import base64
import csv
import hashlib
import io
from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import dataset
from evaluation.calibration import ALPHA
from explanation.overlay import blend_heatmap
from helper import NOTICE, UserError
from imaging.grayscale import ImageError, Pixels, resize_grey
from imaging.reader import read_grey
from inference import output_table
from inference.predictor import SliceClassifier, Verdict
from webapp.user_session import Desk

NEAREST_PX = 160
PUBLISHED = {"Glioma", "Menin", "Tumor"}
HEALTHY = "It knows no healthy brain: it must name a tumour for any picture, whatever it shows."
FORCED = "It must name one of its classes for any picture, whatever it shows."
PERCENT = round(100 * (1 - ALPHA))
MARKS = {"bad": "✕", "refer": "!", "good": "✓"}
FIRST = ("file", "unlike", "refer", "error")  # columns: what to know before a class is read
SPOKEN = {
    ("unlike", "True"): f"{MARKS['bad']} unlike: do not believe",
    ("refer", "True"): f"{MARKS['refer']} refer",
    **{(name, "False"): "no" for name in ("unlike", "refer")},
}


# ---- the picture


def show_picture(desk: Desk, strength: float) -> str:
    """The picture as HTML, under the heat map where that is made.

    Args:
        desk: Where it lies.
        strength: Of the heat map, 0..1.
    """
    if desk.slice is None:
        return "<p class='empty'>The slice and its heat map come here.</p>"
    heatmap = desk.heatmaps.get(desk.class_name)
    if heatmap is None:
        return write_image(desk.slice.picture, "The slice")
    blended = blend_heatmap(desk.slice.picture, heatmap, strength)
    return write_image(blended, f"The slice under the heat map for {desk.class_name}")


def write_image(pixels: NDArray[np.uint8], text: str) -> str:
    """A picture inside the page itself, so that none lies on the disk.

    Args:
        pixels: uint8 [H, W] or [H, W, 3].
        text: What it is, for those who cannot see it.
    """
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", compress_level=1)
    code = base64.b64encode(content.getvalue()).decode()
    return f'<img src="data:image/png;base64,{code}" alt="{escape(text)}">'


# ---- in words


def describe_top(classifier: SliceClassifier) -> str:
    """What stands above everything: the warnings of the checkpoints."""
    warnings = (line.partition(": ") for line in classifier.list_warnings())
    return "".join(
        _box("refer", capitalise(title), capitalise(text)) for title, _, text in warnings
    )


def describe_notice(classifier: SliceClassifier) -> str:
    """What stays on the screen wherever the reader is."""
    return f"<p>{escape(NOTICE.partition('. ')[0])}. {escape(describe_classes(classifier))}</p>"


def describe_classes(classifier: SliceClassifier) -> str:
    """What no verdict of this classifier can say."""
    return HEALTHY if set(classifier.classes) <= PUBLISHED else FORCED


def describe_error(error: Exception) -> str:
    """What the page says of a file that cannot be judged: one line, without the file's name."""
    if isinstance(error, ImageError):
        return _box("bad", "This file cannot be read", f"{capitalise(error.reason)}.")
    if isinstance(error, UserError):
        return _box("bad", "No answer", f"{error}.")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else ""
    return _box("bad", "No answer", f"{reason or type(error).__name__}. Try another file.")


def describe_answer(desk: Desk, classifier: SliceClassifier) -> str:
    """A verdict as HTML: what to do first, then a bar for each class, then what they mean."""
    verdict = desk.verdict
    assert verdict is not None
    frame = f", frame {desk.frame} of {desk.n_frames}" if desk.n_frames > 1 else ""
    bars = zip(classifier.classes, verdict.probs, strict=True)
    parts = [
        f"<h2>{escape(desk.name)}{frame}</h2>",
        *_list_boxes(verdict),
        f"<p class='likeliest'>{escape(classifier.describe_verdict(verdict)[-1])}</p>",
        *(_bar(label, prob, label == verdict.predicted) for label, prob in bars),
        f"<p>{escape(explain_set(verdict))}</p>",
    ]
    if verdict.unlike is None:
        parts.append("<p>Whether it is like the slices of training is not known.</p>")
    parts.append(f"<p class='small'>{escape(describe_classes(classifier))}</p>")
    return f"<div class='verdict'>{''.join(parts)}</div>"


def _list_boxes(verdict: Verdict) -> Iterator[str]:
    if verdict.unlike:
        yield _box(
            "bad",
            "Unlike the slices of training",
            "The network has learnt from nothing like this picture. Do not believe what it says.",
        )
    elif verdict.refer:
        doubt = "does not tell the classes apart" if verdict.prediction_set else "finds no class"
        yield _box("refer", "Refer to a radiologist", f"The network {doubt} here.")
    elif verdict.refer is not None:
        yield _box("good", "One class stands alone", "It can still be wrong.")


def explain_set(verdict: Verdict) -> str:
    """The prediction set in plain words."""
    chosen = verdict.prediction_set
    if chosen is None:
        return "There is no prediction set: none was fitted."
    if not chosen:
        return f"No class is left: it resembles none as {PERCENT} in 100 of its slices do."
    return (
        f"It could be {' or '.join(chosen)}. For {PERCENT} of 100 slices like those of training, "
        "such a list holds the right class."
    )


def _bar(name: str, prob: float, is_likeliest: bool) -> str:
    shown = f"<b>{escape(name)}</b>" if is_likeliest else escape(name)
    return (
        f"<div class='bar'><span>{shown}</span><i aria-hidden='true'>"
        f"<u style='width:{100 * prob:.1f}%'></u></i><span>{prob:.1%}</span></div>"
    )


def _box(kind: str, title: str, text: str) -> str:
    return (
        f"<div class='box {kind}'><b class='mark' aria-hidden='true'>{MARKS[kind]}</b>"
        f"<div><b>{escape(title)}</b><br>{escape(text)}</div></div>"
    )


def capitalise(text: str) -> str:
    """A text whose first letter is large; the others stay as they are."""
    return text[:1].upper() + text[1:]


def describe_heatmap(desk: Desk) -> str:
    """What the colours mean, or that they are on their way."""
    if desk.slice is None:
        return ""
    if desk.class_name not in desk.heatmaps:
        return f"<p>The heat map for {escape(desk.class_name)} is being made …</p>"
    return (
        f"<p>The brighter the colour, the more of its score for <b>{escape(desk.class_name)}</b> "
        "the network takes from there. It is no outline of a tumour.</p>"
    )


# ---- the nearest training slices


class TrainingSlices:
    """The training slices by their sha256, where the data folder is at hand.

    Args:
        data_dir: What prepare.py wrote.
        paths: Of its manifest, by sha256; empty where it is not at hand.
    """

    def __init__(self, data_dir: Path, paths: dict[str, str]) -> None:
        self.data_dir, self.paths = data_dir, paths

    def describe(self, verdict: Verdict | None) -> str:
        """The nearest as HTML, each with its class; of those not at hand the class alone."""
        if verdict is None:
            return ""
        if not verdict.nearest:
            return "<p>The checkpoint keeps no training slices to compare with.</p>"
        figures = [self._show(digest, label) for digest, label in verdict.nearest]
        missing = sum("<img" not in figure for figure in figures)
        words = "The training slices that the network finds nearest, and their class."
        if missing:
            words += f" {missing} of {len(figures)} pictures are not at hand in {self.data_dir}."
        return f"<p>{escape(words)}</p><div class='nearest'>{''.join(figures)}</div>"

    def _show(self, digest: str, label: str) -> str:
        pixels = self._read(digest)
        text = f"Training slice, {label}"
        image = "" if pixels is None else write_image(resize_grey(pixels, NEAREST_PX), text)
        return f"<figure>{image}<figcaption>{escape(label)}</figcaption></figure>"

    def _read(self, digest: str) -> Pixels | None:
        """The picture, if it is there and still the one that was learnt from."""
        if digest not in self.paths:
            return None
        try:
            content = (self.data_dir / self.paths[digest]).read_bytes()
            return read_grey(content) if hashlib.sha256(content).hexdigest() == digest else None
        except (OSError, ImageError):
            return None


def find_training(classifier: SliceClassifier, data_dir: Path | None) -> TrainingSlices:
    """The training slices of a folder, or of the one that the first checkpoint names.

    Raises:
        UserError: The folder was named by the user and is none that prepare.py wrote.
    """
    folder = data_dir or Path(classifier.members[0].kept["data"])
    try:
        table = dataset.load_table(folder)
    except (UserError, OSError):
        if data_dir is not None:
            raise
        return TrainingSlices(folder, {})
    return TrainingSlices(folder, dict(zip(table["sha256"], table["path"], strict=True)))


# ---- many files


def write_table(rows: list[output_table.Row], classes: list[str]) -> str:
    """The rows as predict.py's CSV."""
    stream = io.StringIO()
    output_table.TableWriter(stream, classes, as_json=False).write(rows)
    # names that are no text in UTF-8 are written with their bytes spelt out
    return stream.getvalue().encode("utf-8", "backslashreplace").decode()


def name_table(classifier: SliceClassifier) -> str:
    """The name of the CSV: a table that is passed on takes its warnings along in no other place."""
    titles = [line.partition(": ")[0] for line in classifier.list_warnings()]
    words = "-".join(["predictions", "research use only", *titles])
    return f"{words.lower().replace(' ', '-')}.csv"


def show_table(text: str) -> str:
    """A CSV as an HTML table that scrolls sideways in itself; what warns of a row comes first."""
    rows = csv.DictReader(io.StringIO(text))
    names = sorted(rows.fieldnames or (), key=lambda name: (*FIRST, name).index(name))
    columns = "".join(f"<th scope='col'>{escape(name)}</th>" for name in names)
    lines = "".join(_show_row(row, names) for row in rows)
    return (
        "<div class='scroll' tabindex='0' role='region' aria-label='Answers'><table><thead><tr>"
        f"{columns}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _show_row(row: dict[str, str], names: list[str]) -> str:
    kind = " class='bad'" if row.get("unlike") == "True" else ""
    cells = (escape(SPOKEN.get((name, row[name]), row[name])) for name in names)
    return f"<tr{kind}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def summarise(rows: list[output_table.Row]) -> str:
    """How many rows there are, and how many of them need a look."""
    counts = output_table.Counts()
    for row in rows:
        counts.add(row)
    return f"<p>{counts.rows} rows: {counts.describe()}.</p>"
