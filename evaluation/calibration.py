"""Probabilities that mean what they say, prediction sets, and when to refer: fitted on val.

`fit_calibration` is run once, when training ends, and its plain values live in the checkpoint;
`apply_calibration` turns logits into verdicts wherever a verdict is given.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from evaluation.intervals import describe, estimate_ratio
from evaluation.metrics import FloatArray, IntArray, softmax

ALPHA = 0.05  # share of slices of a class whose set may miss it
FEWEST_SLICES = math.ceil(1 / ALPHA) - 1  # fewer cannot bound a share of ALPHA
REFERRAL_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)
SPECIFICITY = 0.95
N_BINS = 15
TEMPERATURES = (0.05, 20.0)
LEAST_PROB = 1e-15
CONFORMAL_KEYS = ("alpha", "coverage", "coverage_by_class", "mean_set_size")


@dataclass(frozen=True)
class Calibrated:
    """What calibrated logits say; all but the probabilities are None where nothing was fitted.

    Attributes:
        probs: [N, K].
        sets: [N, K] whether the class is in the prediction set of the slice.
        called: [N, K] whether the class is called at its operating point.
        unsure: [N, R] whether the confidence lies under that of each share of REFERRAL_SHARES.
    """

    probs: NDArray[np.float64]
    sets: NDArray[np.bool_] | None = None
    called: NDArray[np.bool_] | None = None
    unsure: NDArray[np.bool_] | None = None

    @property
    def refer(self) -> NDArray[np.bool_] | None:
        """[N] whether a human should look: the set is not a single class."""
        return None if self.sets is None else self.sets.sum(axis=1) != 1

    def take(self, rows: NDArray[Any]) -> "Calibrated":
        """The same of some slices."""
        rest = (None if part is None else part[rows] for part in self._fitted())
        return Calibrated(self.probs[rows], *rest)

    @staticmethod
    def concatenate(several: "Sequence[Calibrated]") -> "Calibrated":
        """The slices of several as one; what one of them lacks, the whole lacks."""
        fitted: list[NDArray[np.bool_] | None] = []
        for parts in zip(*(each._fitted() for each in several), strict=True):
            known = [part for part in parts if part is not None]
            fitted.append(np.concatenate(known) if len(known) == len(parts) else None)
        return Calibrated(np.concatenate([each.probs for each in several]), *fitted)

    def _fitted(self) -> tuple[NDArray[np.bool_] | None, ...]:
        return (self.sets, self.called, self.unsure)


def fit_calibration(
    logits: FloatArray, labels: IntArray, groups: NDArray[Any], classes: Sequence[str]
) -> dict[str, Any]:
    """Everything that a checkpoint learns from val after training, as plain values.

    The same val slices chose the epoch, so all of it is a little too favourable.

    Args:
        logits: [N, K] of the val slices.
        labels: [N] class ids.
        groups: [N] ids; prediction sets rest on one slice a group.
        classes: K names.

    Returns:
        `temperature`; `conformal`: alpha, and for each class the least probability with which it is
        in a set (None: always) and the slices that this rests on; `referral`: share of val slices
        and the confidence under which they lie; `operating_points`: for each class the probability
        from which it is called at 95 % specificity (None: no other class in val); `n_images`,
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
        "referral": [
            {"share": share, "confidence": float(np.quantile(confidence, share))}
            for share in REFERRAL_SHARES
        ],
        "operating_points": {
            name: _fit_operating_point(probs[:, index], labels == index)
            for index, name in enumerate(classes)
        },
        "n_images": len(labels),
        "n_groups": len(np.unique(groups)),
    }


def apply_calibration(calibration: dict[str, Any] | None, logits: FloatArray) -> Calibrated:
    """Calibrated probabilities and prediction sets; plain softmax where nothing was fitted.

    A set may be empty: the slice resembles none of the classes as 95 % of their val slices do.

    Args:
        calibration: What `fit_calibration` gave, or None.
        logits: [N, K].
    """
    if calibration is None:
        return Calibrated(softmax(logits))
    probs = softmax(logits / calibration["temperature"])
    thresholds = calibration["conformal"]["thresholds"].values()
    points = calibration["operating_points"].values()
    return Calibrated(
        probs,
        sets=probs >= np.array([0.0 if value is None else value for value in thresholds]),
        called=probs >= np.array([math.inf if value is None else value for value in points]),
        unsure=probs.max(axis=1, keepdims=True)
        < np.array([point["confidence"] for point in calibration["referral"]]),
    )


