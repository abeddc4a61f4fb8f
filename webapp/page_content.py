"""The texts, tables and images of the page as HTML, independent of Gradio."""

import base64
import contextlib
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
from evaluation.conformal import ALPHA
from explanation.overlay import blend_heatmap
from helper import NOTICE, UserError
from imaging.bit_depth import Ranges, ValueScaler
from imaging.grayscale import ImageError, resize_grey
from imaging.reader import read_grey
from inference.output_table import Counts, Row, TableWriter
from inference.predictor import Prediction, SlicePredictor
from webapp.user_session import Session

NEAREST_PX = 160
PUBLISHED = {"Glioma", "Menin", "Tumor"}
HEALTHY = "There is no healthy class: the model names a tumour for any image."
FORCED = "The model names one of its classes for any image."
PERCENT = round(100 * (1 - ALPHA))
MARKS = {"bad": "✕", "review": "!", "good": "✓"}
FIRST_COLUMNS = ("file", "out_of_distribution", "needs_review", "error")  # before the class
SHOWN_CELLS = {
    ("out_of_distribution", "True"): f"{MARKS['bad']} yes: do not trust",
    ("needs_review", "True"): f"{MARKS['review']} yes",
    ("out_of_distribution", "False"): "no",
    ("needs_review", "False"): "no",
}


# ---- the image


def show_picture(session: Session, strength: float) -> str:
    """Return the image as HTML, under its heat map of `strength` 0..1 if that exists."""
    if session.slice is None:
        return "<p class='empty'>The slice and its heat map appear here.</p>"
    heatmap = session.heatmaps.get(session.class_name)
    if heatmap is None:
        return write_image(session.slice.picture, "The slice")
    blended = blend_heatmap(session.slice.picture, heatmap, strength)
    return write_image(blended, f"The slice under the heat map for {session.class_name}")


