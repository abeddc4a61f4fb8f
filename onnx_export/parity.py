"""Whether an ONNX file answers as this program does, on which pictures, and how fast."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import dataset
from helper import UserError
from imaging.grayscale import Pixels
from imaging.reader import read_grey
from inference.predictor import SliceClassifier
from onnx_export import exporter
from phantoms.generator import plan_phantoms, render_phantom
from preparation import integrity
from preparation.manifest import manifest_path

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

TOLERANCE = 1e-4  # of a probability
CHECKED_SLICES = 64
BATCH_SIZE = 16
ROUNDS = 3


@dataclass(frozen=True)
class RunSlices:
    """The slices that a run was trained and validated on, where they are still there.

    Attributes:
        data_dir: Where they are looked for.
        table: Rows of the manifest with the run's own split; None where there is no manifest.
        classes: Names in the order of the outputs.
    """

    data_dir: Path
    table: pd.DataFrame | None
    classes: list[str]

    def pick(self, split: str, limit: int) -> tuple[list[Pixels], NDArray[np.int64]]:
        """As many slices of a split, evenly over the table, and the indices of their classes.

        Raises:
            UserError: Some are not what prepare.py listed, or of a class that the run knows not.
        """
        if self.table is None:
            return [], np.empty(0, np.int64)
        rows = self.table[self.table["split"] == split]
        places = np.linspace(0, len(rows) - 1, min(limit, len(rows))).round().astype(int)
        chosen = rows.iloc[places]
        unknown = sorted(set(chosen["label"]) - set(self.classes))
        if unknown:
            raise UserError(
                f"{self.data_dir}: class {', '.join(unknown)} is unknown to the checkpoint, which "
                f"knows {', '.join(self.classes)}; name other slices by --data"
            )
        integrity.check_used(self.data_dir, set(chosen["path"]))
        labels = np.array([self.classes.index(label) for label in chosen["label"]], np.int64)
        return [read_grey(self.data_dir / path) for path in chosen["path"]], labels


def find_slices(kept: dict[str, Any], data: Path | None) -> RunSlices:
    """The slices of a run.

    Args:
        kept: Its checkpoint.
        data: Another folder that prepare.py wrote; None: the run's own.

    Raises:
        UserError: That other folder holds no manifest, or a faulty one.
    """
    data_dir = data or Path(kept["data"])
    if data is None and not manifest_path(data_dir).exists():
        return RunSlices(data_dir, None, kept["classes"])
    table = dataset.assign_split(dataset.load_table(data_dir), kept["split"])
    return RunSlices(data_dir, table, kept["classes"])


def make_phantoms() -> list[Pixels]:
    """Pictures for where there are no slices."""
    return [render_phantom(plan)[0] for plan in plan_phantoms(CHECKED_SLICES, seed=0)]


def vary(pictures: Sequence[Pixels]) -> list[Pixels]:
    """Each picture in another of eight positions, every other one cropped, so as not to be square.

    Args:
        pictures: uint8 [H, W] each.
    """
    varied = []
    for number, pixels in enumerate(pictures):
        height, width = pixels.shape
        cropped = pixels[height // 8 :, : width - width // 5] if number % 2 else pixels
        turned = np.rot90(cropped, number // 2 % 4)
        varied.append(np.fliplr(turned) if number // 8 % 2 else turned)
    return varied


def divide(pictures: Sequence[Pixels]) -> Iterator[tuple[list[int], list[Pixels]]]:
    """The pictures in batches of one shape: their places, and themselves."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for place, pixels in enumerate(pictures):
        by_shape.setdefault(pixels.shape, []).append(place)
    for alike in by_shape.values():
        for start in range(0, len(alike), BATCH_SIZE):
            places = alike[start : start + BATCH_SIZE]
            yield places, [pictures[place] for place in places]


