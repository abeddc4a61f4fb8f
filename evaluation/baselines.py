"""Majority-class and brightness baselines, fitted on training images as plain values.

The accuracy of a network means little if the brightness baseline, without anatomy, reaches it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

IntArray = NDArray[np.integer[Any]]
Floats = NDArray[np.float64]

FOLDS = 5


def fit_brightness_baseline(statistics: Floats, labels: IntArray, n_classes: int) -> dict[str, Any]:
    """Fit a logistic regression on the statistics, their squares and their products.

    Args:
        statistics: [N, 7] of the training images.
        labels: [N] class ids in 0..K-1; a class without images is never predicted.
        n_classes: K.

    Returns:
        Lists of floats: `mean` and `scale` [7] of the statistics, `weights` [K, 35] and `bias` [K].

    Raises:
        ValueError: There are no images or an id is outside 0..K-1.
    """
    if not len(labels) or labels.min() < 0 or labels.max() >= n_classes:
        raise ValueError(f"labels: none, or ids outside 0..{n_classes - 1}")
    mean = statistics.mean(axis=0)
    scale = statistics.std(axis=0)
    scale[scale < 1e-9 * np.maximum(1.0, np.abs(mean))] = 1.0  # a constant: its feature is zero
    features = _expand((statistics - mean) / scale)
    spread = features.std(axis=0)
    spread[spread < 1e-9] = 1.0  # the solver converges on columns of equal scale; undone below
    present = np.unique(labels)
    weights = np.zeros((n_classes, features.shape[1]))
    bias = np.full(n_classes, -1e9)  # a class without images is never predicted
    if len(present) == 1:
        bias[present] = 0.0
    else:
        regression = LogisticRegression(max_iter=10_000).fit(features / spread, labels)
        weights_found, bias_found = regression.coef_, regression.intercept_
        if len(present) == 2:  # scikit-learn gives one row: second class against first
            weights_found = np.concatenate([np.zeros_like(weights_found), weights_found])
            bias_found = np.concatenate([[0.0], bias_found])
        weights[present] = weights_found / spread
        bias[present] = bias_found
    return {
        "mean": mean.tolist(),
        "scale": scale.tolist(),
        "weights": weights.tolist(),
        "bias": bias.tolist(),
    }


def predict_brightness(baseline: dict[str, Any], statistics: Floats) -> NDArray[np.int64]:
    """Predict class ids [N] from statistics [N, 7]."""
    standardised = (statistics - np.asarray(baseline["mean"])) / np.asarray(baseline["scale"])
    scores = _expand(standardised) @ np.asarray(baseline["weights"]).T + baseline["bias"]
    return scores.argmax(axis=1)


def cross_validate_brightness(
    statistics: Floats, labels: IntArray, groups: NDArray[Any]
) -> dict[str, float] | None:
    """Compute the accuracy of the brightness baseline in five folds over groups.

    Args:
        statistics: [N, 7].
        labels: [N] class ids in 0..K-1.
        groups: [N] ids; a group is never in training and test of one fold.

    Returns:
        Accuracies in [0, 1] of `majority` and `brightness`; None if a class has fewer than five
        groups.
    """
    n_classes = int(labels.max()) + 1
    n_groups = [len(np.unique(groups[labels == label])) for label in range(n_classes)]
    if min(n_groups) < FOLDS:
        return None
    order = np.lexsort((labels, groups))  # the folds must not depend on the row order
    statistics, labels, groups = statistics[order], labels[order], groups[order]
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    predicted = np.zeros_like(labels)
    for train, test in folds.split(statistics, labels, groups):
        baseline = fit_brightness_baseline(statistics[train], labels[train], n_classes)
        predicted[test] = predict_brightness(baseline, statistics[test])
    return {
        "majority": float(np.bincount(labels).max() / len(labels)),
        "brightness": float(np.mean(predicted == labels)),
    }


def fit_baselines(statistics: Floats, labels: IntArray, n_classes: int) -> dict[str, Any]:
    """Fit both baselines on the training slices, as plain values for the checkpoint.

    `majority` is the most frequent class, the first in a tie; arguments and errors are those of
    `fit_brightness_baseline`.
    """
    return {
        "majority": int(np.bincount(labels, minlength=n_classes).argmax()),
        "brightness": fit_brightness_baseline(statistics, labels, n_classes),
    }


def score_baselines(
    baselines: dict[str, Any], statistics: Floats, labels: IntArray
) -> dict[str, NDArray[np.bool_]]:
    """Return for `majority` and `brightness` whether each prediction is right, [N] each.

    Args:
        baselines: Result of `fit_baselines`.
        statistics: [N, 7].
        labels: [N] class ids.
    """
    predicted = predict_brightness(baselines["brightness"], statistics)
    return {"majority": labels == baselines["majority"], "brightness": predicted == labels}


def _expand(standardised: Floats) -> Floats:
    """[N, 7] -> [N, 35]: the statistics, their squares and their pairwise products."""
    first, second = np.triu_indices(standardised.shape[1])
    return np.concatenate([standardised, standardised[:, first] * standardised[:, second]], axis=1)
