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
from scipy.special import log_softmax, logsumexp
from scipy.stats import rankdata

from evaluation.conformal import ALPHA, fit_prediction_sets
from evaluation.intervals import (
    Z_95,
    BoolArray,
    Estimate,
    FloatArray,
    IntArray,
    describe,
    estimate_ratio,
    weigh_by_group,
)
from evaluation.metrics import softmax

REVIEW_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)
SPECIFICITY = 0.95
N_BINS = 15
TEMPERATURES = (0.05, 20.0)
PRIOR_DEVIATION = 1.0  # standard deviation of the prior on the logarithm of the temperature
MIN_PROB = 1e-15
RESAMPLES = 1000  # of the groups, for the bias of the ECE


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
    """Fit the temperature, prediction sets and thresholds on held-out slices, as plain values.

    On val, where the best epoch was chosen on the same slices, the results are slightly optimistic.

    Args:
        logits: [N, K] of the val slices, or [M, N, K] of M networks of an ensemble.
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
    probs = average_softmax(logits, temperature)
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
    """Compute calibrated probabilities and prediction sets from logits [N, K] or [M, N, K].

    A prediction set may be empty. Without `calibration` (result of `fit_calibration`) the
    probabilities are plain softmax. One without `conformal` has a temperature only.
    """
    if calibration is None:
        return Calibrated(average_softmax(logits))
    probs = average_softmax(logits, calibration["temperature"])
    if "conformal" not in calibration:
        return Calibrated(probs)
    thresholds = calibration["conformal"]["thresholds"].values()
    points = calibration["operating_points"].values()
    return Calibrated(
        probs,
        prediction_sets=probs >= np.array([value or 0.0 for value in thresholds]),
        detected=probs >= np.array([math.inf if value is None else value for value in points]),
        low_confidence=probs.max(axis=1, keepdims=True)
        < np.array([point["confidence"] for point in calibration["review"]]),
    )


def average_softmax(
    logits: FloatArray, temperature: float | Sequence[float] = 1.0
) -> NDArray[np.float64]:
    """Average the probabilities of networks over the networks.

    Args:
        logits: [N, K] of one network, or [M, N, K].
        temperature: Divisor of the logits, one for all networks or one for each.

    Returns:
        [N, K].
    """
    members = _stack_members(logits).astype(np.float64)
    divisors = np.broadcast_to(temperature, len(members))
    parts = [softmax(each / divisor) for each, divisor in zip(members, divisors, strict=True)]
    return np.mean(parts, axis=0)


def _stack_members(logits: FloatArray) -> FloatArray:
    """Return logits of one network [N, K] as [1, N, K]; [M, N, K] is unchanged."""
    return logits.reshape(-1, *logits.shape[-2:])


def fit_temperature(logits: FloatArray, labels: IntArray, groups: NDArray[Any]) -> float:
    """Fit the divisor of logits, the mode of its posterior; above 1 lowers the confidence.

    The likelihood counts every group once, because its images are not independent: an image has
    the weight 1 / size of its group. The prior on log T is normal around 0 (uncalibrated). It is
    one observation among as many as there are groups, and it keeps the temperature above zero if
    val has no error. `experiments.calibration_bias` compares it with other methods.

    Logits of several networks, [M, N, K], have one temperature, and the likelihood is that of their
    mean probability.

    Source: Guo et al. 2017, On calibration of modern neural networks.
    """
    weights, members = weigh_by_group(groups), _stack_members(logits).astype(np.float64)
    rows = np.arange(len(labels))

    def compute_loss(log_temperature: float) -> float:
        own = log_softmax(members / math.exp(log_temperature), axis=2)[:, rows, labels]  # [M, N]
        log_probs = logsumexp(own, axis=0) - math.log(len(members))
        return float(-weights @ log_probs) + (log_temperature / PRIOR_DEVIATION) ** 2 / 2

    bounds = tuple(math.log(value) for value in TEMPERATURES)
    found = minimize_scalar(compute_loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return math.exp(float(found.x))


def _fit_operating_point(scores: FloatArray, is_class: BoolArray) -> float | None:
    """Return the least threshold with which at most 5 % of the other classes are detected."""
    others = np.sort(scores[~is_class])
    if not len(others):
        return None
    n_detected = math.floor((1 - SPECIFICITY) * len(others) + 1e-9)
    return float(np.nextafter(others[len(others) - 1 - n_detected], 2.0))


# ---- metrics


def compute_calibration(
    probs: FloatArray, labels: IntArray, groups: NDArray[Any]
) -> dict[str, Any]:
    """Compute calibration metrics of probabilities [N, K]; lower is better for all.

    Args:
        probs: [N, K].
        labels: [N] class ids.
        groups: [N] ids, the unit of the interval.

    Returns:
        `ece` in [0, 1]: gap between confidence and accuracy in 15 bins of equal width, averaged
        over the slices; `ece_debiased`: the same without its bias, with interval.
        `ece_classwise` in [0, 1]: the same gap for the probability of each class, averaged over the
        classes. `brier` in [0, 2]: squared distance from the one-hot label, summed over the
        classes. `nll` in nats.

    Source: Naeini et al. 2015, Obtaining well calibrated probabilities using Bayesian binning; Kull
    et al. 2019, Beyond temperature scaling (classwise); Brier 1950, Verification of forecasts
    expressed in terms of probability.
    """
    n_images, n_classes = probs.shape
    truth = np.eye(n_classes)[labels]
    own = probs[np.arange(n_images), labels]
    confidence, correct = probs.max(axis=1), probs.argmax(axis=1) == labels
    return {
        "ece": compute_ece(confidence, correct),
        "ece_debiased": describe_ece(confidence, correct, groups),
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


def describe_ece(scores: FloatArray, outcomes: BoolArray, groups: NDArray[Any]) -> dict[str, Any]:
    """Compute the ECE without its bias and the 95 % interval, with groups as the unit.

    The ECE adds absolute gaps, so chance alone raises it, most with few groups. This bias is
    estimated as the mean rise in resamples of the groups (fixed seed) and subtracted; a part of it
    remains. The interval is normal around the result, with the variance of the ECE to first order
    and, in addition, that of one error in a group of mean size. It begins at 0 if the ECE is not
    above the 97.5 % quantile of the gaps that chance gives a perfectly calibrated network.

    Args:
        scores: [N], in [0, 1].
        outcomes: [N] whether the event occurred.
        groups: [N] ids.

    Returns:
        `value` and `ci95`, in [0, 1].

    Source: Efron and Tibshirani 1993, An introduction to the bootstrap (bias, of groups as units).
    """
    codes = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(codes)
    n_groups, n_images = len(sizes), len(scores)
    cells = codes * N_BINS + bin_scores(scores)
    gaps = np.bincount(cells, weights=scores - outcomes, minlength=n_groups * N_BINS)
    gaps = gaps.reshape(n_groups, N_BINS)  # sums over the images of a group in a bin
    mean_gaps = gaps.sum(axis=0) / n_images
    ece = float(np.abs(mean_gaps).sum())

    rng = np.random.default_rng(0)
    drawn = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), RESAMPLES)  # [R, G]
    resampled = (drawn @ gaps) / (drawn @ sizes)[:, None]
    rise = float(np.abs(resampled).sum(axis=1).mean()) - ece
    by_chance = float(np.quantile(np.abs(resampled - mean_gaps).sum(axis=1), 0.975))

    value = max(0.0, ece - rise)
    residuals = (gaps @ np.sign(mean_gaps) - sizes * ece) / n_images
    variance = float(residuals @ residuals) * n_groups / max(1, n_groups - 1) + 1 / n_groups**2
    half = Z_95 * math.sqrt(variance)
    low = max(0.0, value - half) if ece > by_chance else 0.0
    return {"value": value, "ci95": [low, min(1.0, value + half)]}


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


def estimate_augrc(probs: FloatArray, labels: IntArray) -> Estimate:
    """Estimate the area under the generalised risk-coverage curve, in [0, 0.5]; lower is better.

    The generalised risk is the number of errors among the most confident slices, divided by the
    number of all slices. Its area is the mean over all coverages: the share of slices that are
    wrong and not sent for review. Equal confidences count half, so that
    AUGRC = (1 - AUC) a (1 - a) + (1 - a)^2 / 2 with the accuracy a and the area under the ROC curve
    of the confidence for correct predictions.

    Source: Traub et al. 2024, Overcoming common flaws in the evaluation of selective classification
    systems.
    """
    confidence, is_error = probs.max(axis=1), probs.argmax(axis=1) != labels
    n_images = len(labels)
    # coverage at which half of the slices of this confidence are retained
    less_confident = (rankdata(confidence) - 0.5) / n_images
    value = float(np.mean(is_error * less_confident))
    # errors of at least this confidence, halves for equal ones
    order = np.argsort(confidence, kind="stable")
    ordered, errors = confidence[order], np.append(0, np.cumsum(is_error[order]))
    below, up_to = (
        errors[np.searchsorted(ordered, confidence, side)] for side in ("left", "right")
    )
    more_confident = (errors[-1] - (below + up_to) / 2) / n_images
    residuals = (is_error * less_confident + more_confident - 2 * value) / n_images
    return Estimate(value, residuals, np.full(n_images, 1 / n_images))
