"""Estimates and intervals: by hand, against scikit-learn, never of zero width, and coverage."""

import itertools
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef, roc_auc_score

from evaluation.intervals import (
    Estimate,
    average_estimates,
    compute_interval,
    describe,
    estimate_auc,
    estimate_mcc,
    estimate_ratio,
)
from evaluation.metrics import compute_confusion, compute_metrics
from experiments import interval_coverage


def estimate(hits: Any, trials: Any = None) -> Estimate:
    found = estimate_ratio(np.asarray(hits), None if trials is None else np.asarray(trials))
    assert found is not None
    return found


# ---- estimates


def test_ratio_by_hand() -> None:
    found = estimate([2.0, 0.0, 1.0, 0.0], [2, 1, 1, 0])
    assert found.value == pytest.approx(3 / 4)
    assert found.residuals == pytest.approx(np.array([0.5, -0.75, 0.25, 0.0]) / 4)
    assert found.weights == pytest.approx(np.array([2, 1, 1, 0]) / 4)
    assert estimate_ratio(np.zeros(3), np.zeros(3)) is None
    assert estimate_ratio(np.zeros(0)) is None
    assert describe(None, np.zeros(3)) == {"value": None, "ci95": None}
    assert describe(found, np.arange(4))["ci95"] == list(compute_interval(found, np.arange(4)))