def write_image(pixels: NDArray[np.uint8], alt: str) -> str:
    """Return an image, uint8 [H, W] or [H, W, 3], as an HTML element with inline data."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", compress_level=1)
    code = base64.b64encode(content.getvalue()).decode()
    return f'<img src="data:image/png;base64,{code}" alt="{escape(alt)}">'


def describe_heatmap(session: Session, predictor: SlicePredictor) -> str:
    """Return what the colours mean and how far, or that the heat map is being computed."""
    if session.slice is None:
        return ""
    name = escape(session.class_name)
    if session.class_name not in session.heatmaps:
        return f"<p>The heat map for {name} is being computed …</p>"
    return (
        f"<p>Brighter colours contribute more to the score of <b>{name}</b>. "
        f"The heat map is not an outline of a tumour. {escape(predictor.describe_heatmaps())}</p>"
    )


# ---- the prediction


def describe_top(predictor: SlicePredictor) -> str:
    """Return the warnings about the checkpoints, a box each."""
    parts = (line.partition(": ") for line in predictor.list_warnings())
    return "".join(_box("review", title, capitalise(text)) for title, _, text in parts)


def describe_notice(predictor: SlicePredictor) -> str:
    """Return the notice that stays on the screen."""
    return f"<p>{escape(NOTICE.partition('. ')[0])}. {describe_classes(predictor)}</p>"


def describe_classes(predictor: SlicePredictor) -> str:
    """Return the limit that follows from the classes."""
    return HEALTHY if set(predictor.classes) <= PUBLISHED else FORCED


def describe_error(error: Exception) -> str:
    """Return an error as a box, without the name of the file."""
    if isinstance(error, ImageError):
        return _box("bad", "This file cannot be read", f"{capitalise(error.reason)}.")
    if isinstance(error, UserError):
        return _box("bad", "No prediction", f"{error}.")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else ""
    return _box("bad", "No prediction", f"{reason or type(error).__name__}. Try another file.")


def describe_prediction(session: Session, predictor: SlicePredictor) -> str:
    """Return the prediction: warnings first, a bar for each class, then the prediction set."""
    prediction = session.prediction
    assert prediction is not None
    frame = f", frame {session.frame} of {session.n_frames}" if session.n_frames > 1 else ""
    bars = zip(predictor.classes, prediction.probs, strict=True)
    parts = [
        f"<h2>{escape(session.name)}{frame}</h2>",
        *_list_boxes(prediction),
        _box("review", "Brightness", f"{capitalise(session.note)}.") if session.note else "",
        f"<p class='predicted'>{escape(predictor.describe_prediction(prediction)[-1])}</p>",
        *(_bar(name, prob, name == prediction.predicted) for name, prob in bars),
        f"<p>{escape(describe_set(prediction))}</p>",
    ]
    if prediction.out_of_distribution is None:
        parts.append("<p>Out-of-distribution images are not marked: no detector was fitted.</p>")
    parts.append(f"<p class='small'>{describe_classes(predictor)}</p>")
    return f"<div class='prediction'>{''.join(parts)}</div>"


def _list_boxes(prediction: Prediction) -> Iterator[str]:
    if prediction.out_of_distribution:
        text = "The image differs from the training images. Do not trust the prediction."
        yield _box("bad", "Out of distribution", text)
    elif prediction.needs_review:
        several = bool(prediction.prediction_set)
        text = "Several classes are possible." if several else "No class is likely enough."
        yield _box("review", "Needs review by a radiologist", text)
    elif prediction.needs_review is not None:
        yield _box("good", "A single class in the prediction set", "It can still be wrong.")


def describe_set(prediction: Prediction) -> str:
    """Return the prediction set in words."""
    if prediction.prediction_set is None:
        return "There is no prediction set: none was fitted."
    if not prediction.prediction_set:
        return (
            "The prediction set is empty: no class reaches the probability that "
            f"{PERCENT} of 100 of its slices reach."
        )
    return (
        f"It could be {' or '.join(prediction.prediction_set)}. For {PERCENT} of 100 slices like "
        "those of training, the prediction set contains the true class."
    )


def _bar(name: str, prob: float, is_predicted: bool) -> str:
    shown = f"<b>{escape(name)}</b>" if is_predicted else escape(name)
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
    """Return a text with a capital first letter; the rest is unchanged."""
    return text[:1].upper() + text[1:]


# ---- the nearest training slices


class TrainingSlices:
    """The images of a prepared folder, with their paths by sha256; empty without a manifest."""

    def __init__(self, data_dir: Path, paths: dict[str, str], ranges: Ranges | None = None) -> None:
        self.data_dir, self.paths, self.ranges = data_dir, paths, ranges

    def describe(self, prediction: Prediction) -> str:
        """Return the nearest slices with their classes, also of images that are missing."""
        if not prediction.nearest:
            return "<p>The checkpoint has no training slices to compare with.</p>"
        figures = [self._show(digest, label) for digest, label in prediction.nearest]
        missing = sum("<img" not in figure for figure in figures)
        text = "The nearest training slices in the network's feature space, and their classes."
        if missing:
            text += f" {missing} of {len(figures)} images are not in {self.data_dir}."
        return f"<p>{escape(text)}</p><div class='nearest'>{''.join(figures)}</div>"

    def _show(self, digest: str, label: str) -> str:
        image = ""
        with contextlib.suppress(KeyError, OSError, ImageError):
            content = (self.data_dir / self.paths[digest]).read_bytes()
            if hashlib.sha256(content).hexdigest() == digest:  # unchanged since training
                pixels = resize_grey(read_grey(content, ValueScaler(self.ranges)), NEAREST_PX)
                image = write_image(pixels, f"Training slice, {label}")
        return f"<figure>{image}<figcaption>{escape(label)}</figcaption></figure>"


def find_training(predictor: SlicePredictor, data_dir: Path | None) -> TrainingSlices:
    """Find the training slices in `data_dir`, by default in the folder of the first checkpoint.

    Raises:
        UserError: `data_dir` was given and has no valid manifest.
    """
    folder = data_dir or Path(predictor.members[0].checkpoint["data"])
    try:
        table = dataset.load_table(folder)
    except (UserError, OSError):
        if data_dir is not None:
            raise
        return TrainingSlices(folder, {})
    paths = dict(zip(table["sha256"], table["path"], strict=True))
    return TrainingSlices(folder, paths, predictor.value_ranges)


# ---- many files


def write_table(rows: list[Row], classes: list[str]) -> str:
    """Return the rows as predict.py's CSV."""
    stream = io.StringIO()
    TableWriter(stream, classes).write(rows)
    # file names that are not valid UTF-8 are written with escaped bytes
    return stream.getvalue().encode("utf-8", "backslashreplace").decode()


def name_table(predictor: SlicePredictor) -> str:
    """Return the name of the CSV; it contains the warnings, as the file may be passed on alone."""
    titles = [line.partition(": ")[0] for line in predictor.list_warnings()]
    words = "-".join(["predictions", "research use only", *titles])
    return f"{words.lower().replace(' ', '-')}.csv"


def show_table(text: str) -> str:
    """Return a CSV as an HTML table, with its warning columns before the class."""
    reader = csv.DictReader(io.StringIO(text))
    names = sorted(reader.fieldnames or (), key=lambda name: (*FIRST_COLUMNS, name).index(name))
    columns = "".join(f"<th scope='col'>{escape(name)}</th>" for name in names)
    lines = "".join(_show_row(row, names) for row in reader)
    return (
        "<div class='scroll' tabindex='0' role='region' aria-label='Predictions'><table><thead><tr>"
        f"{columns}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _show_row(row: dict[str, str], names: list[str]) -> str:
    kind = " class='bad'" if row.get("out_of_distribution") == "True" else ""
    cells = (escape(SHOWN_CELLS.get((name, row[name]), row[name])) for name in names)
    return f"<tr{kind}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def summarise(rows: list[Row]) -> str:
    """Return the numbers of rows by kind."""
    counts = Counts()
    for row in rows:
        counts.add(row)
    return f"<p>{counts.rows} rows: {counts.describe()}.</p>"
