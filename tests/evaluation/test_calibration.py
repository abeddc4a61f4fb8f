"""Temperature, calibration metrics, review and operating points: by hand and with scikit-learn."""

import json
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from evaluation.calibration import (
    Calibrated,
    apply_calibration,
    bin_scores,
    compute_calibration,
    compute_ece,
    compute_operating_points,
    compute_review,
    compute_risk_coverage,
    describe_ece,
    estimate_augrc,
    fit_calibration,
    fit_temperature,
)
from evaluation.intervals import compute_interval
from evaluation.metrics import softmax

CLASSES = ["a", "b", "c"]


def draw_logits(
    rng: np.random.Generator, n_images: int, sharpness: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw calibrated logits, multiplied by `sharpness`, and labels."""
    logits = 2.5 * rng.normal(size=(n_images, 3))
    cumulative = softmax(logits).cumsum(axis=1)
    labels = (rng.random((n_images, 1)) > cumulative).sum(axis=1)
    return sharpness * logits, labels


def fit(n_images: int = 240, labels: np.ndarray | None = None) -> dict[str, Any]:
    logits, drawn = draw_logits(np.random.default_rng(3), n_images)
    labels = drawn if labels is None else labels
    return fit_calibration(logits, labels, np.arange(n_images) // 2, CLASSES)


# ---- temperature


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_temperature_undoes_a_wrong_sharpness(sharpness: float) -> None:
    logits, labels = draw_logits(np.random.default_rng(0), 5000, sharpness)
    found = fit_temperature(logits, labels, np.arange(5000))
    assert found == pytest.approx(sharpness, rel=0.07)
    before, after = (
        compute_calibration(softmax(logits / value), labels, np.arange(5000))
        for value in (1.0, found)
    )
    if sharpness != 1.0:
        assert all(after[key] < before[key] for key in ("nll", "ece", "ece_classwise"))


def test_temperature_of_val_without_errors_is_above_zero() -> None:
    labels = np.arange(30) % 3
    logits = 4.0 * np.eye(3)[labels]
    found = fit_temperature(logits, labels, np.arange(30))
    # NLL of a group: log(1 + 2 exp(-4 / T)); prior: (log T)^2 / 2; the slopes by log T add up to 0
    wrong = np.exp(-4 / found)
    assert 30 * 2 * wrong / (1 + 2 * wrong) * 4 / found == pytest.approx(-np.log(found), rel=1e-3)
    assert found < 1
    few = fit_temperature(logits, labels, np.arange(30) // 10)
    assert found < few < 1  # three groups only: nearer to 1


def test_a_group_counts_once_for_the_temperature() -> None:
    logits, labels = draw_logits(np.random.default_rng(1), 40, 2.0)
    once = fit_temperature(logits, labels, np.arange(40))
    copies = np.repeat(np.arange(40), np.arange(40) % 7 + 1)
    assert fit_temperature(logits[copies], labels[copies], copies) == pytest.approx(once, rel=1e-4)


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_few_groups_do_not_bias_the_temperature(true: float) -> None:
    """The mean of log T over val sets of 100 groups: at most 0.1 from the true value."""
    fitted = []
    for seed in range(60):
        logits, labels = draw_logits(np.random.default_rng(seed), 100, true)
        fitted.append(np.log(fit_temperature(logits, labels, np.arange(100))))
    assert np.mean(fitted) == pytest.approx(np.log(true), abs=0.1)


# ---- metrics


def test_agrees_with_scikit_learn() -> None:
    logits, labels = draw_logits(np.random.default_rng(0), 300)
    probs = softmax(logits)
    found = compute_calibration(probs, labels, np.arange(300))
    assert found["nll"] == pytest.approx(log_loss(labels, probs), abs=1e-12)
    by_class = [brier_score_loss(labels == index, probs[:, index]) for index in range(3)]
    assert found["brier"] == pytest.approx(sum(by_class), abs=1e-12)


def test_ece_by_hand() -> None:
    # two in the bin (13/15, 14/15], one in the last: |0.88 + 0.92 - 1| and |1 - 1| of 3
    scores = np.array([0.88, 0.92, 1.0])
    assert compute_ece(scores, np.array([True, False, True])) == pytest.approx(0.8 / 3)
    assert bin_scores(np.array([0.0, 1 / 15, 0.07, 1.0])).tolist() == [0, 0, 1, 14]
    groups = np.arange(2)
    found = compute_calibration(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1]), groups)
    assert found["ece"] == pytest.approx((0.1 + 0.2) / 2)
    assert found["ece_classwise"] == pytest.approx((0.1 + 0.2) / 2)
    assert found["brier"] == pytest.approx((2 * 0.01 + 2 * 0.04) / 2)
    certain_and_wrong = compute_calibration(np.array([[1.0, 0.0]]), np.array([1]), groups[:1])
    assert 30 < certain_and_wrong["nll"] < np.inf
    # one group has no variance: no bias is found, and nothing is excluded
    assert certain_and_wrong["ece_debiased"] == {"value": 1.0, "ci95": [0.0, 1.0]}


def test_ece_of_a_calibrated_network_is_debiased() -> None:
    """Five images of each of 60 groups share their logits and outcome; the true ECE is 0."""
    copies = np.repeat(np.arange(60), 5)
    found, biased = [], []
    for seed in range(60):
        logits, labels = draw_logits(np.random.default_rng(seed), 60)
        metrics = compute_calibration(softmax(logits[copies]), labels[copies], copies)
        found.append(metrics["ece_debiased"])
        biased.append(metrics["ece"])
        low, high = found[-1]["ci95"]
        assert 0 <= low <= found[-1]["value"] < high <= 1
    assert np.mean([each["value"] for each in found]) < 0.75 * np.mean(biased)
    assert np.mean([each["ci95"][0] > 0 for each in found]) <= 0.1
    # the interval of single images does not know that they are copies
    alone = compute_calibration(softmax(logits[copies]), labels[copies], np.arange(300))
    halves = [each["ci95"][1] - each["value"] for each in (alone["ece_debiased"], found[-1])]
    assert 2 * halves[0] < halves[1]


@pytest.mark.parametrize("sharpness", [0.5, 2.0])
def test_interval_of_the_ece_contains_the_true_one(sharpness: float) -> None:
    """Groups of one to five correlated images, 100 groups; the true ECE is that of many images."""
    logits, _ = draw_logits(np.random.default_rng(0), 100_000)
    probs, truth = softmax(sharpness * logits), softmax(logits)
    gaps = probs.max(axis=1) - truth.max(axis=1)
    true = np.abs(np.bincount(bin_scores(probs.max(axis=1)), weights=gaps)).sum() / len(gaps)
    contained = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(100), rng.integers(1, 6, 100))
        logits, labels = draw_logits(rng, 100)
        probs = softmax(sharpness * logits[groups])
        low, high = describe_ece(probs.max(axis=1), probs.argmax(axis=1) == labels[groups], groups)[
            "ci95"
        ]
        contained.append(low <= true <= high)
    assert np.mean(contained) >= 0.9


def test_risk_coverage_by_hand() -> None:
    probs = np.array([[0.9, 0.1], [0.6, 0.4], [0.6, 0.4], [0.3, 0.7]])
    coverage, errors = compute_risk_coverage(probs, np.array([0, 0, 1, 1]))
    # 0.9 right; 0.7 right; the two of 0.6 together, one wrong
    assert coverage.tolist() == [0.25, 0.5, 1.0]
    assert errors.tolist() == [0.0, 0.0, 0.25]


def test_augrc_by_hand() -> None:
    # retained in this order: 0.9 right, 0.8 wrong, 0.7 right, 0.6 wrong
    probs = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    labels = np.array([1, 0, 0, 0])
    # errors of 4 at coverage 0, 1/4 to 1: 0, 0, 1, 1, 2; trapezoids of width 1/4
    assert estimate_augrc(probs, labels).value == pytest.approx((0 + 0.5 + 1 + 1.5) / 4 / 4)
    # the two of 0.6 together, one wrong: errors 0, 0 and 1 at coverage 0, 1/2 and 1
    tied = np.array([[0.9, 0.1], [0.6, 0.4], [0.6, 0.4], [0.2, 0.8]])
    assert estimate_augrc(tied, np.array([0, 0, 1, 1])).value == pytest.approx(0.25 / 2 / 2)
    assert estimate_augrc(probs, probs.argmax(axis=1)).value == 0  # no errors


def test_augrc_agrees_with_the_area_under_the_roc_curve() -> None:
    logits, labels = draw_logits(np.random.default_rng(2), 400)
    probs = softmax(logits).round(2)  # with equal confidences
    correct = probs.argmax(axis=1) == labels
    accuracy, auc = correct.mean(), roc_auc_score(correct, probs.max(axis=1))
    expected = (1 - auc) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
    found = estimate_augrc(probs, labels)
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.residuals.sum() == pytest.approx(0, abs=1e-12)
    # the residual of an image is the derivative by its weight: double the last one
    again = np.append(np.arange(400), 399)
    moved = estimate_augrc(probs[again], labels[again]).value - found.value
    assert moved == pytest.approx(found.residuals[-1], abs=2e-5)


def test_interval_of_augrc_contains_the_true_one() -> None:
    logits, labels = draw_logits(np.random.default_rng(0), 100_000)
    true = estimate_augrc(softmax(logits), labels).value
    contained = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(100), rng.integers(1, 6, 100))
        logits, labels = draw_logits(rng, 100)
        estimate = estimate_augrc(softmax(logits[groups]), labels[groups])
        low, high = compute_interval(estimate, groups)
        contained.append(low <= true <= high)
    assert np.mean(contained) >= 0.92


def test_review_by_hand() -> None:
    low_confidence = np.zeros((4, 5), bool)
    low_confidence[0, 3:] = True
    low_confidence[:, 4] = True
    rows = compute_review(low_confidence, np.array([False, True, True, True]), np.arange(4))
    assert [row["share_of_val"] for row in rows] == [0.01, 0.02, 0.05, 0.1, 0.2]
    assert [row["share_for_review"] for row in rows] == [0, 0, 0, 0.25, 1]
    assert [row["accuracy_of_the_rest"]["value"] for row in rows] == [0.75, 0.75, 0.75, 1, None]
    assert rows[4]["accuracy_of_the_rest"]["ci95"] is None


def test_operating_point_has_95_percent_specificity() -> None:
    logits, labels = draw_logits(np.random.default_rng(0), 900)
    fitted = fit_calibration(logits, labels, np.arange(900), CLASSES)
    calibrated = apply_calibration(fitted, logits)
    assert calibrated.detected is not None
    found = compute_operating_points(calibrated.detected, labels, np.arange(900), CLASSES)
    for index, name in enumerate(CLASSES):
        n_others = int((labels != index).sum())
        assert 0.95 <= found[name]["specificity"]["value"] < 0.95 + 1 / n_others + 1e-9
        low, high = found[name]["sensitivity"]["ci95"]
        assert low < found[name]["sensitivity"]["value"] < high


# ---- fit and apply


def test_fitted_values_are_plain() -> None:
    fitted = fit()
    assert json.loads(json.dumps(fitted, allow_nan=False)) == fitted
    assert (fitted["n_images"], fitted["n_groups"]) == (240, 120)
    confidences = [point["confidence"] for point in fitted["review"]]
    assert confidences == sorted(confidences)


@pytest.mark.parametrize("n_images", [1, 30])
def test_val_of_one_class(n_images: int) -> None:
    fitted = fit(n_images, np.zeros(n_images, int))
    assert fitted["operating_points"]["a"] is None
    assert fitted["conformal"]["thresholds"]["b"] is None
    calibrated = apply_calibration(fitted, np.zeros((2, 3)))
    assert calibrated.prediction_sets is not None
    assert calibrated.detected is not None
    assert calibrated.prediction_sets[:, 1].all()
    assert not calibrated.detected[:, 0].any()


def test_needs_review_unless_the_set_is_one_class() -> None:
    prediction_sets = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]], bool)
    needs_review = Calibrated(np.zeros((3, 3)), prediction_sets).needs_review
    assert needs_review is not None
    assert needs_review.tolist() == [False, True, True]
    logits = np.array([[1.0, 2.0, 3.0]])
    uncalibrated = apply_calibration(None, logits)
    assert uncalibrated.probs == pytest.approx(softmax(logits))
    assert uncalibrated.prediction_sets is None
    assert uncalibrated.needs_review is None


def test_concatenate_and_take() -> None:
    fitted = fit()
    logits = draw_logits(np.random.default_rng(5), 6)[0]
    whole = apply_calibration(fitted, logits)
    parts = [apply_calibration(fitted, logits[:2]), apply_calibration(fitted, logits[2:])]
    joined = Calibrated.concatenate(parts)
    assert joined.probs == pytest.approx(whole.probs)
    for name in ("prediction_sets", "detected", "low_confidence"):
        assert np.array_equal(getattr(joined, name), getattr(whole, name))
    assert whole.take(np.array([3, 1])).probs == pytest.approx(whole.probs[[3, 1]])
    mixed = Calibrated.concatenate([parts[0], apply_calibration(None, logits[2:])])
    assert mixed.prediction_sets is None
    assert len(mixed.probs) == 6
