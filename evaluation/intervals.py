"""Intervals for figures of images that are not independent: groups are the unit.

A figure is an `Estimate`: its value and what each image adds to it. From that alone its interval
follows, be it an accuracy, an F1, an area under a curve or an average of them.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, rankdata

Z_95 = 1.959963984540054
EXACT_GROUPS, SIGN_DRAWS = 14, 20_000
PRIOR_GROUPS = 0.5  # doubt about a variance that few groups decide, in groups

Interval = tuple[float, float]
IntArray = NDArray[np.integer[Any]]
FloatArray = NDArray[np.floating[Any]]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Estimate:
    """A figure in [0, 1] and how it rests on the images.

    Attributes:
        value: The figure.
        residuals: [N] how far each image draws it from its value, to first order; they add up to 0.
        shares: [N] how far each image could move it: its weight, adding up to 1 for an average.
    """

    value: float
    residuals: NDArray[np.float64]
    shares: NDArray[np.float64]


def estimate_ratio(hits: NDArray[Any], trials: NDArray[Any] | None = None) -> Estimate | None:
    """The sum of hits over the sum of trials, in [0, 1]; None where nothing was tried.

    Accuracy, recall, precision, specificity, and F1 (2 TP of 2 TP + FP + FN trials) are such.

    Args:
        hits: [N] of each image, from 0 to its trials.
        trials: [N]; one an image when not given.
    """
    tried = np.ones(len(hits)) if trials is None else np.asarray(trials, dtype=np.float64)
    total = float(tried.sum())
    if not total:
        return None
    value = float(np.sum(hits) / total)
    return Estimate(value, (hits - value * tried) / total, tried / total)


def estimate_auc(is_class: BoolArray, scores: FloatArray) -> Estimate | None:
    """The area under the ROC curve, in [0, 1]; None where one side has no images.

    Args:
        is_class: [N].
        scores: [N], higher for the class; ties count half.

    Source: DeLong et al. 1988, Comparing the areas under two or more correlated ROC curves;
    Obuchowski 1997, Nonparametric analysis of clustered ROC curve data.
    """
    n_in, n_out = int(is_class.sum()), int((~is_class).sum())
    if not n_in or not n_out:
        return None
    ranks = rankdata(scores)
    placements = np.empty(len(scores))  # share of the other side that an image is on the right of
    placements[is_class] = (ranks[is_class] - rankdata(scores[is_class])) / n_out
    placements[~is_class] = 1 - (ranks[~is_class] - rankdata(scores[~is_class])) / n_in
    value = float((ranks[is_class].sum() - n_in * (n_in + 1) / 2) / (n_in * n_out))
    shares = np.where(is_class, 1 / n_in, 1 / n_out)
    return Estimate(value, (placements - value) * shares, shares)


def estimate_mcc(confusion: IntArray, predicted: IntArray, labels: IntArray) -> Estimate | None:
    """Matthews' correlation r of K classes as (1 + r) / 2; None where a side has one class only.

    Args:
        confusion: [K, K] counts, rows true.
        predicted: [N] class ids.
        labels: [N] class ids.

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
    # how it moves with one more image of true class (rows) and predicted class (columns)
    covariance = n_images * np.eye(len(counts)) + n_right - n_true[None, :] - n_predicted[:, None]
    slopes = (n_images - n_predicted)[None, :] / spread_predicted
    slopes = slopes + ((n_images - n_true) / spread_true)[:, None]
    slopes = covariance / scale - value * slopes
    shares = np.full(len(labels), 1 / n_images)
    return Estimate(float((1 + value) / 2), slopes[labels, predicted] / 2, shares)


def average_estimates(estimates: Sequence[Estimate]) -> Estimate:
    """The plain mean of figures of the same images."""
    return Estimate(
        float(np.mean([estimate.value for estimate in estimates])),
        np.mean([estimate.residuals for estimate in estimates], axis=0),
        np.mean([estimate.shares for estimate in estimates], axis=0),
    )


def compute_interval(estimate: Estimate, groups: NDArray[Any]) -> Interval:
    """The 95 % interval of a figure, within [0, 1], never of zero width.

    Wilson's score interval of as many independent trials as would give the figure its variance,
    which is that between groups. Near 1 a few groups decide it, and it is hardly known: it is drawn
    towards the largest that the groups' sizes allow (all of a group right or wrong together), the
    more the fewer groups it rests on. `experiments.interval_coverage` tells how often it holds
    the truth.

    Args:
        estimate: Of N images.
        groups: [N] ids; images of one group are not independent.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference; Kish
    1965, Survey sampling (design effect).
    """
    codes = np.unique(groups, return_inverse=True)[1]
    value, n_groups = estimate.value, int(codes.max()) + 1
    largest = float(np.sum(np.bincount(codes, weights=estimate.shares) ** 2))
    spread = value * (1 - value)
    n_trials = 1 / largest
    if 1e-12 < value < 1 - 1e-12 and n_groups > 1:
        squares = np.bincount(codes, weights=estimate.residuals) ** 2
        between = float(squares.sum()) * n_groups / (n_groups - 1)
        n_deciding = squares.sum() ** 2 / np.sum(squares**2) if between else 0.0
        trust = n_deciding / (n_deciding + PRIOR_GROUPS)
        alone = float(np.sum(estimate.residuals**2))
        drawn = trust * between + (1 - trust) * spread * largest
        n_trials = spread / max(alone, between, drawn)
    return _wilson(value, n_trials)


