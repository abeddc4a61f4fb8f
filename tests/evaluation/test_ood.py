"""Out-of-distribution detection: distances, threshold and detector."""

import numpy as np

from evaluation.ood import (
    compute_distances,
    find_nearest,
    fit_ood_detector,
    fit_threshold,
    standardise,
)


def test_nearest_have_the_smallest_angle() -> None:
    reference = np.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]], np.float32)
    rows = find_nearest(reference, np.array([[5.0, 1.0], [-1.0, 9.0]], np.float32))
    assert rows.tolist() == [[0, 1, 2], [1, 2, 0]]
    rows = find_nearest(np.eye(9, dtype=np.float32), np.eye(9, dtype=np.float32)[3:4])
    assert rows.shape == (1, 5)  # at most five
    assert rows[0, 0] == 3


def test_two_percent_of_the_groups_exceed_the_threshold() -> None:
    groups = np.repeat([f"g{number:03d}" for number in range(100)], 3)
    distances = np.repeat(np.arange(100.0), 3) - np.tile([0.0, 0.2, 0.4], 100)
    assert fit_threshold(distances, groups) == 97.0  # the farthest slices of 98 and 99 exceed it
    assert fit_threshold(distances[:9], groups[:9]) == 2.0  # of few groups none does


def test_distances_are_to_the_fifth_nearest() -> None:
    reference = np.arange(9, dtype=np.float32)[:, None]
    distances = compute_distances(reference, np.array([[0], [4]], np.float32))
    np.testing.assert_allclose(distances, [4, 2])
    np.testing.assert_allclose(compute_distances(reference[:2], np.zeros((1, 1), np.float32)), [1])


def test_standardised_statistics_are_clipped() -> None:
    mean, deviation = np.array([10, 0], np.float32), np.array([2, 0], np.float32)
    assert standardise(np.array([[14, 1]], np.float32), mean, deviation).tolist() == [[2, 30]]


def test_detector_separates_a_shifted_distribution() -> None:
    rng = np.random.default_rng(0)
    train, val, new = (rng.normal(5, 2, (n, 8)).astype(np.float32) for n in (200, 100, 300))
    detector = fit_ood_detector(train, val, np.arange(100).astype(str))

    def measure(values: np.ndarray) -> np.ndarray:
        scaled = standardise(values, detector.mean, detector.deviation)
        return compute_distances(detector.statistics, scaled)

    assert (measure(new) > detector.threshold).mean() < 0.05
    assert (measure(new + 12) > detector.threshold).all()
