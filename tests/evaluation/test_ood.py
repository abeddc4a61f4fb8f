"""Distances of embeddings, and beyond which a picture is unlike those of training."""

import numpy as np

from evaluation.ood import find_nearest, fit_novelty, fit_threshold, measure_distances, standardise


def test_the_nearest_are_those_of_the_smallest_angle() -> None:
    reference = np.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]], np.float32)
    rows = find_nearest(reference, np.array([[5.0, 1.0], [-1.0, 9.0]], np.float32))
    assert rows.tolist() == [[0, 1, 2], [1, 2, 0]]


def test_no_more_than_five_are_given() -> None:
    reference = np.eye(9, dtype=np.float32)
    rows = find_nearest(reference, reference[3:4])
    assert rows.shape == (1, 5)
    assert rows[0, 0] == 3


def test_two_per_cent_of_the_groups_go_beyond() -> None:
    groups = np.repeat([f"g{number:03d}" for number in range(100)], 3)
    distances = np.repeat(np.arange(100.0), 3) - np.tile([0.0, 0.2, 0.4], 100)
    assert fit_threshold(distances, groups) == 97.0  # of 98 and 99 the farthest lies beyond
    assert fit_threshold(distances[:9], groups[:9]) == 2.0  # of few none does


def test_distances_are_to_the_fifth_nearest() -> None:
    reference = np.arange(9, dtype=np.float32)[:, None]
    np.testing.assert_allclose(
        measure_distances(reference, np.array([[0], [4]], np.float32)), [4, 2]
    )
    np.testing.assert_allclose(measure_distances(reference[:2], np.zeros((1, 1), np.float32)), [1])


def test_deviations_are_those_of_training_and_bounded() -> None:
    mean, deviation = np.array([10, 0], np.float32), np.array([2, 0], np.float32)
    assert standardise(np.array([[14, 1]], np.float32), mean, deviation).tolist() == [[2, 30]]


def test_what_is_like_training_lies_within_the_threshold() -> None:
    rng = np.random.default_rng(0)
    train, val, new = (rng.normal(5, 2, (n, 8)).astype(np.float32) for n in (200, 100, 300))
    fitted = fit_novelty(train, val, np.arange(100).astype(str))

    def measure(values: np.ndarray) -> np.ndarray:
        scaled = standardise(values, fitted.mean, fitted.deviation)
        return measure_distances(fitted.statistics, scaled)

    assert (measure(new) > fitted.threshold).mean() < 0.05
    assert (measure(new + 12) > fitted.threshold).all()
