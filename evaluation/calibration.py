"""Temperature scaling, calibration metrics and confidence thresholds, fitted on val.

`fit_calibration` runs once, when training ends; its result is stored in the checkpoint.
`apply_calibration` turns logits into calibrated probabilities for every prediction.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from evaluation.conformal import ALPHA, fit_prediction_sets
from evaluation.intervals import BoolArray, FloatArray, IntArray, describe, estimate_ratio
from evaluation.metrics import softmax

REVIEW_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)
SPECIFICITY = 0.95
N_BINS = 15
TEMPERATURES = (0.05, 20.0)
MIN_PROB = 1e-15


@dataclass(frozen=True)
class Calibrated:
    """Calibrated outputs for N slices; all but `probs` are None if nothing was fitted.

    Attributes:
        probs: Probabilities [N, K].
        prediction_sets: [N, K] whether the class is in the prediction set of the slice.
        detected: [N, K] whether the probability reaches the operating point of the class.
        low_confidence: [N, R] whether the confidence is below the threshold of each share in
            REVIEW_SHARES.
    """

    probs: NDArray[np.float64]
    prediction_sets: BoolArray | None = None
    detected: BoolArray | None = None
    low_confidence: BoolArray | None = None

    @property
    def needs_review(self) -> BoolArray | None:
        """[N] whether the prediction set has no class or several."""
        return None if self.prediction_sets is None else self.prediction_sets.sum(axis=1) != 1

    def take(self, rows: NDArray[Any]) -> "Calibrated":
        """Return the outputs of some slices, by position."""
        fitted = (None if part is None else part[rows] for part in self._get_fitted())
        return Calibrated(self.probs[rows], *fitted)

    @staticmethod
    def concatenate(several: "Sequence[Calibrated]") -> "Calibrated":
        """Join the outputs for several sets of slices; an output that one lacks is None."""
        fitted: list[BoolArray | None] = []
        for parts in zip(*(each._get_fitted() for each in several), strict=True):
            known = [part for part in parts if part is not None]
            fitted.append(np.concatenate(known) if len(known) == len(parts) else None)
        return Calibrated(np.concatenate([each.probs for each in several]), *fitted)

    def _get_fitted(self) -> tuple[BoolArray | None, ...]:
        return (self.prediction_sets, self.detected, self.low_confidence)


def fit_calibration(
    logits: FloatArray, labels: IntArray, groups: NDArray[Any], classes: Sequence[str]
) -> dict[str, Any]:
    """Fit the temperature, prediction sets and thresholds on val, as plain values.

    The best epoch was chosen on the same slices, so the results are slightly optimistic.

    Args:
        logits: [N, K] of the val slices.
        labels: [N] class ids.
        groups: [N] ids; prediction sets use one slice of each group.
        classes: K names.

    Returns:
        `temperature`; `conformal`: alpha, and for each class the threshold of its probability
        (None: always in the set) and the number of slices it was fitted on; `review`: confidences
        below which each share of the val slices lies; `operating_points`: for each class the
        probability that gives 95 % specificity (None: no other class in val); `n_images`,
        `n_groups`.
    """
    temperature = fit_temperature(logits, labels, groups)
    probs = softmax(logits / temperature)
    thresholds, counts = fit_prediction_sets(probs, labels, groups)
    confidence = probs.max(axis=1)
    return {
        "temperature": temperature,
        "conformal": {
            "alpha": ALPHA,
            "thresholds": dict(zip(classes, thresholds, strict=True)),
            "n_slices": dict(zip(classes, counts, strict=True)),
        },
        "review": [
            {"share": share, "confidence": float(np.quantile(confidence, share))}
            for share in REVIEW_SHARES
        ],
        "operating_points": {
            name: _fit_operating_point(probs[:, index], labels == index)
            for index, name in enumerate(classes)
        },
        "n_images": len(labels),
        "n_groups": len(np.unique(groups)),
    }


def apply_calibration(calibration: dict[str, Any] | None, logits: FloatArray) -> Calibrated:
    """Compute calibrated probabilities and prediction sets from logits [N, K].

    A prediction set may be empty. Without `calibration` (result of `fit_calibration`) the
    probabilities are plain softmax.
    """
    if calibration is None:
        return Calibrated(softmax(logits))
    probs = softmax(logits / calibration["temperature"])
    thresholds = calibration["conformal"]["thresholds"].values()
    points = calibration["operating_points"].values()
    return Calibrated(
        probs,
        prediction_sets=probs >= np.array([value or 0.0 for value in thresholds]),
        detected=probs >= np.array([math.inf if value is None else value for value in points]),
        low_confidence=probs.max(axis=1, keepdims=True)
        < np.array([point["confidence"] for point in calibration["review"]]),
    )


def fit_temperature(logits: FloatArray, labels: IntArray, groups: NDArray[Any]) -> float:
    """Fit the divisor of logits that minimises the NLL; above 1 lowers the confidence.

    The targets are smoothed as if every class had occurred once more in addition to one
    observation per group. Otherwise val slices without an error would give a temperature of 0.

    Source: Guo et al. 2017, On calibration of modern neural networks; Platt 1999, Probabilistic
    outputs for support vector machines (smoothed targets).
    """
    n_images, n_classes = logits.shape
    n_groups = len(np.unique(groups))
    targets = np.full((n_images, n_classes), 1 / (n_groups + n_classes))
    targets[np.arange(n_images), labels] += n_groups / (n_groups + n_classes)

    def compute_nll(log_temperature: float) -> float:
        probs = softmax(logits / math.exp(log_temperature))
        return -float(np.mean(np.sum(targets * np.log(np.maximum(probs, MIN_PROB)), axis=1)))

    bounds = tuple(math.log(value) for value in TEMPERATURES)
    found = minimize_scalar(compute_nll, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return math.exp(float(found.x))


def _fit_operating_point(scores: FloatArray, is_class: BoolArray) -> float | None:
    """Return the least threshold with which at most 5 % of the other classes are detected."""
    others = np.sort(scores[~is_class])
    if not len(others):
        return None
    n_detected = math.floor((1 - SPECIFICITY) * len(others) + 1e-9)
    return float(np.nextafter(others[len(others) - 1 - n_detected], 2.0))


# ---- metrics


def compute_calibration(probs: FloatArray, labels: IntArray) -> dict[str, float]:
    """Compute calibration metrics of probabilities [N, K]; lower is better for all four.

    Returns:
        `ece` in [0, 1]: gap between confidence and accuracy in 15 bins of equal width, averaged
        over the slices. `ece_classwise` in [0, 1]: the same gap for the probability of each class,
        averaged over the classes. `brier` in [0, 2]: squared distance from the one-hot label,
        summed over the classes. `nll` in nats.

    Source: Naeini et al. 2015, Obtaining well calibrated probabilities using Bayesian binning; Kull
    et al. 2019, Beyond temperature scaling (classwise); Brier 1950, Verification of forecasts
    expressed in terms of probability.
    """
    n_images, n_classes = probs.shape
    truth = np.eye(n_classes)[labels]
    own = probs[np.arange(n_images), labels]
    return {
        "ece": compute_ece(probs.max(axis=1), probs.argmax(axis=1) == labels),
        "ece_classwise": float(
            np.mean([compute_ece(probs[:, k], truth[:, k] == 1) for k in range(n_classes)])
        ),
        "brier": float(np.mean(np.sum((probs - truth) ** 2, axis=1))),
        "nll": float(-np.mean(np.log(np.maximum(own, MIN_PROB)))),
    }


def compute_ece(scores: FloatArray, outcomes: BoolArray) -> float:
    """Compute the mean gap between scores in [0, 1] and outcomes over 15 bins of equal width."""
    bins = bin_scores(scores)
    gaps = np.bincount(bins, weights=scores - outcomes, minlength=N_BINS)
    return float(np.abs(gaps).sum() / len(scores))


def bin_scores(scores: FloatArray) -> NDArray[np.int64]:
    """Return the bin [N] of each score in [0, 1]; a score on an edge is in the lower bin."""
    return np.clip(np.ceil(scores * N_BINS).astype(np.int64) - 1, 0, N_BINS - 1)


def compute_review(
    low_confidence: BoolArray, correct: BoolArray, groups: NDArray[Any]
) -> list[dict[str, Any]]:
    """Compute the accuracy that remains when the least confident slices go to review.

    Args:
        low_confidence: [N, R], of `Calibrated`.
        correct: [N] whether the prediction is right.
        groups: [N] ids.

    Returns:
        A row for each threshold: `share_of_val` below it, `share_for_review`: the share of these
        slices below it, and `accuracy_of_the_rest` with its interval.
    """
    return [
        {
            "share_of_val": share,
            "share_for_review": float(low.mean()),
            "accuracy_of_the_rest": describe(estimate_ratio(correct & ~low, ~low), groups),
        }
        for share, low in zip(REVIEW_SHARES, low_confidence.T, strict=True)
    ]


def compute_operating_points(
    detected: BoolArray, labels: IntArray, groups: NDArray[Any], classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Compute sensitivity and specificity of each class at its operating point."""
    rows = {}
    for index, name in enumerate(classes):
        is_class, is_detected = labels == index, detected[:, index]
        sensitivity = estimate_ratio(is_detected & is_class, is_class)
        specificity = estimate_ratio(~is_detected & ~is_class, ~is_class)
        rows[name] = {
            "sensitivity": describe(sensitivity, groups),
            "specificity": describe(specificity, groups),
        }
    return rows


def compute_risk_coverage(probs: FloatArray, labels: IntArray) -> tuple[FloatArray, FloatArray]:
    """Compute the risk-coverage curve: the error rate of the most confident slices.

    Returns:
        Coverage in (0, 1] and error rate in [0, 1], one point for each distinct confidence: slices
        of equal confidence are retained together.

    Source: El-Yaniv and Wiener 2010, On the foundations of noise-free selective classification.
    """
    confidence = probs.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    n_retained = np.arange(1, len(labels) + 1)
    n_errors = np.cumsum((probs.argmax(axis=1) != labels)[order])
    last = np.append(np.diff(confidence[order]) != 0, True)
    return n_retained[last] / len(labels), n_errors[last] / n_retained[last]