def fit_temperature(logits: FloatArray, labels: IntArray, groups: NDArray[Any]) -> float:
    """The divisor of logits that gives the least NLL on these slices; above 1 softens.

    The targets are smoothed as if every class had been seen once more: val without an error would
    ask for endless confidence otherwise.

    Args:
        logits: [N, K].
        labels: [N] class ids.
        groups: [N] ids; there is as much evidence as there are groups.

    Source: Guo et al. 2017, On calibration of modern neural networks; Platt 1999, Probabilistic
    outputs for support vector machines (the smoothed targets).
    """
    n_images, n_classes = logits.shape
    n_groups = len(np.unique(groups))
    targets = np.full((n_images, n_classes), 1 / (n_groups + n_classes))
    targets[np.arange(n_images), labels] += n_groups / (n_groups + n_classes)

    def measure(log_temperature: float) -> float:
        probs = softmax(logits / math.exp(log_temperature))
        return -float(np.mean(np.sum(targets * np.log(np.maximum(probs, LEAST_PROB)), axis=1)))

    low, high = (math.log(value) for value in TEMPERATURES)
    found = minimize_scalar(measure, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return math.exp(float(found.x))


def fit_prediction_sets(
    probs: FloatArray, labels: IntArray, groups: NDArray[Any], alpha: float = ALPHA
) -> tuple[list[float | None], list[int]]:
    """For each class the least probability with which it is in a prediction set.

    A new slice of that class, exchangeable with these, has it in its set with a chance of at least
    1 - alpha. Copies and neighbours are not exchangeable with each other: one slice of each group
    is used, the same whatever the order of the rows.

    Args:
        probs: [N, K].
        labels: [N] class ids.
        groups: [N] ids.
        alpha: Share that may be missed.

    Returns:
        Thresholds [K], None where too few slices are there to leave any out (fewer than 19 for
        alpha 0.05), and the slices of each class that they rest on [K].

    Source: Sadinle et al. 2019, Least ambiguous set-valued classifiers with bounded error levels;
    Vovk 2012, Conditional validity of inductive conformal predictors.
    """
    thresholds: list[float | None] = []
    counts: list[int] = []
    for index in range(probs.shape[1]):
        own = labels == index
        scores = _draw_one_a_group(probs[own, index], groups[own])
        n_out = math.floor(alpha * (len(scores) + 1))  # may lie under the threshold
        thresholds.append(float(np.sort(scores)[n_out - 1]) if n_out else None)
        counts.append(len(scores))
    return thresholds, counts


def _draw_one_a_group(scores: FloatArray, groups: NDArray[Any]) -> FloatArray:
    """One value of each group, drawn at random with a fixed seed from the sorted ones."""
    order = np.lexsort((scores, groups))
    starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)[1:]
    drawn = np.random.default_rng(0).random(len(starts)) * sizes
    return scores[order][starts + drawn.astype(int)]


def _fit_operating_point(scores: FloatArray, is_class: NDArray[np.bool_]) -> float | None:
    """The least probability from which the class is called, with 95 % of the others left out."""
    others = np.sort(scores[~is_class])
    if not len(others):
        return None
    n_called = math.floor((1 - SPECIFICITY) * len(others) + 1e-9)
    return float(np.nextafter(others[len(others) - 1 - n_called], 2.0))


# ---- figures


