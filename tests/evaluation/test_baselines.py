import json
import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from evaluation import baselines
from evaluation.baselines import (
    compute_brightness_statistics,
    cross_validate_brightness,
    fit_baselines,
    fit_brightness_baseline,
    fit_majority_baseline,
    judge_baselines,
    predict_brightness,
)


def make_clusters(n_each: int, levels: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Statistics that differ by class in the mean alone, with noise of deviation 1."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(levels)), n_each)
    statistics = rng.normal(size=(len(labels), 7))
    statistics[:, 0] += np.array(levels)[labels]
    return statistics, labels


def test_statistics_by_hand() -> None:
    pixels = np.array(
        [[[0, 10, 20], [30, 40, 50]], [[9, 9, 9], [9, 9, 9]], [[0, 0, 0], [0, 255, 255]]], np.uint8
    )
    expected = [
        [25.0, np.sqrt(1750 / 6), 1 / 6, 12.5, 25.0, 37.5, 47.5],
        [9.0, 0.0, 1.0, 9.0, 9.0, 9.0, 9.0],
        # sorted 0 0 0 0 255 255: the 75th percentile lies 3/4 of the way from the 4th to the 5th
        [85.0, 85 * np.sqrt(2), 4 / 6, 0.0, 0.0, 191.25, 255.0],
    ]
    result = compute_brightness_statistics(pixels)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, expected, atol=1e-12)


def test_statistics_know_no_place() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    np.testing.assert_allclose(
        compute_brightness_statistics(pixels),
        compute_brightness_statistics(np.rot90(pixels, axes=(1, 2))),
        atol=1e-12,
    )


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 4), dtype=np.uint8)
    whole = compute_brightness_statistics(pixels)
    for n_pixels in (1, 20, 59, 60):  # one, one, two and three pictures a chunk
        monkeypatch.setattr(baselines, "CHUNK_PIXELS", n_pixels)
        np.testing.assert_array_equal(compute_brightness_statistics(pixels), whole)


def test_no_pictures_give_no_rows() -> None:
    assert compute_brightness_statistics(np.zeros((0, 4, 4), np.uint8)).shape == (0, 7)


def test_majority() -> None:
    assert fit_majority_baseline(np.array([2, 0, 2, 1]), 3) == 2
    assert fit_majority_baseline(np.array([1, 0]), 3) == 0  # the first of equals
    assert type(fit_majority_baseline(np.array([1]), 3)) is int
    with pytest.raises(ValueError, match="no labels"):
        fit_majority_baseline(np.zeros(0, int), 3)


