"""Intervals: by hand, never of zero width, and covering where this data lives."""

import numpy as np
import pytest

from assessment.uncertainty import compute_difference, compute_interval


def test_single_images_give_wilsons_interval() -> None:
    correct = np.repeat([True, False], [90, 10])
    low, high = compute_interval(correct, np.arange(100))
    # Wilson for 90 of 100
    assert (low, high) == pytest.approx((0.8256, 0.9448), abs=5e-4)


def test_groups_of_equals_count_once() -> None:
    correct = np.repeat([True, False], [90, 10])
    once = compute_interval(correct, np.arange(100))
    thrice = compute_interval(np.repeat(correct, 3), np.repeat(np.arange(100), 3))
    assert thrice == pytest.approx(once, abs=2e-3)


@pytest.mark.parametrize("n_images", [1, 5, 200])
def test_no_error_never_means_no_width(n_images: int) -> None:
    low, high = compute_interval(np.ones(n_images, bool), np.arange(n_images) // 2)
    assert high == pytest.approx(1.0)
    assert low < 1.0
    alone = compute_interval(np.ones(n_images, bool), np.arange(n_images))
    assert low <= alone[0]
    one_group = compute_interval(np.ones(n_images, bool), np.zeros(n_images))
    assert one_group[0] <= alone[0]


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        compute_interval(np.zeros(0, bool), np.zeros(0))
    with pytest.raises(ValueError, match="no images"):
        compute_difference(np.zeros(0, bool), np.zeros(0), np.ones(3, bool), np.zeros(3))


@pytest.mark.parametrize("accuracy", [0.9, 0.97, 0.99])
def test_the_interval_covers(accuracy: float) -> None:
    """Groups of 1 to 6 images that err together half of the time; 95 % aimed at."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(600):
        sizes = rng.integers(1, 7, 200)
        groups = np.repeat(np.arange(200), sizes)
        together = np.repeat(rng.random(200) < 0.5, sizes)
        shared = np.repeat(rng.random(200) < accuracy, sizes)
        correct = np.where(together, shared, rng.random(len(groups)) < accuracy)
        low, high = compute_interval(correct, groups)
        covered.append(low <= accuracy <= high)
    assert np.mean(covered) >= 0.935


def test_a_difference_by_hand() -> None:
    first, second = np.repeat([True, False], [56, 14]), np.repeat([True, False], [48, 32])
    difference, (low, high) = compute_difference(first, np.arange(70), second, np.arange(80))
    # Newcombe 1998, table II, example a, method 10: 56/70 - 48/80
    assert difference == pytest.approx(0.2)
    assert (low, high) == pytest.approx((0.0524, 0.3339), abs=2e-3)


def test_a_difference_of_equals_holds_zero() -> None:
    correct = np.repeat([True, False], [90, 10])
    difference, (low, high) = compute_difference(correct, np.arange(100), correct, np.arange(100))
    assert difference == 0.0
    assert low < 0.0 < high
