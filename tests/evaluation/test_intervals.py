"""Intervals: by hand, never of zero width, and covering where this data lives."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score, matthews_corrcoef, roc_auc_score

from evaluation.intervals import (
    Estimate,
    average_estimates,
    compare_paired,
    compute_difference,
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


def test_a_ratio_by_hand() -> None:
    found = estimate([2.0, 0.0, 1.0, 0.0], [2, 1, 1, 0])
    assert found.value == pytest.approx(3 / 4)
    assert found.residuals == pytest.approx(np.array([0.5, -0.75, 0.25, 0.0]) / 4)
    assert found.shares == pytest.approx(np.array([2, 1, 1, 0]) / 4)
    assert estimate_ratio(np.zeros(3), np.zeros(3)) is None
    assert estimate_ratio(np.zeros(0)) is None


def change_without(image: int, measure: Any, *arrays: np.ndarray) -> float:
    """How much a figure falls when one image is taken away."""
    whole = measure(*arrays)
    return whole - measure(*(np.delete(array, image, axis=0) for array in arrays))


@pytest.mark.parametrize("seed", range(3))
def test_residuals_are_what_an_image_adds(seed: int) -> None:
    """Against the figure without the image, which differs by second order (1 / N) alone."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 400)
    predicted = np.where(rng.random(400) < 0.8, labels, rng.integers(0, 3, 400))
    scores = rng.normal(size=400) + (labels == 1)
    confusion = compute_confusion(predicted, labels, 3)
    f1 = estimate(2.0 * ((labels == 1) & (predicted == 1)), (labels == 1) * 1.0 + (predicted == 1))
    auc, mcc = estimate_auc(labels == 1, scores), estimate_mcc(confusion, predicted, labels)
    assert auc is not None
    assert mcc is not None
    for found, measure, arrays in (
        (f1, lambda true, called: f1_score(true == 1, called == 1), (labels, predicted)),
        (auc, lambda true, value: roc_auc_score(true == 1, value), (labels, scores)),
        (mcc, lambda true, called: (1 + matthews_corrcoef(true, called)) / 2, (labels, predicted)),
    ):
        assert found.value == pytest.approx(measure(*arrays), abs=1e-12)
        assert found.residuals.sum() == pytest.approx(0, abs=1e-9)
        for image in range(0, 400, 37):
            left = change_without(image, measure, *arrays)
            assert found.residuals[image] == pytest.approx(left, abs=5e-5)


def test_auc_with_ties_and_without_a_side() -> None:
    is_class = np.array([True, True, False, False])
    found = estimate_auc(is_class, np.array([1.0, 0.5, 0.5, 0.0]))
    assert found is not None
    assert found.value == pytest.approx(3.5 / 4)
    assert found.residuals == pytest.approx(np.array([0.125, -0.125, -0.125, 0.125]) / 2)
    assert estimate_auc(np.ones(3, bool), np.zeros(3)) is None
    assert estimate_mcc(np.array([[2, 1], [0, 0]]), np.array([0, 0, 1]), np.zeros(3, int)) is None


def test_an_average_is_the_mean_of_its_parts() -> None:
    whole = average_estimates([estimate([1, 0]), estimate([1, 1])])
    assert whole.value == pytest.approx(0.75)
    assert whole.residuals == pytest.approx([0.125, -0.125])
    assert whole.shares == pytest.approx([0.5, 0.5])


# ---- intervals


def test_single_images_of_many_errors_give_wilsons_interval() -> None:
    correct = np.repeat([True, False], [900, 100])
    low, high = compute_interval(estimate(correct), np.arange(1000))
    # Wilson for 900 of 1,000
    assert (low, high) == pytest.approx((0.8799, 0.9171), abs=5e-4)


def test_groups_of_equals_count_once() -> None:
    correct = np.repeat([True, False], [90, 10])
    once = compute_interval(estimate(correct), np.arange(100))
    thrice = compute_interval(estimate(np.repeat(correct, 3)), np.repeat(np.arange(100), 3))
    assert thrice == pytest.approx(once, abs=2e-3)