def describe(estimate: Estimate | None, groups: NDArray[Any]) -> dict[str, Any]:
    """A figure as metrics.json has it: `value` and `ci95`, both null where it is undefined."""
    if estimate is None:
        return {"value": None, "ci95": None}
    return {"value": estimate.value, "ci95": list(compute_interval(estimate, groups))}


def _wilson(value: float, n_trials: float) -> Interval:
    middle = (value + Z_95**2 / (2 * n_trials)) / (1 + Z_95**2 / n_trials)
    spread = value * (1 - value) / n_trials + Z_95**2 / (4 * n_trials**2)
    half = Z_95 * float(np.sqrt(spread)) / (1 + Z_95**2 / n_trials)
    # the value itself lies within: at 0 and 1 rounding could leave it out
    return max(0.0, min(value, middle - half)), min(1.0, max(value, middle + half))


def compute_difference(
    first: Estimate, first_groups: NDArray[Any], second: Estimate, second_groups: NDArray[Any]
) -> tuple[float, Interval]:
    """The difference of two figures of different images, first less second, and its 95 % interval.

    From the two intervals, as if they had nothing in common: where they share images or groups the
    interval is wider than it need be.

    Source: Newcombe 1998, Interval estimation for the difference between independent proportions.
    """
    first_low, first_high = compute_interval(first, first_groups)
    second_low, second_high = compute_interval(second, second_groups)
    down = float(np.hypot(first.value - first_low, second_high - second.value))
    up = float(np.hypot(first_high - first.value, second.value - second_low))
    difference = first.value - second.value
    return difference, (difference - down, difference + up)


@dataclass(frozen=True)
class Comparison:
    """Two classifiers on the same images.

    Attributes:
        difference: Accuracy of the first less that of the second, in [-1, 1].
        ci95: Its interval, groups as the unit.
        n_first: Groups in which the first is right about more images.
        n_second: The same of the second.
        p_value: How often a difference as large would come about, were each group as likely to
            differ the other way.
        p_value_slices: McNemar's exact test, one vote a slice, as if slices of a group did not err
            together: too small wherever they do.
    """

    difference: float
    ci95: Interval
    n_first: int
    n_second: int
    p_value: float
    p_value_slices: float

    def to_dict(self) -> dict[str, Any]:
        """As metrics.json has it."""
        return {**dataclasses.asdict(self), "ci95": list(self.ci95)}


def compare_paired(
    first_correct: BoolArray,
    second_correct: BoolArray,
    slices: NDArray[Any],
    groups: NDArray[Any],
) -> Comparison:
    """Compare two classifiers on the same images.

    Args:
        first_correct: [N].
        second_correct: [N].
        slices: [N] ids; copies of one slice have one vote, shared among them.
        groups: [N] ids; the unit of the interval and of the test.

    Raises:
        ValueError: There are no images.

    Both the interval and the test by groups are about the difference of accuracies: a group that
    weighs more in the one weighs more in the other.

    Source: after Bonett and Price 2012, Adjusted Wald confidence interval for a difference of
    binomial proportions based on paired data (one disagreement each way is added to the variance,
    here that of a group; the centre stays); Ernst 2004, Permutation methods: a basis for exact
    inference (signs of the groups' sums); by slices, McNemar 1947, Note on the sampling error of
    the difference between correlated proportions or percentages.
    """
    if not len(first_correct):
        raise ValueError("there are no images to compare")
    ahead = first_correct.astype(np.float64) - second_correct  # [N] -1, 0 or 1
    difference = float(ahead.mean())
    codes = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(codes)
    squares = np.bincount(codes, weights=ahead - difference) ** 2
    variance = (float(squares.sum()) + 2 * float(np.mean(sizes)) ** 2) / len(ahead) ** 2
    half = Z_95 * float(np.sqrt(variance))
    interval = (max(-1.0, difference - half), min(1.0, difference + half))
    by_group = np.bincount(codes, weights=ahead)
    slice_codes = np.unique(slices, return_inverse=True)[1]
    by_slice = np.bincount(slice_codes, weights=ahead)
    return Comparison(
        difference,
        interval,
        n_first=int((by_group > 0).sum()),
        n_second=int((by_group < 0).sum()),
        p_value=_flip_signs(by_group),
        p_value_slices=_test_signs(by_slice),
    )


def _flip_signs(sums: NDArray[Any]) -> float:
    """How often random signs make a sum as far from 0 as this one; 1 where all are 0.

    Were both classifiers equal, each group might as well be ahead the other way. All signs of up to
    14 groups are tried, 20,000 draws of more.
    """
    sums = sums[sums != 0]
    if len(sums) <= EXACT_GROUPS:
        codes = np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))
        signs = 1.0 - 2.0 * (codes & 1)
        known = 0
    else:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (SIGN_DRAWS, len(sums)))
        known = 1  # the signs as they are
    as_far = int((np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9).sum())
    return (as_far + known) / (len(signs) + known)


def _test_signs(votes: NDArray[Any]) -> float:
    """The exact two-sided p-value of as many votes one way as the other; 1 where none is cast."""
    n_first, n_cast = int((votes > 0).sum()), int((votes != 0).sum())
    return float(binomtest(n_first, n_cast).pvalue) if n_cast else 1.0
