"""Confidence intervals for metrics of images that are not independent; groups are the unit.

An `Estimate` holds the value of a metric and the influence of each image on it. Its interval
follows from these alone, for an accuracy, an F1, an area under a curve or an average of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Z_95 = 1.959963984540054
PRIOR_GROUPS = 0.5  # weight of the prior on the between-group variance, in groups

Interval = tuple[float, float]
IntArray = NDArray[np.integer[Any]]
FloatArray = NDArray[np.floating[Any]]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Estimate:
    """A metric in [0, 1] and the influence of each image on it.

    Attributes:
        value: The metric.
        residuals: [N] first-order contribution of each image to the deviation from `value`; the
            sum is 0.
        weights: [N] how far each image could move the metric; the sum is 1 for an average.
    """

    value: float
    residuals: NDArray[np.float64]
    weights: NDArray[np.float64]


def weigh_by_group(groups: NDArray[Any]) -> NDArray[np.float64]:
    """Return the weight [N] of each image with which every group counts once: 1 / its size."""
    codes, sizes = np.unique(groups, return_inverse=True, return_counts=True)[1:]
    return 1 / sizes[codes]


def estimate_ratio(hits: NDArray[Any], trials: NDArray[Any] | None = None) -> Estimate | None:
    """Estimate the sum of hits [N] over the sum of trials [N], in [0, 1]; None without trials.

    Accuracy, recall, precision, specificity, and F1 (2 TP of 2 TP + FP + FN trials) have this form.
    By default each image is one trial.
    """
    tried = np.ones(len(hits)) if trials is None else np.asarray(trials, dtype=np.float64)
    total = float(tried.sum())
    if not total:
        return None
    value = float(np.sum(hits) / total)
    return Estimate(value, (hits - value * tried) / total, tried / total)


def estimate_auc(is_class: BoolArray, scores: FloatArray) -> Estimate | None:
    """Estimate the area under the ROC curve, in [0, 1]; None if class or rest has no images.

    The scores [N] are higher for the class, `is_class` [N] is the truth; ties count half.

    Source: DeLong et al. 1988, Comparing the areas under two or more correlated ROC curves;
    Obuchowski 1997, Nonparametric analysis of clustered ROC curve data.
    """
    n_in, n_out = int(is_class.sum()), int((~is_class).sum())
    if not n_in or not n_out:
        return None
    midranks = rankdata(scores)
    placements = np.empty(len(scores))  # share of the other side that is ordered correctly
    placements[is_class] = (midranks[is_class] - rankdata(scores[is_class])) / n_out
    placements[~is_class] = 1 - (midranks[~is_class] - rankdata(scores[~is_class])) / n_in
    value = float((midranks[is_class].sum() - n_in * (n_in + 1) / 2) / (n_in * n_out))
    weights = np.where(is_class, 1 / n_in, 1 / n_out)
    return Estimate(value, (placements - value) * weights, weights)


def estimate_mcc(confusion: IntArray, predicted: IntArray, labels: IntArray) -> Estimate | None:
    """Estimate the multiclass Matthews correlation r as (1 + r) / 2, in [0, 1].

    None if the labels [N] or the predictions [N] have one class only. The confusion matrix [K, K]
    has true classes in rows.

    Source: Gorodkin 2004, Comparing two K-category assignments by a K-category correlation
    coefficient.
    """
    counts = confusion.astype(np.float64)
    n_true, n_predicted = counts.sum(axis=1), counts.sum(axis=0)
    n_images, n_right = counts.sum(), counts.trace()
    spread_predicted = n_images**2 - n_predicted @ n_predicted
    spread_true = n_images**2 - n_true @ n_true
    if not spread_predicted or not spread_true:
        return None
    scale = np.sqrt(spread_predicted * spread_true)
    value = (n_right * n_images - n_true @ n_predicted) / scale
    # derivative with respect to one more image of true class (rows) and predicted class (columns)
    covariance = n_images * np.eye(len(counts)) + n_right - n_true[None, :] - n_predicted[:, None]
    slopes = (n_images - n_predicted)[None, :] / spread_predicted
    slopes = slopes + ((n_images - n_true) / spread_true)[:, None]
    slopes = covariance / scale - value * slopes
    weights = np.full(len(labels), 1 / n_images)
    return Estimate(float((1 + value) / 2), slopes[labels, predicted] / 2, weights)


def average_estimates(estimates: Iterable[Estimate | None]) -> Estimate | None:
    """Return the unweighted mean of the defined estimates of the same images; None without any."""
    defined = [estimate for estimate in estimates if estimate is not None]
    if not defined:
        return None
    return Estimate(
        float(np.mean([estimate.value for estimate in defined])),
        np.mean([estimate.residuals for estimate in defined], axis=0),
        np.mean([estimate.weights for estimate in defined], axis=0),
    )


def compute_interval(estimate: Estimate, groups: NDArray[Any]) -> Interval:
    """Compute the 95 % interval of an estimate, within [0, 1] and never of zero width.

    Wilson's score interval with the effective number of independent trials: the number that has
    the between-group variance of the estimate. Near 0 and 1 few groups determine that variance, so
    it is shrunk towards its maximum (each group entirely right or wrong), the more the fewer groups
    contribute. `experiments.interval_coverage` measures the coverage.

    Args:
        estimate: Of N images.
        groups: [N] ids; images of one group are not independent.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference; Kish
    1965, Survey sampling (design effect).
    """
    codes = np.unique(groups, return_inverse=True)[1]
    value, n_groups = estimate.value, int(codes.max()) + 1
    max_factor = float(np.sum(np.bincount(codes, weights=estimate.weights) ** 2))
    binomial = value * (1 - value)
    n_trials = 1 / max_factor
    if 1e-12 < value < 1 - 1e-12 and n_groups > 1:
        squares = np.bincount(codes, weights=estimate.residuals) ** 2
        between = float(squares.sum()) * n_groups / (n_groups - 1)
        n_effective = squares.sum() ** 2 / np.sum(squares**2) if between else 0.0
        trust = n_effective / (n_effective + PRIOR_GROUPS)
        independent = float(np.sum(estimate.residuals**2))
        shrunk = trust * between + (1 - trust) * binomial * max_factor
        n_trials = binomial / max(independent, between, shrunk)
    return _compute_wilson(value, n_trials)


def describe(estimate: Estimate | None, groups: NDArray[Any]) -> dict[str, Any]:
    """Return `value` and `ci95` for metrics.json, both null for an undefined metric."""
    if estimate is None:
        return {"value": None, "ci95": None}
    return {"value": estimate.value, "ci95": list(compute_interval(estimate, groups))}


def _compute_wilson(value: float, n_trials: float) -> Interval:
    middle = (value + Z_95**2 / (2 * n_trials)) / (1 + Z_95**2 / n_trials)
    spread = value * (1 - value) / n_trials + Z_95**2 / (4 * n_trials**2)
    half = Z_95 * float(np.sqrt(spread)) / (1 + Z_95**2 / n_trials)
    # rounding at 0 and 1 must not exclude the value itself
    return max(0.0, min(value, middle - half)), min(1.0, max(value, middle + half))