def test_no_error_is_wilsons_interval_of_the_groups() -> None:
    low, high = compute_interval(estimate(np.ones(60, bool)), np.arange(60) // 3)
    # 20 of 20: 1 / (1 + z^2 / 20)
    assert (low, high) == pytest.approx((0.8389, 1.0), abs=1e-4)


@pytest.mark.parametrize("n_images", [1, 5, 200])
def test_no_error_never_means_no_width(n_images: int) -> None:
    perfect = estimate(np.ones(n_images, bool))
    low, high = compute_interval(perfect, np.arange(n_images) // 2)
    assert high == pytest.approx(1.0)
    assert low < 1.0
    alone = compute_interval(perfect, np.arange(n_images))
    one_group = compute_interval(perfect, np.zeros(n_images))
    assert one_group[0] <= low <= alone[0]
    low, high = compute_interval(estimate(np.zeros(n_images)), np.arange(n_images))
    assert low == 0.0
    assert high == pytest.approx(1 - alone[0])


def test_one_group_of_both_says_almost_nothing() -> None:
    low, high = compute_interval(estimate([True, True, False, True]), np.zeros(4))
    assert high - low > 0.7


def test_undefined_stays_undefined() -> None:
    assert describe(None, np.zeros(3)) == {"value": None, "ci95": None}
    figure = describe(estimate([True, False]), np.arange(2))
    assert figure["value"] == 0.5
    assert isinstance(figure["ci95"], list)


@pytest.mark.parametrize("accuracy", [0.9, 0.99])
def test_the_interval_covers(accuracy: float) -> None:
    """A quick look; `test_the_interval_covers_everywhere` is the long one."""
    found = interval_coverage.simulate(accuracy, 250, 0.3, n_trials=400)
    assert 0.925 <= found["ours"] <= 0.99
    assert found["image_bootstrap"] < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("accuracy", interval_coverage.ACCURACIES)
@pytest.mark.parametrize("n_groups", interval_coverage.GROUPS)
@pytest.mark.parametrize("correlation", interval_coverage.CORRELATIONS)
def test_the_interval_covers_everywhere(accuracy: float, n_groups: int, correlation: float) -> None:
    found = interval_coverage.simulate(accuracy, n_groups, correlation, n_trials=1000)
    # 93 to 98 %, and 1,000 trials tell it to 0.7 %
    assert 0.923 <= found["ours"] <= 0.987


@pytest.mark.slow
@pytest.mark.parametrize(("accuracy", "n_groups"), [(0.9, 60), (0.97, 250), (0.99, 250)])
def test_intervals_of_other_figures_cover(accuracy: float, n_groups: int) -> None:
    """Macro-F1, mcc and AUC of a made-up classifier whose truth a million images tell."""

    def draw(rng: np.random.Generator, count: int) -> tuple[np.ndarray, ...]:
        sizes = rng.integers(1, 6, count)
        labels = np.repeat(rng.integers(0, 3, count), sizes)
        hard = np.repeat(rng.normal(size=count), sizes) + rng.normal(size=len(labels))
        margin = {0.9: 1.82, 0.97: 2.62, 0.99: 3.25}[accuracy] + hard / np.sqrt(2)
        wrong = (labels + 1 + rng.integers(0, 2, len(labels))) % 3
        probs = np.full((len(labels), 3), 0.01)
        probs[np.arange(len(labels)), labels] += 1 / (1 + np.exp(-margin))
        probs[np.arange(len(labels)), wrong] += 1 / (1 + np.exp(margin))
        groups = np.repeat(np.arange(count), sizes)
        return probs / probs.sum(axis=1, keepdims=True), labels, groups

    def measure(rng: np.random.Generator, count: int) -> dict[str, Any]:
        probs, labels, groups = draw(rng, count)
        return compute_metrics(probs, labels, groups, groups, ["a", "b", "c"])

    rng = np.random.default_rng(0)
    truth = measure(rng, 300_000)
    keys = ("accuracy", "f1_macro", "recall_macro", "mcc", "roc_auc_macro")
    held: dict[str, list[bool]] = {key: [] for key in keys}
    for _ in range(600):
        found = measure(rng, n_groups)
        for key in keys:
            low, high = found[key]["ci95"]
            held[key].append(low <= truth[key]["value"] <= high)
    shares = {key: float(np.mean(hits)) for key, hits in held.items()}
    assert all(share >= 0.915 for share in shares.values()), shares


# ---- comparisons


def test_a_difference_by_hand() -> None:
    first, second = np.repeat([True, False], [560, 140]), np.repeat([True, False], [480, 320])
    difference, (low, high) = compute_difference(
        estimate(first), np.arange(700), estimate(second), np.arange(800)
    )
    # Newcombe 1998, method 10, for 560/700 - 480/800
    assert difference == pytest.approx(0.2)
    assert (low, high) == pytest.approx((0.1542, 0.2446), abs=2e-3)


def test_a_difference_of_equals_holds_zero() -> None:
    same = estimate(np.repeat([True, False], [90, 10]))
    difference, (low, high) = compute_difference(same, np.arange(100), same, np.arange(100))
    assert difference == 0.0
    assert low < 0.0 < high


def test_pairs_by_hand() -> None:
    # slices a a b c d d; the first is ahead on a (both copies) and b, the second on c
    first = np.array([True, True, True, False, True, False])
    second = np.array([False, False, False, True, False, True])
    slices = np.array(["a", "a", "b", "c", "d", "d"])
    found = compare_paired(first, second, slices, slices)
    assert found.difference == pytest.approx((3 - 1 + 0) / 6)
    assert (found.n_first, found.n_second) == (2, 1)  # d: one copy each
    assert found.p_value_slices == pytest.approx(1.0)  # McNemar: 2 against 1
    # sums 2, 1 and -1: six of the eight choices of signs give 2 or more, either way
    assert found.p_value == pytest.approx(6 / 8)
    assert found.ci95[0] < found.difference < found.ci95[1]
    assert found.to_dict()["ci95"] == list(found.ci95)


def test_difference_and_p_value_are_of_one_thing() -> None:
    """Twelve groups of one image won, one of 28 lost: no evidence for either."""
    groups = np.repeat(np.arange(13), [*[1] * 12, 28])
    found = compare_paired(groups < 12, groups == 12, groups, groups)
    assert found.difference == pytest.approx((12 - 28) / 40)
    assert found.p_value == pytest.approx(1.0, abs=0.01)
    assert found.ci95[0] < 0 < found.ci95[1]


def test_many_groups_are_tested_by_drawn_signs() -> None:
    groups = np.arange(200)
    ahead = np.where(groups < 30, 1, np.where(groups < 50, -1, 0))
    found = compare_paired(ahead > 0, ahead < 0, groups, groups)
    exact = float(binomtest(30, 50).pvalue)
    assert found.p_value == pytest.approx(exact, abs=0.015)
    assert found.p_value_slices == pytest.approx(exact)


def test_both_tests_are_exact_for_few_groups() -> None:
    first, second = np.ones(30, bool), np.ones(30, bool)
    second[:6] = False
    found = compare_paired(first, second, np.arange(30), np.arange(30))
    assert found.p_value == pytest.approx(2 * 0.5**6)
    copies = np.repeat(np.arange(10), 3)  # the six are two slices
    assert compare_paired(first, second, copies, copies).p_value == pytest.approx(2 * 0.5**2)
    one = compare_paired(first, second, copies, np.repeat(np.arange(5), 6))  # of one group
    assert (one.n_first, one.n_second, one.p_value) == (1, 0, 1.0)
    assert one.p_value_slices == pytest.approx(2 * 0.5**2)


def test_the_test_by_groups_holds_its_level_where_neighbours_err_together() -> None:
    """Equal classifiers that disagree on whole groups of slices: by slices it would cry wolf."""
    rng = np.random.default_rng(0)
    rejected = {"p_value": 0, "p_value_slices": 0}
    for _ in range(300):
        groups = np.repeat(np.arange(21), rng.integers(4, 9, 21))
        ahead = rng.choice([-1, 0, 1], 21, p=[0.3, 0.4, 0.3])[groups]
        slices = np.arange(len(groups))
        found = compare_paired(ahead > 0, ahead < 0, slices, groups)
        for name in rejected:
            rejected[name] += getattr(found, name) < 0.05
    assert rejected["p_value"] <= 300 * 0.07
    assert rejected["p_value_slices"] > 300 * 0.25


def test_pairs_that_agree_differ_by_nothing_but_doubt() -> None:
    same = np.repeat([True, False], [190, 10])
    found = compare_paired(same, same, np.arange(200), np.arange(200))
    assert found.difference == 0.0
    assert found.p_value == 1.0
    assert found.ci95[1] == pytest.approx(1.96 * np.sqrt(2) / 200, rel=1e-3)
    with pytest.raises(ValueError, match="no images"):
        compare_paired(same[:0], same[:0], np.zeros(0), np.zeros(0))


@pytest.mark.slow
@pytest.mark.parametrize(("base", "n_groups"), [(0.9, 60), (0.97, 250), (0.99, 250)])
def test_the_paired_interval_covers(base: float, n_groups: int) -> None:
    """Two classifiers that share most errors; the second makes some of its own."""
    rng = np.random.default_rng(1)
    own = (1 - base) / 2
    held = []
    for _ in range(1000):
        sizes = rng.integers(1, 6, n_groups)
        groups = np.repeat(np.arange(n_groups), sizes)
        first = interval_coverage.draw_verdicts(base, 0.5, sizes, rng)
        second = first & interval_coverage.draw_verdicts(1 - own, 0.5, sizes, rng)
        low, high = compare_paired(first, second, groups, groups).ci95
        held.append(low <= base * own <= high)
    assert np.mean(held) >= 0.92, np.mean(held)  # few disagreements: wider than need be
