"""Conformal prediction sets: thresholds of each class, and the coverage and size of sets."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.intervals import (
    BoolArray,
    FloatArray,
    IntArray,
    describe,
    estimate_ratio,
    weigh_by_group,
)

ALPHA = 0.05  # share of the slices of a class whose prediction set may miss it
MIN_SLICES = math.ceil(1 / ALPHA) - 1  # of a class; fewer give no threshold
CONFORMAL_KEYS = (
    *("alpha", "coverage", "coverage_ci95", "coverage_by_class", "coverage_by_class_ci95"),
    *("coverage_by_group", "mean_set_size"),
)


def fit_prediction_sets(
    probs: FloatArray, labels: IntArray, groups: NDArray[Any]
) -> tuple[list[float | None], list[int]]:
    """Fit for each class the least probability that puts it into a prediction set.

    The set of a new slice that is exchangeable with these contains its true class with a
    probability of 1 - ALPHA or more. Related slices are not exchangeable, so one of each group
    is drawn, independently of the order of the rows.

    Args:
        probs: [N, K].
        labels: [N] class ids.
        groups: [N] ids.

    Returns:
        Thresholds [K], None for a class with fewer than MIN_SLICES groups, and the number of slices
        that each was fitted on [K].

    Source: Sadinle et al. 2019, Least ambiguous set-valued classifiers with bounded error levels;
    Vovk 2012, Conditional validity of inductive conformal predictors.
    """
    thresholds: list[float | None] = []
    counts: list[int] = []
    for index in range(probs.shape[1]):
        own = labels == index
        scores = _draw_one_per_group(probs[own, index], groups[own])
        n_missed = math.floor(ALPHA * (len(scores) + 1))
        thresholds.append(float(np.sort(scores)[n_missed - 1]) if n_missed else None)
        counts.append(len(scores))
    return thresholds, counts


def _draw_one_per_group(scores: FloatArray, groups: NDArray[Any]) -> FloatArray:
    """Draw one score of each group at random with a fixed seed, from sorted scores."""
    order = np.lexsort((scores, groups))
    starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)[1:]
    drawn = np.random.default_rng(0).random(len(starts)) * sizes
    return scores[order][starts + drawn.astype(int)]


def compute_coverage(
    prediction_sets: BoolArray, labels: IntArray, groups: NDArray[Any], classes: Sequence[str]
) -> dict[str, Any]:
    """Compute the coverage and the size of prediction sets.

    Args:
        prediction_sets: [N, K].
        labels: [N] class ids.
        groups: [N] ids, the unit of the intervals.
        classes: K names.

    Returns:
        `alpha`, `coverage` and `coverage_by_class` in [0, 1] (the aim is 1 - alpha) with the
        intervals `coverage_ci95` and `coverage_by_class_ci95`; `coverage_by_group`: the coverage if
        every group counts once, as in `fit_prediction_sets`, over all classes and `by_class`;
        `mean_set_size` in classes, `share_single` and `share_empty`: shares of slices whose set
        has one class or none.
    """
    is_covered = prediction_sets[np.arange(len(labels)), labels]
    sizes = prediction_sets.sum(axis=1)
    is_class = {name: labels == index for index, name in enumerate(classes)}

    def describe_share(weights: FloatArray) -> dict[str, Any]:
        return describe(estimate_ratio(is_covered * weights, weights), groups)

    def weigh(rows: BoolArray) -> FloatArray:
        weights = np.zeros(len(rows))
        weights[rows] = weigh_by_group(groups[rows])
        return weights

    overall = describe_share(np.ones(len(labels)))
    by_class = {name: describe_share(rows.astype(float)) for name, rows in is_class.items()}
    return {
        "alpha": ALPHA,
        "coverage": overall["value"],
        "coverage_ci95": overall["ci95"],
        "coverage_by_class": {name: each["value"] for name, each in by_class.items()},
        "coverage_by_class_ci95": {name: each["ci95"] for name, each in by_class.items()},
        "coverage_by_group": {
            **describe_share(weigh_by_group(groups)),
            "by_class": {name: describe_share(weigh(rows)) for name, rows in is_class.items()},
        },
        "mean_set_size": float(sizes.mean()),
        "share_single": float(np.mean(sizes == 1)),
        "share_empty": float(np.mean(sizes == 0)),
    }
