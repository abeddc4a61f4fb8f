"""Paired comparison: by hand, exact tests, error rate under the null hypothesis, and coverage."""

import numpy as np
import pytest
from scipy.stats import binomtest

from evaluation.comparison import compare_paired
from experiments import interval_coverage


def test_by_hand() -> None:
    # duplicate sets a a b c d d; the first is ahead on a (both files) and b, the second on c
    first = np.array([True, True, True, False, True, False])
    second = np.array([False, False, False, True, False, True])
    duplicate_sets = np.array(["a", "a", "b", "c", "d", "d"])
    found = compare_paired(first, second, duplicate_sets, duplicate_sets)
    assert found["difference"] == pytest.approx((3 - 1 + 0) / 6)
    assert (found["n_first"], found["n_second"]) == (2, 1)  # d: one file each
    assert found["p_value_slices"] == pytest.approx(1.0)  # McNemar: 2 against 1
    # sums 2, 1 and -1: six of the eight sign patterns give 2 or more in absolute value
    assert found["p_value"] == pytest.approx(6 / 8)
    assert found["ci95"][0] < found["difference"] < found["ci95"][1]


def test_a_large_group_has_more_weight() -> None:
    """The first is ahead in twelve groups of one image, the second in one group of 28."""
    groups = np.repeat(np.arange(13), [*[1] * 12, 28])
    found = compare_paired(groups < 12, groups == 12, groups, groups)
    assert found["difference"] == pytest.approx((12 - 28) / 40)
    assert found["p_value"] == pytest.approx(1.0, abs=0.01)
    assert found["ci95"][0] < 0 < found["ci95"][1]


def test_many_groups_use_random_sign_patterns() -> None:
    groups = np.arange(200)
    found = compare_paired(groups < 30, (groups >= 30) & (groups < 50), groups, groups)
    exact = float(binomtest(30, 50).pvalue)
    assert found["p_value"] == pytest.approx(exact, abs=0.015)
    assert found["p_value_slices"] == pytest.approx(exact)


def test_both_tests_are_exact_for_few_groups() -> None:
    first, second, alone = np.ones(30, bool), np.arange(30) >= 6, np.arange(30)
    assert compare_paired(first, second, alone, alone)["p_value"] == pytest.approx(2 * 0.5**6)
    triples = np.repeat(np.arange(10), 3)  # the six images are two slices
    found = compare_paired(first, second, triples, triples)
    assert found["p_value"] == pytest.approx(2 * 0.5**2)
    found = compare_paired(first, second, triples, np.repeat(np.arange(5), 6))  # of one group
    assert (found["n_first"], found["n_second"], found["p_value"]) == (1, 0, 1.0)
    assert found["p_value_slices"] == pytest.approx(2 * 0.5**2)


def test_only_the_test_over_groups_keeps_its_level() -> None:
    """Equally good classifiers that disagree on whole groups."""
    rng = np.random.default_rng(0)
    rejected = {"p_value": 0, "p_value_slices": 0}
    for _ in range(150):
        groups = np.repeat(np.arange(21), rng.integers(4, 9, 21))
        ahead = rng.choice([-1, 0, 1], 21, p=[0.3, 0.4, 0.3])[groups]
        found = compare_paired(ahead > 0, ahead < 0, np.arange(len(groups)), groups)
        for name in rejected:
            rejected[name] += found[name] < 0.05
    assert rejected["p_value"] <= 150 * 0.07
    assert rejected["p_value_slices"] > 150 * 0.25


def test_equal_predictions_differ_by_zero_with_an_interval() -> None:
    same = np.repeat([True, False], [190, 10])
    found = compare_paired(same, same, np.arange(200), np.arange(200))
    assert (found["difference"], found["p_value"]) == (0.0, 1.0)
    assert found["ci95"][1] == pytest.approx(1.96 * np.sqrt(2) / 200, rel=1e-3)
    with pytest.raises(ValueError, match="no images"):
        compare_paired(same[:0], same[:0], np.zeros(0), np.zeros(0))


@pytest.mark.parametrize(("base", "n_groups"), [(0.9, 60), (0.97, 250), (0.99, 250)])
def test_coverage(base: float, n_groups: int) -> None:
    """Two classifiers that share most errors; the second makes more."""
    rng = np.random.default_rng(1)
    extra = (1 - base) / 2
    is_covered = []
    for _ in range(1000):
        sizes = rng.integers(1, 6, n_groups)
        groups = np.repeat(np.arange(n_groups), sizes)
        first = interval_coverage.draw_correct(base, 0.5, sizes, rng)
        second = first & interval_coverage.draw_correct(1 - extra, 0.5, sizes, rng)
        low, high = compare_paired(first, second, groups, groups)["ci95"]
        is_covered.append(low <= base * extra <= high)
    assert np.mean(is_covered) >= 0.92, np.mean(is_covered)  # few disagreements: too wide