def test_residuals_are_the_influence_of_each_image() -> None:
    """Against the metric without the image, which differs by second order (1 / N) only."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    predicted = np.where(rng.random(400) < 0.8, labels, rng.integers(0, 3, 400))
    scores = rng.normal(size=400) + (labels == 1)
    confusion = compute_confusion(predicted, labels, 3)
    f1 = estimate(2.0 * ((labels == 1) & (predicted == 1)), (labels == 1) * 1.0 + (predicted == 1))
    auc, mcc = estimate_auc(labels == 1, scores), estimate_mcc(confusion, predicted, labels)
    assert auc is not None
    assert mcc is not None
    for found, measure, values in (
        (f1, lambda true, value: f1_score(true == 1, value == 1), predicted),
        (auc, lambda true, value: roc_auc_score(true == 1, value), scores),
        (mcc, lambda true, value: (1 + matthews_corrcoef(true, value)) / 2, predicted),
    ):
        assert found.value == pytest.approx(measure(labels, values), abs=1e-12)
        assert found.residuals.sum() == pytest.approx(0, abs=1e-9)
        for image in range(0, 400, 97):
            without = measure(np.delete(labels, image), np.delete(values, image))
            assert found.residuals[image] == pytest.approx(found.value - without, abs=5e-5)


def test_auc_with_ties_and_without_one_side() -> None:
    is_class = np.array([True, True, False, False])
    found = estimate_auc(is_class, np.array([1.0, 0.5, 0.5, 0.0]))
    assert found is not None
    assert found.value == pytest.approx(3.5 / 4)
    assert found.residuals == pytest.approx(np.array([0.125, -0.125, -0.125, 0.125]) / 2)
    assert estimate_auc(np.ones(3, bool), np.zeros(3)) is None
    assert estimate_mcc(np.array([[2, 1], [0, 0]]), np.array([0, 0, 1]), np.zeros(3, int)) is None


def test_average_of_defined_estimates() -> None:
    mean = average_estimates([estimate([1, 0]), None, estimate([1, 1])])
    assert mean is not None
    assert mean.value == pytest.approx(0.75)
    assert mean.residuals == pytest.approx([0.125, -0.125])
    assert mean.weights == pytest.approx([0.5, 0.5])
    assert average_estimates([None]) is None


# ---- intervals


def test_single_images_give_wilsons_interval() -> None:
    correct = np.repeat([True, False], [900, 100])
    # Wilson for 900 of 1,000
    expected = pytest.approx((0.8799, 0.9171), abs=5e-4)
    assert compute_interval(estimate(correct), np.arange(1000)) == expected


def test_groups_of_duplicates_count_once() -> None:
    correct = np.repeat([True, False], [90, 10])
    single = compute_interval(estimate(correct), np.arange(100))
    triple = compute_interval(estimate(np.repeat(correct, 3)), np.repeat(np.arange(100), 3))
    assert triple == pytest.approx(single, abs=2e-3)
    # 20 of 20 groups: 1 / (1 + z^2 / 20)
    perfect = compute_interval(estimate(np.ones(60, bool)), np.arange(60) // 3)
    assert perfect == pytest.approx((0.8389, 1.0), abs=1e-4)


@pytest.mark.parametrize("n_images", [1, 5, 200])
def test_width_is_never_zero(n_images: int) -> None:
    perfect = estimate(np.ones(n_images, bool))
    low, high = compute_interval(perfect, np.arange(n_images) // 2)
    assert high == pytest.approx(1.0)
    assert low < 1.0
    single = compute_interval(perfect, np.arange(n_images))
    one_group = compute_interval(perfect, np.zeros(n_images))
    assert one_group[0] <= low <= single[0]
    low, high = compute_interval(estimate(np.zeros(n_images)), np.arange(n_images))
    assert low == 0.0
    assert high == pytest.approx(1 - single[0])
    low, high = compute_interval(estimate([True, True, False, True]), np.zeros(4))
    assert high - low > 0.7  # one group only


@pytest.mark.parametrize("accuracy", [0.9, 0.99])
def test_coverage(accuracy: float) -> None:
    found = interval_coverage.simulate(accuracy, 250, 0.3, n_trials=400)
    assert 0.925 <= found["coverage"] <= 0.99
    assert found["image_bootstrap"] < 0.9


@pytest.mark.parametrize("accuracy", interval_coverage.ACCURACIES)
def test_coverage_everywhere(accuracy: float) -> None:
    for n_groups, correlation in itertools.product(
        interval_coverage.GROUPS, interval_coverage.CORRELATIONS
    ):
        found = interval_coverage.simulate(accuracy, n_groups, correlation, n_trials=1000)
        # 93 to 98 %; the standard error of 1,000 trials is 0.7 %
        assert 0.923 <= found["coverage"] <= 0.987, (n_groups, correlation)


@pytest.mark.parametrize(("accuracy", "n_groups"), [(0.9, 60), (0.97, 250), (0.99, 250)])
def test_coverage_of_other_metrics(accuracy: float, n_groups: int) -> None:
    """Macro-F1, mcc and AUC of a simulated classifier; a million images give the true values."""

    def draw(rng: np.random.Generator, count: int) -> dict[str, Any]:
        sizes = rng.integers(1, 6, count)
        labels = np.repeat(rng.integers(0, 3, count), sizes)
        noise = np.repeat(rng.normal(size=count), sizes) + rng.normal(size=len(labels))
        margin = {0.9: 1.82, 0.97: 2.62, 0.99: 3.25}[accuracy] + noise / np.sqrt(2)
        wrong = (labels + 1 + rng.integers(0, 2, len(labels))) % 3
        probs = np.full((len(labels), 3), 0.01)
        probs[np.arange(len(labels)), labels] += 1 / (1 + np.exp(-margin))
        probs[np.arange(len(labels)), wrong] += 1 / (1 + np.exp(margin))
        groups = np.repeat(np.arange(count), sizes)
        probs /= probs.sum(axis=1, keepdims=True)
        return compute_metrics(probs, labels, groups, groups, ["a", "b", "c"])

    rng = np.random.default_rng(0)
    truth = draw(rng, 300_000)
    keys = ("accuracy", "f1_macro", "recall_macro", "mcc", "roc_auc_macro")
    is_covered: dict[str, list[bool]] = {key: [] for key in keys}
    for _ in range(600):
        found = draw(rng, n_groups)
        for key in keys:
            low, high = found[key]["ci95"]
            is_covered[key].append(low <= truth[key]["value"] <= high)
    shares = {key: float(np.mean(hits)) for key, hits in is_covered.items()}
    assert all(share >= 0.915 for share in shares.values()), shares
