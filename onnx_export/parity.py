"""Compare an ONNX file with this program: predictions and speed."""

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from helper import UserError
from imaging.grayscale import Pixels
from inference.predictor import SlicePredictor
from onnx_export import exporter

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

TOLERANCE = 1e-4  # of a probability
BATCH_SIZE = 16
ROUNDS = 3


def vary(images: Sequence[Pixels]) -> list[Pixels]:
    """Return the images [H, W], each in one of the eight orientations, every second one cropped."""
    varied = []
    for number, pixels in enumerate(images):
        height, width = pixels.shape
        cropped = pixels[height // 8 :, : width - width // 5] if number % 2 else pixels
        rotated = np.rot90(cropped, number // 2 % 4)
        varied.append(np.fliplr(rotated) if number // 8 % 2 else rotated)
    return varied


def batch_by_shape(images: Sequence[Pixels]) -> Iterator[tuple[list[int], list[Pixels]]]:
    """Yield batches of images of one shape, each with the indices of its images."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, pixels in enumerate(images):
        by_shape.setdefault(pixels.shape, []).append(index)
    for same_shape in by_shape.values():
        for start in range(0, len(same_shape), BATCH_SIZE):
            indices = same_shape[start : start + BATCH_SIZE]
            yield indices, [images[index] for index in indices]


def compare(
    predictor: SlicePredictor, session: "InferenceSession", images: Sequence[Pixels]
) -> float:
    """Return the largest difference between a probability of the file and of this program.

    Raises:
        UserError: A difference exceeds TOLERANCE, or a label or a prediction set differs.
    """
    thresholds = exporter.list_thresholds(predictor)
    largest, n_wrong = 0.0, 0
    for _, batch in batch_by_shape(images):
        predictions = predictor.predict([predictor.preprocess(pixels) for pixels in batch])
        probs = np.array([prediction.probs for prediction in predictions])
        outputs = exporter.run_session(session, batch)
        is_right = is_same_prediction(outputs[0], probs)
        if thresholds is not None:
            in_sets = [
                [name in (prediction.prediction_set or ()) for name in predictor.classes]
                for prediction in predictions
            ]
            is_tie = np.abs(probs - thresholds) <= TOLERANCE
            is_right &= ((outputs[1] == in_sets) | is_tie).all(axis=1)
        largest = float(np.maximum(largest, np.abs(outputs[0] - probs).max()))  # NaN stays NaN
        n_wrong += int((~is_right).sum())
    if n_wrong:
        raise UserError(
            f"{predictor.members[0].path}: onnxruntime and this program differ on {n_wrong} of "
            f"{len(images)} images, by {largest:.1e} at most in a probability (allowed: "
            f"{TOLERANCE:.0e}); nothing is written; try other versions of the packages in "
            "requirements-export.txt"
        )
    return largest


def is_same_prediction(actual: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.bool_]:
    """Return whether probabilities [B, K] agree within TOLERANCE and give the same label, [B].

    Two classes that are equally probable within TOLERANCE may be exchanged.
    """
    ordered = np.sort(expected, axis=1)
    is_tie = ordered[:, -1] - ordered[:, -2] <= TOLERANCE
    is_close = (np.abs(actual - expected) <= TOLERANCE).all(axis=1)
    return is_close & (is_tie | (actual.argmax(axis=1) == expected.argmax(axis=1)))


def measure_speeds(
    predictor: SlicePredictor, sessions: "dict[str, InferenceSession]", images: Sequence[Pixels]
) -> dict[str, float]:
    """Return images a second of this program and of each file, from pixels to probabilities.

    The functions alternate; the result is the median of ROUNDS rounds after a warm-up round.
    """

    def run_program(batch: list[Pixels]) -> None:
        predictor.predict([predictor.preprocess(pixels) for pixels in batch])

    runs: dict[str, Callable[[list[Pixels]], Any]] = {"this program": run_program}
    for name, session in sessions.items():
        runs[f"onnxruntime {name}"] = functools.partial(exporter.run_session, session)
    batches = [batch for _, batch in batch_by_shape(images)]
    rounds = [[_time(run, batches) for run in runs.values()] for _ in range(1 + ROUNDS)][1:]
    medians = (statistics.median(times) for times in zip(*rounds, strict=True))
    return {name: len(images) / time_s for name, time_s in zip(runs, medians, strict=True)}


def _time(run: Callable[[list[Pixels]], Any], batches: list[list[Pixels]]) -> float:
    start = time.perf_counter()
    for batch in batches:
        run(batch)
    return time.perf_counter() - start
