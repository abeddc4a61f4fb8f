"""Combine the predictions of the slices of each DICOM series, or file of several, into one row."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from evaluation.thresholds import Thresholds
from inference.image_stream import Picture
from inference.output_table import Row, describe_probs
from inference.predictor import Prediction


@dataclass
class _Series:
    """The slices of one series: readable ones as predictions, unreadable ones as a count."""

    patient: str = ""
    files: set[Path] = field(default_factory=set)
    predictions: list[Prediction] = field(default_factory=list)
    n_unread: int = 0

    def choose_name(self, numbered: str) -> str:
        """Return the path of the file if all slices are in one, else the numbered name."""
        return next(iter(self.files)).as_posix() if len(self.files) == 1 else numbered

    def build_row(self, name: str, rule: Thresholds) -> Row:
        """Average the in-distribution slices, or all slices if none is in distribution.

        A series has no prediction set. `needs_review` is True unless all slices are readable and
        more than half of them are in distribution with the predicted class alone in their set.
        """
        inside = [each for each in self.predictions if not each.out_of_distribution]
        probs = np.mean([each.probs for each in inside or self.predictions], axis=0)
        row = describe_probs(probs, rule)
        has_sets = all(each.prediction_set is not None for each in self.predictions)
        has_ood = all(each.out_of_distribution is not None for each in self.predictions)
        n_read, n_all = len(self.predictions), len(self.predictions) + self.n_unread
        n_alone = sum(each.prediction_set == (row["predicted"],) for each in inside)
        size = f"{n_read} of {n_all}" if self.n_unread else f"{n_all}"
        return {
            "file": f"{name} ({size} slices)",
            "patient": self.patient,
            **row,
            "prediction_set": None,
            "needs_review": (2 * n_alone <= n_all or self.n_unread > 0) if has_sets else None,
            "out_of_distribution": 2 * len(inside) < n_read if has_ood else None,
            "error": None,
        }


class SeriesAggregator:
    """Collects the slices of each DICOM series and returns a row for it at the end of its folder.

    Only the predictions of the present folder are kept.

    Args:
        classes: In the order of the probabilities.
        rule: Chooses the predicted class; None: the most probable one.
    """

    def __init__(self, classes: list[str], rule: Thresholds | None = None) -> None:
        self.rule = rule or Thresholds(tuple(classes), {})
        self._folder: Path | None = None
        self._series: dict[str, _Series] = {}

    def add(self, picture: Picture, prediction: Prediction | None) -> list[Row]:
        """Add an image and return the rows of the last folder if this image is in another one.

        Args:
            picture: Any image; one without a series is not counted.
            prediction: None for an unreadable image.
        """
        rows = self.close() if picture.path.parent != self._folder else []
        self._folder = picture.path.parent
        if picture.series:
            series = self._series.setdefault(picture.series, _Series())
            series.patient = series.patient or picture.patient
            series.files.add(picture.path)
            if prediction is None:
                series.n_unread += 1 + picture.n_lost
            else:
                series.predictions.append(prediction)
        return rows

    def close(self) -> list[Row]:
        """Return the rows of all series with several slices, one of them readable, and reset."""
        rows = [
            series.build_row(series.choose_name(f"{self._folder}#series{number}"), self.rule)
            for number, series in enumerate(self._series.values(), start=1)
            if series.predictions and len(series.predictions) + series.n_unread > 1
        ]
        self._folder, self._series = None, {}
        return rows
