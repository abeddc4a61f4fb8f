"""Majority-class and brightness baselines: by hand, against scikit-learn, folds over groups."""

import json
import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from evaluation import baselines
from evaluation.baselines import (
    cross_validate_brightness,
    fit_baselines,
    fit_brightness_baseline,
    predict_brightness,
    score_baselines,
)
from imaging.brightness import compute_brightness_statistics


def make_clusters(n_each: int, levels: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Draw statistics whose first column differs by class, with noise of deviation 1."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(levels)), n_each)
    statistics = rng.normal(size=(len(labels), 7))
    statistics[:, 0] += np.array(levels)[labels]
    return statistics, labels


@pytest.mark.parametrize("levels", [[0.0, 20.0], [0.0, 20.0, 40.0]])
def test_separable_classes_are_recognised(levels: list[float]) -> None:
    statistics, labels = make_clusters(40, levels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        baseline = fit_brightness_baseline(statistics, labels, len(levels))
    assert predict_brightness(baseline, statistics).tolist() == labels.tolist()
    centres = np.zeros((2, 7))
    centres[:, 0] = [0.0, 20.0]
    assert predict_brightness(baseline, centres).tolist() == [0, 1]
    assert list(baseline) == ["mean", "scale", "weights", "bias"]
    assert np.shape(baseline["weights"]) == (len(levels), 35)
    assert json.loads(json.dumps(baseline, allow_nan=False)) == baseline


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
    assert 0.5 < np.mean(expected == labels) < 0.95  # overlapping classes: boundaries matter


def test_squares_separate_a_class_between_two_others() -> None:
    statistics, clusters = make_clusters(60, [0.0, 15.0, 30.0])
    labels = (clusters == 1).astype(int)
    baseline = fit_brightness_baseline(statistics, labels, 2)
    assert predict_brightness(baseline, statistics).tolist() == labels.tolist()


def test_classes_without_training_images_are_never_predicted() -> None:
    statistics, labels = make_clusters(20, [0.0, 20.0])
    baseline = fit_brightness_baseline(statistics, labels * 2, 4)  # classes 0 and 2 of 0..3
    assert predict_brightness(baseline, statistics).tolist() == (labels * 2).tolist()
    baseline = fit_brightness_baseline(statistics, np.full(40, 1), 3)
    assert predict_brightness(baseline, statistics).tolist() == [1] * 40


def test_constant_statistics_are_ignored() -> None:
    statistics, labels = make_clusters(20, [0.0, 20.0])
    statistics[:, 3:5] = 0.0
    statistics[:, 5:] = 0.3  # in float64 neither the mean nor the deviation is exact
    baseline = fit_brightness_baseline(statistics, labels, 2)
    assert np.isfinite(baseline["weights"]).all()
    assert predict_brightness(baseline, statistics).tolist() == labels.tolist()
    statistics[:, 3:] += 1
    assert predict_brightness(baseline, statistics).tolist() == labels.tolist()


def test_accuracies_by_hand() -> None:
    # one weight on the standardised mean: class 1 above 10, class 0 below it
    weights = np.zeros((2, 35))
    weights[1, 0] = 1.0
    mean, scale = [10.0] + [0.0] * 6, [2.0] + [1.0] * 6
    brightness = {"mean": mean, "scale": scale, "weights": weights.tolist(), "bias": [0.0, 0.0]}
    pixels = np.full((4, 3, 3), np.array([8, 9, 11, 12]).reshape(4, 1, 1), np.uint8)
    statistics, labels = compute_brightness_statistics(pixels), np.array([0, 1, 1, 1])
    hits = score_baselines({"majority": 1, "brightness": brightness}, statistics, labels)
    assert hits["majority"].tolist() == [False, True, True, True]
    assert hits["brightness"].tolist() == [True, False, True, True]


def test_majority_is_the_most_frequent_class() -> None:
    statistics = np.zeros((4, 7))
    for labels, expected in (([2, 0, 2, 1], 2), ([1, 0, 0, 1], 0)):  # the first in a tie
        majority = fit_baselines(statistics, np.array(labels), 3)["majority"]
        assert majority == expected
        assert type(majority) is int


def test_wrong_labels_are_refused() -> None:
    for labels in ([], [3], [-1]):
        with pytest.raises(ValueError, match="labels"):
            fit_brightness_baseline(np.zeros((len(labels), 7)), np.array(labels, int), 3)


def test_folds_never_split_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = np.repeat(np.arange(30), 4)
    statistics, labels = np.zeros((120, 7)), groups % 2
    statistics[:, 0] = groups  # identifies the groups that the baseline is fitted on
    fit, trained_on = baselines.fit_brightness_baseline, []

    def record(train: np.ndarray, train_labels: np.ndarray, n_classes: int) -> dict:
        trained_on.append(set(train[:, 0]))
        return fit(train, train_labels, n_classes)

    def check(baseline: dict, test: np.ndarray) -> np.ndarray:
        assert not trained_on[-1] & set(test[:, 0])
        return np.zeros(len(test), int)

    monkeypatch.setattr(baselines, "fit_brightness_baseline", record)
    monkeypatch.setattr(baselines, "predict_brightness", check)
    accuracies = cross_validate_brightness(statistics, labels, groups)
    assert len(trained_on) == 5
    assert accuracies == {"majority": 0.5, "brightness": 0.5}


def test_cross_validation_in_any_row_order() -> None:
    statistics, labels = make_clusters(100, [0.0, 4.0, 8.0])
    groups = np.arange(300) // 2
    accuracies = cross_validate_brightness(statistics, labels, groups)
    assert accuracies is not None
    assert accuracies["majority"] == pytest.approx(1 / 3)
    assert accuracies["brightness"] > 0.9
    order = np.random.default_rng(1).permutation(300)
    again = cross_validate_brightness(statistics[order], labels[order], groups[order])
    assert again == pytest.approx(accuracies, abs=0.02)
    assert cross_validate_brightness(statistics, labels, labels) is None  # too few groups
