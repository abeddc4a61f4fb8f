"""Predict from Python: `load_predictor(path)`, then `predict(array or path)`; docs/python.md."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from helper import UserError
from imaging.grayscale import ImageError, Pixels, check_size, scale_to_8_bit
from inference import image_stream, pipeline, predictor

Name = str | PathLike[str]


@dataclass(frozen=True)
class Result:
    """The prediction for one picture; a value is None if nothing was fitted for it.

    Attributes:
        name: The file, with `#NUMBER` if it has several pictures; "" for an array.
        predicted: The most probable class, or the one that the thresholds choose.
        confidence: Its probability, in 0..1.
        probabilities: Calibrated probability of each class; they sum to 1.
        prediction_set: The classes that cannot be ruled out.
        needs_review: Whether a human should check the picture.
        out_of_distribution: Whether it differs from the training slices; if so, do not trust its
            prediction.
    """

    name: str
    predicted: str
    confidence: float
    probabilities: dict[str, float]
    prediction_set: tuple[str, ...] | None
    needs_review: bool | None
    out_of_distribution: bool | None


class Predictor:
    """Predicts arrays and files with the network of a run; `load_predictor` returns one.

    Attributes:
        classes: Names, in the order of the probabilities.
        warnings: What limits the predictions, such as a missing calibration.
    """

    def __init__(self, networks: predictor.SlicePredictor) -> None:
        self._networks = networks
        self.classes: tuple[str, ...] = tuple(networks.classes)
        self.warnings: tuple[str, ...] = tuple(networks.list_warnings())

    @overload
    def predict(
        self, image: NDArray[Any], *, value_range: tuple[float, float] | None = None
    ) -> Result: ...

    @overload
    def predict(self, image: Name) -> list[Result]: ...

    def predict(
        self, image: NDArray[Any] | Name, *, value_range: tuple[float, float] | None = None
    ) -> Result | list[Result]:
        """Predict one slice from an array, or all pictures of a file.

        Args:
            image: Grey values [H, W], or [H, W, 3] with equal channels: uint8 from 0 (black) to
                255 (white), or another number type with a `value_range`. Or a file of any format
                that predict.py reads.
            value_range: The values that are black and white; for arrays only.

        Returns:
            The result of an array; a list with one result for each picture of a file.

        Raises:
            TypeError: Neither array nor path, an array type that is not numeric or that needs a
                `value_range`, or a `value_range` for a file.
            ValueError: The array has another shape, colours, NaN, or values outside the range.
            UserError: The file is missing or cannot be read; a logit is NaN or infinite.
        """
        if isinstance(image, np.ndarray):
            pixels = convert_array(image, value_range)
            [found] = self._networks.predict([self._networks.preprocess(pixels)])
            return self._build_result("", found)
        if not isinstance(image, str | PathLike):
            raise TypeError(
                f"image is a {type(image).__name__}; give a NumPy array of one slice or the path "
                "of a file"
            )
        if value_range is not None:
            raise TypeError("value_range is for arrays; a file declares its own bit depth")
        return self._predict_file(Path(image))

    def _predict_file(self, path: Path) -> list[Result]:
        if path.is_dir():
            raise UserError(f"{path} is a folder; predict its files one by one")
        image_stream.check_paths([path])
        batches = pipeline.predict_batches(self._networks, image_stream.find_files([path]))
        results = []
        for picture, found in (pair for batch in batches for pair in batch):
            if found is None:
                raise ImageError(picture.error, path)
            results.append(self._build_result(picture.name, found))
        return results

    def _build_result(self, name: str, found: predictor.Prediction) -> Result:
        return Result(
            name=name,
            predicted=found.predicted,
            confidence=found.confidence,
            probabilities=dict(zip(self.classes, found.probs.tolist(), strict=True)),
            prediction_set=found.prediction_set,
            needs_review=found.needs_review,
            out_of_distribution=found.out_of_distribution,
        )


def load_predictor(
    *paths: Name,
    device: str = "auto",
    threads: int = 0,
    calibration: Name | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> Predictor:
    """Load a run for prediction; the probabilities of several are averaged.

    Args:
        paths: best.pt or the folder of a run, also of one with --folds.
        device: auto, cpu, cuda, cuda:1 or mps.
        threads: CPU threads of torch, for the whole process; 0: leave them as they are.
        calibration: File that evaluate.py --recalibrate wrote; None: the calibration of the run.
        thresholds: Probability from which a class is predicted, tried in this order.

    Raises:
        TypeError: No path is given.
        UserError: A file is not a checkpoint of a run or not finished, or a threshold is invalid.
    """
    if not paths:
        raise TypeError("name the best.pt or the folder of a run")
    networks = predictor.load_predictor(
        [Path(path) for path in paths],
        device,
        threads,
        None if calibration is None else Path(calibration),
        [f"{name}={value}" for name, value in (thresholds or {}).items()],
    )
    return Predictor(networks)


def convert_array(array: NDArray[Any], value_range: tuple[float, float] | None) -> Pixels:
    """Check an array of one slice and return it as uint8 [H, W].

    Args:
        array: [H, W], or [H, W, 3] with equal channels.
        value_range: The values that are black and white; None: 0 and 255, for uint8 only.

    Raises:
        TypeError: Another number type than uint8 without a range, or no real numbers.
        ValueError: Another shape, colours, NaN, or values outside the range.
    """
    if array.dtype.kind not in "uif":
        raise TypeError(f"the array holds {array.dtype}; give uint8, or numbers with a value_range")
    if value_range is None and array.dtype != np.uint8:
        raise TypeError(
            f"the array holds {array.dtype}; state which values are black and white, such as "
            f"value_range={(0, 4095) if array.dtype.kind in 'ui' else (0.0, 1.0)}"
        )
    if array.ndim == 3 and array.shape[2] == 3 and array.size:
        if (array != array[:, :, :1]).any():
            raise ValueError("the array has colours; give grey values [H, W]")
        array = array[:, :, 0]
    if array.ndim != 2:
        raise ValueError(
            f"the array has the shape {array.shape}; give one slice, [H, W] or [H, W, 3]"
        )
    try:
        check_size(array.shape[1], array.shape[0])
    except ImageError as error:
        raise ValueError(error.reason) from error
    if value_range is None:
        return np.ascontiguousarray(array)
    black, white = map(float, value_range)
    if not (np.isfinite(black) and np.isfinite(white) and black < white):
        raise ValueError(f"value_range is {value_range}; give two numbers, black below white")
    least, greatest = float(array.min()), float(array.max())
    if not black <= least <= greatest <= white:  # also for NaN
        raise ValueError(
            f"the values are from {least:g} to {greatest:g}, outside value_range ({black:g} to "
            f"{white:g}) or NaN; clip them or state another range"
        )
    return scale_to_8_bit(array, black, white)
