"""The slices of a run that an ONNX file is checked on, and its accuracy and coverage on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import dataset
from helper import UserError, log
from imaging.bit_depth import Ranges, ValueScaler
from imaging.grayscale import Pixels
from imaging.reader import read_grey
from onnx_export import exporter, parity
from phantoms.generator import plan_phantoms, render_phantom
from preparation import integrity
from preparation.manifest import manifest_path

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

N_CHECKED = 64


@dataclass(frozen=True)
class RunSlices:
    """The training and validation slices of a run, if its data folder still exists."""

    data_dir: Path
    table: pd.DataFrame | None  # manifest with the run's own split; None without a manifest
    classes: list[str]  # in the order of the outputs
    ranges: Ranges  # of values without a declared bit depth

    def read(self, split: str, limit: int) -> tuple[list[Pixels], NDArray[np.int64]]:
        """Read up to `limit` slices of a split, evenly over the table, and their class indices.

        Raises:
            UserError: A file changed since prepare.py ran, or its class is not in the checkpoint.
        """
        if self.table is None:
            return [], np.empty(0, np.int64)
        rows = self.table[self.table["split"] == split]
        chosen = rows.iloc[np.linspace(0, len(rows) - 1, min(limit, len(rows))).round().astype(int)]
        unknown = sorted(set(chosen["label"]) - set(self.classes))
        if unknown:
            raise UserError(
                f"{self.data_dir}: class {', '.join(unknown)} is not one of the checkpoint's "
                f"classes, {', '.join(self.classes)}; give other slices with --data"
            )
        integrity.check_used(self.data_dir, set(chosen["path"]))
        labels = np.array([self.classes.index(label) for label in chosen["label"]], np.int64)
        paths = (self.data_dir / path for path in chosen["path"])
        return [read_grey(path, ValueScaler(self.ranges)) for path in paths], labels

    def read_checked(self) -> tuple[list[Pixels], str]:
        """Read val slices, or generate phantoms if there are none; return them and their origin."""
        images, _ = self.read("val", N_CHECKED)
        if images:
            return images, f"val slices of {self.data_dir}"
        log.info("note: no val slice of the run in %s: checked on phantoms instead", self.data_dir)
        return [render_phantom(plan)[0] for plan in plan_phantoms(N_CHECKED, seed=0)], "phantoms"


def find_slices(checkpoint: dict[str, Any], data: Path | None) -> RunSlices:
    """Find the slices of a run in `data`, or in its own data folder if that is None.

    Raises:
        UserError: `data` has no valid manifest.
    """
    data_dir, classes = data or Path(checkpoint["data"]), checkpoint["classes"]
    ranges = checkpoint["preprocess"]["value_ranges"]
    if data is None and not manifest_path(data_dir).exists():
        return RunSlices(data_dir, None, classes, ranges)
    table = dataset.assign_split(dataset.load_table(data_dir), checkpoint["split"])
    return RunSlices(data_dir, table, classes, dataset.read_ranges(data_dir) | ranges)


@dataclass(frozen=True)
class Score:
    """Performance of a file on labelled slices; the last two are None without prediction sets."""

    predicted: NDArray[np.int64]  # class indices [N]
    accuracy: float
    coverage: float | None = None  # share of prediction sets that contain the true class
    set_size: float | None = None  # mean number of classes in a set

    def describe(self) -> str:
        """Return the figures as text."""
        text = f"accuracy {self.accuracy:.4f}"
        if self.coverage is None:
            return text
        return f"{text}, coverage {self.coverage:.4f} of sets of {self.set_size:.2f} classes"


def score(
    session: "InferenceSession", images: Sequence[Pixels], labels: NDArray[np.int64]
) -> Score:
    """Measure the performance of a file on images, uint8 [H, W] each, with class indices [N]."""
    predicted, in_sets = np.empty(len(labels), np.int64), []
    for indices, batch in parity.batch_by_shape(images):
        probs, *sets = exporter.run_session(session, batch)
        predicted[indices] = probs.argmax(axis=1)
        in_sets += [
            (row[label], row.sum())
            for rows in sets
            for row, label in zip(rows, labels[indices], strict=True)
        ]
    accuracy = float((predicted == labels).mean())
    if not in_sets:
        return Score(predicted, accuracy)
    coverage, set_size = np.mean(in_sets, axis=0)
    return Score(predicted, accuracy, float(coverage), float(set_size))