def compute_calibration(probs: FloatArray, labels: IntArray) -> dict[str, float]:
    """How far probabilities can be believed; lower is better for all four.

    Args:
        probs: [N, K].
        labels: [N] class ids.

    Returns:
        `ece` in [0, 1]: gap between confidence and accuracy in 15 bins of equal width, averaged
        over the slices. `ece_classwise` in [0, 1]: the same gap for the probability of each class,
        averaged over the classes. `brier` in [0, 2]: squared distance from the truth, summed over
        the classes. `nll` in nats.

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
        "nll": float(-np.mean(np.log(np.maximum(own, LEAST_PROB)))),
    }


def compute_ece(scores: FloatArray, came_true: NDArray[np.bool_]) -> float:
    """Mean gap between scores and how often they came true, in [0, 1], 15 bins of equal width.

    Args:
        scores: [N] in [0, 1].
        came_true: [N].
    """
    bins = bin_scores(scores)
    gaps = np.bincount(bins, weights=scores - came_true, minlength=N_BINS)
    return float(np.abs(gaps).sum() / len(scores))


def bin_scores(scores: FloatArray) -> NDArray[np.int64]:
    """The bin [N] of each score in [0, 1]; a score on an edge belongs to the bin under it."""
    return np.clip(np.ceil(scores * N_BINS).astype(np.int64) - 1, 0, N_BINS - 1)


def compute_conformal(
    sets: NDArray[np.bool_], labels: IntArray, classes: Sequence[str]
) -> dict[str, Any]:
    """How prediction sets did: how often they hold the truth, and how large they are.

    Args:
        sets: [N, K].
        labels: [N] class ids.
        classes: K names.

    Returns:
        `alpha`, `coverage` and `coverage_by_class` in [0, 1] (1 - alpha was aimed at),
        `mean_set_size` in classes, and the shares of slices whose set is one class or empty.
    """
    held = sets[np.arange(len(labels)), labels]
    sizes = sets.sum(axis=1)
    return {
        "alpha": ALPHA,
        "coverage": float(held.mean()),
        "coverage_by_class": {
            name: float(held[labels == index].mean()) if (labels == index).any() else None
            for index, name in enumerate(classes)
        },
        "mean_set_size": float(sizes.mean()),
        "share_single": float(np.mean(sizes == 1)),
        "share_empty": float(np.mean(sizes == 0)),
    }


def compute_referral(
    unsure: NDArray[np.bool_], correct: NDArray[np.bool_], groups: NDArray[Any]
) -> list[dict[str, Any]]:
    """What is left when the least confident slices are referred: a row for each share of val.

    Args:
        unsure: [N, R], of `Calibrated`.
        correct: [N] whether the verdict on the slice is right.
        groups: [N] ids.

    Returns:
        `share_of_val` that lies under the threshold, the share of these slices that does
        (`referred`), and `accuracy_of_the_rest` with its interval.
    """
    return [
        {
            "share_of_val": share,
            "referred": float(low.mean()),
            "accuracy_of_the_rest": describe(estimate_ratio(correct & ~low, ~low), groups),
        }
        for share, low in zip(REFERRAL_SHARES, unsure.T, strict=True)
    ]


def compute_operating_points(
    called: NDArray[np.bool_], labels: IntArray, groups: NDArray[Any], classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Sensitivity and specificity of each class at the point where val had 95 % specificity.

    Args:
        called: [N, K], of `Calibrated`.
        labels: [N] class ids.
        groups: [N] ids.
        classes: K names.
    """
    rows = {}
    for index, name in enumerate(classes):
        is_class, is_called = labels == index, called[:, index]
        sensitivity = estimate_ratio(is_called & is_class, is_class)
        specificity = estimate_ratio(~is_called & ~is_class, ~is_class)
        rows[name] = {
            "sensitivity": describe(sensitivity, groups),
            "specificity": describe(specificity, groups),
        }
    return rows


def compute_risk_coverage(
    probs: FloatArray, labels: IntArray
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Error of the most confident slices by their share: the risk-coverage curve.

    Args:
        probs: [N, K].
        labels: [N] class ids.

    Returns:
        Shares kept in (0, 1] and the errors among them in [0, 1], a point for each confidence that
        occurs: slices of equal confidence are kept or referred together.

    Source: El-Yaniv and Wiener 2010, On the foundations of noise-free selective classification.
    """
    confidence = probs.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    n_kept = np.arange(1, len(labels) + 1)
    errors = np.cumsum((probs.argmax(axis=1) != labels)[order])
    last = np.append(np.diff(confidence[order]) != 0, True)
    return n_kept[last] / len(labels), errors[last] / n_kept[last]
