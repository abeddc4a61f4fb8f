"""Prediction sets: thresholds by hand, one slice per group, and coverage."""

import numpy as np
import pytest

from evaluation.calibration import apply_calibration, fit_calibration
from evaluation.conformal import ALPHA, MIN_SLICES, compute_coverage, fit_prediction_sets
from evaluation.metrics import softmax
from tests.evaluation.test_calibration import CLASSES, draw_logits


def test_thresholds_by_hand() -> None:
    # 39 slices of one class with probabilities 0.01 to 0.39: floor(0.05 * 40) = 2 may be missed
    own = np.arange(1, 40) / 100
    probs = np.stack([own, 1 - own, np.zeros(39)], axis=1)
    thresholds, counts = fit_prediction_sets(probs, np.zeros(39, int), np.arange(39))
    assert thresholds == [pytest.approx(0.02), None, None]
    assert counts == [39, 0, 0]
    assert MIN_SLICES == 19
    for n_slices in (18, 19):
        (threshold, *_), _ = fit_prediction_sets(
            probs[:n_slices], np.zeros(n_slices, int), np.arange(n_slices)
        )
        assert (threshold is None) == (n_slices < MIN_SLICES)


def test_one_slice_per_group_in_any_order() -> None:
    rng = np.random.default_rng(0)
    probs = softmax(rng.normal(size=(300, 3)))
    labels, groups = np.arange(300) % 3, np.arange(300) // 6
    order = rng.permutation(300)
    first = fit_prediction_sets(probs, labels, groups)
    assert first == fit_prediction_sets(probs[order], labels[order], groups[order])
    assert first[1] == [50, 50, 50]


@pytest.mark.parametrize("n_groups", [120, 600])
def test_coverage_is_that_of_alpha(n_groups: int) -> None:
    """200 splits of groups of 1 to 5 similar slices into val and test."""
    covered: list[list[float]] = []
    contained: list[bool] = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(n_groups), rng.integers(1, 6, n_groups))
        logits, labels = draw_logits(rng, n_groups)
        logits = logits[groups] + 0.3 * rng.normal(size=(len(groups), 3))
        labels, is_val = labels[groups], groups < n_groups // 2
        # the temperature is fitted on the same slices
        fitted = fit_calibration(logits[is_val], labels[is_val], groups[is_val], CLASSES)
        sets = apply_calibration(fitted, logits[~is_val]).prediction_sets
        assert sets is not None
        found = compute_coverage(sets, labels[~is_val], groups[~is_val], CLASSES)
        by_group = found["coverage_by_group"]
        low, high = by_group["ci95"]
        contained.append(low <= 1 - ALPHA <= high)
        covered.append(
            [
                *(found["coverage"], by_group["value"]),
                *found["coverage_by_class"].values(),
                *(each["value"] for each in by_group["by_class"].values()),
            ]
        )
    means = np.mean(covered, axis=0)
    # discreteness adds at most 1 / (n + 1) of a class: 20 or 100 val groups each
    highest = 1 - ALPHA + 1 / (n_groups / 6 + 1) + 0.015
    assert (means >= 1 - ALPHA - 0.015).all(), means
    assert (means <= highest).all(), means
    assert np.mean(contained) >= 0.75  # the thresholds vary with val as well


def test_apply_calibration_uses_the_thresholds() -> None:
    logits, labels = draw_logits(np.random.default_rng(1), 300)
    fitted = fit_calibration(logits, labels, np.arange(300), CLASSES)
    calibrated = apply_calibration(fitted, logits)
    assert calibrated.prediction_sets is not None
    for index, threshold in enumerate(fitted["conformal"]["thresholds"].values()):
        expected = calibrated.probs[:, index] >= threshold
        assert np.array_equal(calibrated.prediction_sets[:, index], expected)


def test_coverage_by_hand() -> None:
    sets = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1]], bool)
    labels, groups = np.array([0, 2, 1, 1]), np.array([5, 7, 7, 7])
    found = compute_coverage(sets, labels, groups, CLASSES)
    values = {key: value for key, value in found.items() if "ci95" not in key}
    by_group = values.pop("coverage_by_group")
    assert values == {
        "alpha": 0.05,
        "coverage": 0.5,
        "coverage_by_class": {"a": 1.0, "b": 0.5, "c": 0.0},
        "mean_set_size": 1.25,
        "share_single": 0.25,
        "share_empty": 0.25,
    }
    assert by_group["value"] == pytest.approx((1 + 1 / 3) / 2)
    by_class = by_group["by_class"]
    assert {name: each["value"] for name, each in by_class.items()} == {"a": 1, "b": 0.5, "c": 0}
    for (low, high), value in (
        (found["coverage_ci95"], found["coverage"]),
        (found["coverage_by_class_ci95"]["c"], 0.0),
        (by_group["ci95"], by_group["value"]),
    ):
        assert 0 <= low <= value <= high <= 1
        assert low < high
    alone = compute_coverage(sets[:1], labels[:1], groups[:1], CLASSES)
    assert alone["coverage_by_class"]["b"] is alone["coverage_by_class_ci95"]["b"] is None
    assert alone["coverage_by_group"]["by_class"]["b"] == {"value": None, "ci95": None}