@pytest.mark.parametrize("levels", [[0.0, 20.0], [0.0, 20.0, 40.0]])
def test_separable_classes_are_told_apart(levels: list[float]) -> None:
    statistics, labels = make_clusters(40, levels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        baseline = fit_brightness_baseline(statistics, labels, len(levels))
    assert predict_brightness(baseline, statistics).tolist() == labels.tolist()
    middle = np.zeros((2, 7))
    middle[:, 0] = [0.0, 20.0]
    assert predict_brightness(baseline, middle).tolist() == [0, 1]


def test_squares_let_the_middle_stand_against_both_ends() -> None:
    statistics, ends = make_clusters(60, [0.0, 15.0, 30.0])
    labels = (ends == 1).astype(int)
    baseline = fit_brightness_baseline(statistics, labels, 2)
    assert np.mean(predict_brightness(baseline, statistics) == labels) == 1.0


@pytest.mark.parametrize("n_classes", [2, 3])
def test_agrees_with_a_scikit_learn_pipeline(n_classes: int) -> None:
    statistics, labels = make_clusters(100, [0.0, 1.0, 2.0][:n_classes])
    statistics *= [30, 20, 0.1, 1, 5, 40, 60]
    pipeline = make_pipeline(
        StandardScaler(),
        PolynomialFeatures(2, include_bias=False),
        StandardScaler(with_mean=False),
        LogisticRegression(max_iter=10_000),
    ).fit(statistics, labels)
    baseline = fit_brightness_baseline(statistics, labels, n_classes)
    expected = pipeline.predict(statistics)
    assert predict_brightness(baseline, statistics).tolist() == expected.tolist()
    assert 0.5 < np.mean(expected == labels) < 0.95  # the classes overlap: the bounds matter


def test_baseline_is_plain_and_survives_json() -> None:
    statistics, labels = make_clusters(20, [0.0, 3.0, 6.0])
    baseline = fit_brightness_baseline(statistics, labels, 3)
    assert list(baseline) == ["mean", "scale", "weights", "bias"]
    assert np.shape(baseline["weights"]) == (3, 35)
    again = json.loads(json.dumps(baseline, allow_nan=False))
    assert again == baseline
    np.testing.assert_array_equal(
        predict_brightness(again, statistics), predict_brightness(baseline, statistics)
    )


def test_class_without_training_images_is_never_predicted() -> None:
    statistics, labels = make_clusters(20, [0.0, 20.0])
    baseline = fit_brightness_baseline(statistics, labels * 2, 4)  # classes 0 and 2 of 0..3
    assert predict_brightness(baseline, statistics).tolist() == (labels * 2).tolist()


def test_one_class_only_is_always_predicted() -> None:
    statistics, _ = make_clusters(5, [0.0])
    baseline = fit_brightness_baseline(statistics, np.full(5, 1), 3)
    assert predict_brightness(baseline, statistics).tolist() == [1, 1, 1, 1, 1]


def test_constant_statistics_do_no_harm() -> None:
    statistics, labels = make_clusters(20, [0.0, 20.0])
    statistics[:, 3:5] = 0.0
    statistics[:, 5:] = 0.3  # its mean is not exactly 0.3, nor its deviation exactly 0
    baseline = fit_brightness_baseline(statistics, labels, 2)
    assert np.isfinite(baseline["weights"]).all()
    assert predict_brightness(baseline, statistics).tolist() == labels.tolist()
    statistics[:, 3:] += 1  # training says nothing of these
    assert predict_brightness(baseline, statistics).tolist() == labels.tolist()


def test_accuracies_by_hand() -> None:
    # One weight on the standardised mean: class 1 above 10, class 0 under it.
    weights = np.zeros((2, 35))
    weights[1, 0] = 1.0
    brightness = {
        "mean": [10.0] + [0.0] * 6,
        "scale": [2.0] + [1.0] * 6,
        "weights": weights.tolist(),
        "bias": [0.0, 0.0],
    }
    pixels = np.array([8, 9, 11, 12], np.uint8).reshape(4, 1, 1).repeat(3, 1).repeat(3, 2)
    statistics, labels = compute_brightness_statistics(pixels), np.array([0, 1, 1, 1])
    fitted = {"majority": 1, "brightness": brightness}
    right = judge_baselines(fitted, statistics, labels)
    assert {name: hits.mean() for name, hits in right.items()} == {
        "majority": 0.75,
        "brightness": 0.75,
    }
    fitted["majority"] = 0
    assert judge_baselines(fitted, statistics, labels)["majority"].mean() == 0.25


def test_both_baselines_are_fitted_on_the_statistics() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    pixels = rng.integers(0, 50, (40, 8, 8)) + 150 * labels[:, None, None]
    statistics = compute_brightness_statistics(pixels.astype(np.uint8))
    fitted = fit_baselines(statistics, labels, 2)
    assert fitted["majority"] == 0
    right = judge_baselines(fitted, statistics, labels)
    assert right["majority"].tolist() == (labels == 0).tolist()
    assert right["brightness"].all()


@pytest.mark.parametrize("labels", [[], [3], [-1]])
def test_labels_that_cannot_be_are_refused(labels: list[int]) -> None:
    with pytest.raises(ValueError, match="labels"):
        fit_brightness_baseline(np.zeros((len(labels), 7)), np.array(labels, int), 3)


def test_brightness_is_judged_on_groups_that_it_has_not_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    groups = np.repeat(np.arange(30), 4)
    statistics, labels = np.zeros((120, 7)), groups % 2
    statistics[:, 0] = groups  # what the fit is given tells which groups it saw
    fit, learnt = baselines.fit_brightness_baseline, []

    def spy(seen: np.ndarray, seen_labels: np.ndarray, n_classes: int) -> dict:
        learnt.append(set(seen[:, 0]))
        return fit(seen, seen_labels, n_classes)

    def check(baseline: dict, judged: np.ndarray) -> np.ndarray:
        assert not learnt[-1] & set(judged[:, 0])
        return np.zeros(len(judged), int)

    monkeypatch.setattr(baselines, "fit_brightness_baseline", spy)
    monkeypatch.setattr(baselines, "predict_brightness", check)
    accuracies = cross_validate_brightness(statistics, labels, groups)
    assert len(learnt) == 5
    assert accuracies == {"majority": 0.5, "brightness": 0.5}


def test_brightness_that_tells_the_class_is_found_in_any_order() -> None:
    statistics, labels = make_clusters(100, [0.0, 4.0, 8.0])
    groups = np.arange(300) // 2
    accuracies = cross_validate_brightness(statistics, labels, groups)
    assert accuracies is not None
    assert accuracies["majority"] == pytest.approx(1 / 3)
    assert accuracies["brightness"] > 0.9
    order = np.random.default_rng(1).permutation(300)
    again = cross_validate_brightness(statistics[order], labels[order], groups[order])
    assert again is not None
    assert again == pytest.approx(accuracies, abs=0.02)


def test_too_few_groups_for_a_cross_validation() -> None:
    statistics, labels = make_clusters(10, [0.0, 4.0])
    assert cross_validate_brightness(statistics, labels, labels) is None