def compare(
    classifier: SliceClassifier, session: "InferenceSession", pictures: Sequence[Pixels]
) -> float:
    """How far the probabilities of a file lie from those of this program at most.

    Raises:
        UserError: Farther than TOLERANCE, or a label or a set differs.
    """
    member = classifier.members[0]
    thresholds = exporter.list_thresholds(member)
    worst, n_wrong = 0.0, 0
    for _, batch in divide(pictures):
        verdicts = classifier.judge([classifier.preprocess(pixels) for pixels in batch])
        probs = np.array([verdict.probs for verdict in verdicts])
        answers = exporter.ask(session, batch)
        is_right = agree(answers[0], probs)
        if thresholds is not None:
            in_sets = [
                [name in (verdict.prediction_set or ()) for name in classifier.classes]
                for verdict in verdicts
            ]
            is_edge = np.abs(probs - thresholds) <= TOLERANCE
            is_right &= ((answers[1] == in_sets) | is_edge).all(axis=1)
        worst = float(np.maximum(worst, np.abs(answers[0] - probs).max()))  # NaN stays NaN
        n_wrong += int((~is_right).sum())
    if n_wrong:
        raise UserError(
            f"{member.path}: onnxruntime and this program differ on {n_wrong} of {len(pictures)} "
            f"pictures, by {worst:.1e} at most in a probability (allowed: {TOLERANCE:.0e}); "
            "nothing is written; try other versions of the packages in requirements-export.txt"
        )
    return worst


def agree(answered: NDArray[Any], probs: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether the probabilities of each picture are alike, and its label the same, [B].

    Two classes that are as likely as each other may change places.

    Args:
        answered: [B, K].
        probs: What is right, [B, K].
    """
    likeliest = np.sort(probs, axis=1)
    is_tie = likeliest[:, -1] - likeliest[:, -2] <= TOLERANCE
    is_close = (np.abs(answered - probs) <= TOLERANCE).all(axis=1)
    return is_close & (is_tie | (answered.argmax(axis=1) == probs.argmax(axis=1)))


@dataclass(frozen=True)
class Score:
    """How well a file does on slices whose classes are known.

    Attributes:
        predicted: Indices of the likeliest classes, [N].
        accuracy: Share of them that are right.
        coverage: Share of the prediction sets that hold the right class; None without sets.
        set_size: Their mean number of classes.
    """

    predicted: NDArray[np.int64]
    accuracy: float
    coverage: float | None = None
    set_size: float | None = None

    def describe(self) -> str:
        """In a few words."""
        text = f"accuracy {self.accuracy:.4f}"
        if self.coverage is None:
            return text
        return (
            f"{text}, sets of {self.set_size:.2f} classes hold the right one in {self.coverage:.4f}"
        )


def score(
    session: "InferenceSession", pictures: Sequence[Pixels], labels: NDArray[np.int64]
) -> Score:
    """Let a file judge slices.

    Args:
        session: The file.
        pictures: uint8 [H, W] each.
        labels: The indices of their classes, [N].
    """
    predicted, in_sets = np.empty(len(labels), np.int64), []
    for places, batch in divide(pictures):
        probs, *sets = exporter.ask(session, batch)
        predicted[places] = probs.argmax(axis=1)
        in_sets += [
            (chosen[label], chosen.sum())
            for one in sets
            for chosen, label in zip(one, labels[places], strict=True)
        ]
    accuracy = float((predicted == labels).mean())
    if not in_sets:
        return Score(predicted, accuracy)
    coverage, set_size = np.mean(in_sets, axis=0)
    return Score(predicted, accuracy, float(coverage), float(set_size))


# ---- time


def time_in_turns(
    ways: Sequence[Callable[[list[Pixels]], Any]], pictures: Sequence[Pixels]
) -> list[float]:
    """Pictures a second of several ways to judge batches, in turns: the median of three rounds.

    The round before them, in which each finds its memory, does not count.
    """
    batches = [batch for _, batch in divide(pictures)]
    rounds = [[_time(way, batches) for way in ways] for _ in range(1 + ROUNDS)][1:]
    return [len(pictures) / statistics.median(times) for times in zip(*rounds, strict=True)]


def _time(way: Callable[[list[Pixels]], Any], batches: list[list[Pixels]]) -> float:
    start = time.perf_counter()
    for batch in batches:
        way(batch)
    return time.perf_counter() - start
