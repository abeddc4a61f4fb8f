"""Temperature, prediction sets, referral: by hand, against scikit-learn, and covering."""

import json
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from evaluation.calibration import (
    ALPHA,
    FEWEST_SLICES,
    Calibrated,
    apply_calibration,
    bin_scores,
    compute_calibration,
    compute_conformal,
    compute_ece,
    compute_operating_points,
    compute_referral,
    compute_risk_coverage,
    fit_calibration,
    fit_prediction_sets,
    fit_temperature,
)
from evaluation.metrics import softmax

CLASSES = ["a", "b", "c"]


def draw_logits(
    rng: np.random.Generator, n_images: int, sharpness: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the chance of each class, times `sharpness`, and labels drawn so."""
    logits = 2.5 * rng.normal(size=(n_images, 3))
    chances = softmax(logits).cumsum(axis=1)
    labels = (rng.random((n_images, 1)) > chances).sum(axis=1)
    return sharpness * logits, labels


# ---- temperature


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_temperature_undoes_a_wrong_sharpness(sharpness: float) -> None:
    logits, labels = draw_logits(np.random.default_rng(0), 5000, sharpness)
    found = fit_temperature(logits, labels, np.arange(5000))
    assert found == pytest.approx(sharpness, rel=0.07)
    before, after = (compute_calibration(softmax(logits / value), labels) for value in (1.0, found))
    if sharpness != 1.0:
        for key in ("nll", "ece", "ece_classwise"):
            assert after[key] < before[key]


def test_val_without_an_error_does_not_ask_for_endless_confidence() -> None:
    labels = np.arange(30) % 3
    logits = 4.0 * np.eye(3)[labels]
    found = fit_temperature(logits, labels, np.arange(30))
    # targets of 30 groups: 31 / 33 and 1 / 33 each: their log-odds are log 31
    assert found == pytest.approx(4 / np.log(31), rel=1e-3)
    few = fit_temperature(logits, labels, np.arange(30) // 10)
    assert few > found  # three groups are less evidence


# ---- prediction sets


def test_thresholds_by_hand() -> None:
    # 39 slices of one class with probabilities 0.01 to 0.39: floor(0.05 * 40) = 2 may lie under
    own = np.arange(1, 40) / 100
    probs = np.stack([own, 1 - own, np.zeros(39)], axis=1)
    thresholds, counts = fit_prediction_sets(probs, np.zeros(39, int), np.arange(39))
    assert thresholds == [pytest.approx(0.02), None, None]
    assert counts == [39, 0, 0]


def test_fewer_than_nineteen_leave_nothing_out() -> None:
    assert FEWEST_SLICES == 19
    for n_slices, known in ((18, False), (19, True)):
        probs = np.full((n_slices, 3), 1 / 3)
        thresholds, _ = fit_prediction_sets(probs, np.zeros(n_slices, int), np.arange(n_slices))
        assert (thresholds[0] is not None) == known


def test_one_slice_a_group_whatever_the_order() -> None:
    rng = np.random.default_rng(0)
    probs = softmax(rng.normal(size=(300, 3)))
    labels, groups = np.arange(300) % 3, np.arange(300) // 6
    order = rng.permutation(300)
    first = fit_prediction_sets(probs, labels, groups)
    assert first == fit_prediction_sets(probs[order], labels[order], groups[order])
    assert first[1] == [50, 50, 50]


@pytest.mark.parametrize("n_groups", [120, 600])
def test_sets_hold_the_truth_as_often_as_they_say(n_groups: int) -> None:
    """200 splits of groups of 1 to 5 like slices into val and test."""
    held: list[list[float]] = []
    for split in range(200):
        rng = np.random.default_rng(split)
        sizes = rng.integers(1, 6, n_groups)
        logits, labels = draw_logits(rng, n_groups)
        groups = np.repeat(np.arange(n_groups), sizes)
        logits = logits[groups] + 0.3 * rng.normal(size=(len(groups), 3))
        labels = labels[groups]
        is_val = groups < n_groups // 2
        fitted = fit_calibration(logits[is_val], labels[is_val], groups[is_val], CLASSES)
        calibrated = apply_calibration(fitted, logits[~is_val])
        assert calibrated.sets is not None
        found = compute_conformal(calibrated.sets, labels[~is_val], CLASSES)
        held.append([found["coverage"], *found["coverage_by_class"].values()])
    means = np.mean(held, axis=0)
    # discreteness adds at most 1 / (n + 1) of a class: 20 or 100 val groups each
    most = 1 - ALPHA + 1 / (n_groups / 6 + 1) + 0.015
    assert (means >= 1 - ALPHA - 0.015).all(), means
    assert (means <= most).all(), means


def test_figures_of_sets_by_hand() -> None:
    sets = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1]], bool)
    found = compute_conformal(sets, np.array([0, 2, 1, 1]), CLASSES)
    assert found == {
        "alpha": 0.05,
        "coverage": 0.5,
        "coverage_by_class": {"a": 1.0, "b": 0.5, "c": 0.0},
        "mean_set_size": 1.25,
        "share_single": 0.25,
        "share_empty": 0.25,
    }
    assert compute_conformal(sets[:1], np.array([0]), CLASSES)["coverage_by_class"]["b"] is None
    refer = Calibrated(np.zeros((4, 3)), sets=sets).refer
    assert refer is not None
    assert refer.tolist() == [False, True, True, True]


# ---- figures of calibration


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_scikit_learn(seed: int) -> None:
    logits, labels = draw_logits(np.random.default_rng(seed), 300)
    probs = softmax(logits)
    found = compute_calibration(probs, labels)
    assert found["nll"] == pytest.approx(log_loss(labels, probs), abs=1e-12)
    by_class = [brier_score_loss(labels == index, probs[:, index]) for index in range(3)]
    assert found["brier"] == pytest.approx(sum(by_class), abs=1e-12)


def test_ece_by_hand() -> None:
    # two in the bin (13/15, 14/15], one in the last: |0.88 + 0.92 - 1| and |1 - 1| of 3
    scores = np.array([0.88, 0.92, 1.0])
    assert compute_ece(scores, np.array([True, False, True])) == pytest.approx(0.8 / 3)
    assert bin_scores(np.array([0.0, 1 / 15, 0.07, 1.0])).tolist() == [0, 0, 1, 14]
    probs = np.array([[0.9, 0.1], [0.2, 0.8]])
    found = compute_calibration(probs, np.array([0, 1]))
    assert found["ece"] == pytest.approx((0.1 + 0.2) / 2)
    assert found["ece_classwise"] == pytest.approx((0.1 + 0.2) / 2)
    assert found["brier"] == pytest.approx((2 * 0.01 + 2 * 0.04) / 2)


def test_certain_and_wrong_stays_finite() -> None:
    found = compute_calibration(np.array([[1.0, 0.0]]), np.array([1]))
    assert np.isfinite(found["nll"])
    assert found["nll"] > 30


# ---- referral and operating points


def test_risk_by_coverage_by_hand() -> None:
    probs = np.array([[0.9, 0.1], [0.6, 0.4], [0.6, 0.4], [0.3, 0.7]])
    kept, errors = compute_risk_coverage(probs, np.array([0, 0, 1, 1]))
    # 0.9 right; 0.7 right; the two of 0.6 together, one wrong
    assert kept.tolist() == [0.25, 0.5, 1.0]
    assert errors.tolist() == [0.0, 0.0, 0.25]


def test_referral_by_hand() -> None:
    unsure = np.zeros((4, 5), bool)
    unsure[0, 3:] = True
    unsure[:, 4] = True
    rows = compute_referral(unsure, np.array([False, True, True, True]), np.arange(4))
    assert [row["referred"] for row in rows] == [0, 0, 0, 0.25, 1]
    assert [row["accuracy_of_the_rest"]["value"] for row in rows] == [0.75, 0.75, 0.75, 1, None]
    assert rows[4]["accuracy_of_the_rest"]["ci95"] is None
    assert [row["share_of_val"] for row in rows] == [0.01, 0.02, 0.05, 0.1, 0.2]


def test_operating_point_leaves_out_95_percent_of_the_others() -> None:
    rng = np.random.default_rng(0)
    logits, labels = draw_logits(rng, 900)
    fitted = fit_calibration(logits, labels, np.arange(900), CLASSES)
    calibrated = apply_calibration(fitted, logits)
    assert calibrated.called is not None
    found = compute_operating_points(calibrated.called, labels, np.arange(900), CLASSES)
    for index, name in enumerate(CLASSES):
        specificity = found[name]["specificity"]["value"]
        n_others = int((labels != index).sum())
        assert 0.95 <= specificity < 0.95 + 1 / n_others + 1e-9
        low, high = found[name]["sensitivity"]["ci95"]
        assert low < found[name]["sensitivity"]["value"] < high


# ---- the whole


def fit(n_images: int = 240, labels: np.ndarray | None = None) -> dict[str, Any]:
    logits, drawn = draw_logits(np.random.default_rng(3), n_images)
    labels = drawn if labels is None else labels
    return fit_calibration(logits, labels, np.arange(n_images) // 2, CLASSES)


def test_what_is_fitted_is_plain_values() -> None:
    fitted = fit()
    assert json.loads(json.dumps(fitted, allow_nan=False)) == fitted
    assert (fitted["n_images"], fitted["n_groups"]) == (240, 120)
    confidences = [point["confidence"] for point in fitted["referral"]]
    assert confidences == sorted(confidences)


def test_a_val_of_one_class_or_one_slice_gives_something() -> None:
    for n_images in (1, 30):
        fitted = fit(n_images, np.zeros(n_images, int))
        assert fitted["operating_points"]["a"] is None
        assert fitted["conformal"]["thresholds"]["b"] is None
        calibrated = apply_calibration(fitted, np.zeros((2, 3)))
        assert calibrated.sets is not None
        assert calibrated.called is not None
        assert calibrated.sets[:, 1].all()
        assert not calibrated.called[:, 0].any()


def test_without_calibration_it_is_softmax() -> None:
    logits = np.array([[1.0, 2.0, 3.0]])
    found = apply_calibration(None, logits)
    assert found.probs == pytest.approx(softmax(logits))
    assert found.sets is None
    assert found.refer is None


def test_folds_are_joined_and_taken_apart() -> None:
    fitted = fit()
    logits = draw_logits(np.random.default_rng(5), 6)[0]
    whole = apply_calibration(fitted, logits)
    parts = [apply_calibration(fitted, logits[:2]), apply_calibration(fitted, logits[2:])]
    joined = Calibrated.concatenate(parts)
    assert joined.probs == pytest.approx(whole.probs)
    for name in ("sets", "called", "unsure"):
        assert np.array_equal(getattr(joined, name), getattr(whole, name))
    taken = whole.take(np.array([3, 1]))
    assert taken.probs == pytest.approx(whole.probs[[3, 1]])
    lacking = Calibrated.concatenate([parts[0], apply_calibration(None, logits[2:])])
    assert lacking.sets is None
    assert len(lacking.probs) == 6
