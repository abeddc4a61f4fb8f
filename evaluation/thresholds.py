"""Decide by a threshold of the probability: `--threshold CLASS=P`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.intervals import FloatArray, IntArray, describe, estimate_ratio
from evaluation.patients import PatientPredictions
from helper import UserError


@dataclass(frozen=True)
class Thresholds:
    """Probabilities from which classes are predicted, tried in order.

    The first class whose probability is at least its threshold is predicted. If none reaches its
    threshold, the most probable of the classes without a threshold is predicted, or of all classes
    if each has one. Without any threshold that is the most probable class.

    Attributes:
        classes: K names.
        values: Threshold by class, in 0..1.
    """

    classes: tuple[str, ...]
    values: Mapping[str, float]

    @classmethod
    def parse(cls, options: Iterable[str], classes: Sequence[str]) -> "Thresholds":
        """Return the thresholds of `CLASS=P` options.

        Raises:
            UserError: A class is not one of the model or is given twice, or P is not in 0..1.
        """
        values: dict[str, float] = {}
        for each in options:
            name, _, text = each.rpartition("=")
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if name not in classes:
                raise UserError(
                    f"--threshold {each}: {name} is not a class of the model; its classes are "
                    f"{', '.join(classes)}"
                )
            if not 0 <= value <= 1:
                raise UserError(f"--threshold {each}: {text} is not a probability from 0 to 1", 2)
            if name in values:
                raise UserError(f"--threshold {each}: {name} has two thresholds; give one", 2)
            values[name] = value
        return cls(tuple(classes), values)

    def predict(self, probs: FloatArray) -> NDArray[np.int64]:
        """Return the predicted class ids [N] for probabilities [N, K]."""
        has_threshold = np.array([name in self.values for name in self.classes])
        if has_threshold.all():
            has_threshold[:] = False
        predicted = np.where(has_threshold, -1.0, probs).argmax(axis=1)
        for name, value in reversed(list(self.values.items())):
            index = self.classes.index(name)
            predicted[probs[:, index] >= value] = index
        return predicted

    def describe(self) -> list[str]:
        """Return the rule in words; nothing without thresholds."""
        if not self.values:
            return []
        first, *others = (
            f"{name} if its probability is at least {value:g}"
            for name, value in self.values.items()
        )
        rest = "the most probable of the other classes"
        if len(self.values) == len(self.classes):
            rest = "the most probable class"
        rule = ", ".join([first, *(f"else {each}" for each in others), f"else {rest}"])
        return [f"THRESHOLD: predicted is {rule}"]


def evaluate_thresholds(
    thresholds: Thresholds,
    probs: FloatArray,
    labels: IntArray,
    groups: NDArray[Any],
    by_patient: PatientPredictions,
) -> dict[str, Any] | None:
    """Compute the sensitivity and specificity of every class when predicted by thresholds.

    Args:
        thresholds: The rule.
        probs: Calibrated probabilities [N, K].
        labels: [N] class ids.
        groups: [N] ids, the unit of the intervals.
        by_patient: The same for patients, whose probabilities are the means over their slices.

    Returns:
        `thresholds` of metrics.json: `values` by class; `accuracy` and `accuracy_per_patient`; and
        in `per_class` for each class `sensitivity`, `specificity` and both `_per_patient`. Null
        without thresholds.
    """
    if not thresholds.values:
        return None
    units = {
        "": (thresholds.predict(probs), labels, groups),
        "_per_patient": (
            thresholds.predict(by_patient.probs),
            by_patient.labels,
            by_patient.groups,
        ),
    }
    figures: dict[str, Any] = {"values": dict(thresholds.values)}
    per_class: dict[str, dict[str, Any]] = {name: {} for name in thresholds.classes}
    for suffix, (predicted, truth, group) in units.items():
        figures[f"accuracy{suffix}"] = describe(estimate_ratio(predicted == truth), group)
        for index, name in enumerate(thresholds.classes):
            is_class, is_found = truth == index, predicted == index
            for key, hits, among in (
                ("sensitivity", is_found & is_class, is_class),
                ("specificity", ~is_found & ~is_class, ~is_class),
            ):
                per_class[name][f"{key}{suffix}"] = describe(estimate_ratio(hits, among), group)
    return {**figures, "per_class": per_class}
