"""Classification metrics: by hand, against scikit-learn, undefined values, refusals."""

import json
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as reference

from evaluation.metrics import (
    compute_confusion,
    compute_macro_f1,
    compute_metrics,
    estimate_accuracy_per_slice,
    softmax,
)
from helper import UserError
from tests.support.builders import FIGURES

CLASSES = ["Glioma", "Menin", "Tumor"]


def score(predicted: list[int], labels: list[int], n_classes: int = 3) -> dict[str, Any]:
    """Compute metrics of predicted class ids; every image is its own slice and group."""
    ids = np.arange(len(labels))
    return compute_metrics(
        np.eye(n_classes)[predicted], np.array(labels), ids, ids, CLASSES[:n_classes]
    )


def values(metrics: dict[str, Any]) -> dict[str, float | None]:
    return {name: entry["value"] for name, entry in metrics.items() if name != "support"}


def test_three_classes_by_hand() -> None:
    # Glioma: 2 of 3 right, one called Menin. Menin: 1 of 2, one called Tumor. Tumor: 1 of 1.
    logits = np.array([[2, 0, 0], [3, 0, 1], [0, 1, 0], [0, 2, 0], [0, 0, 1], [0, 0, 4]])
    labels = np.array([0, 0, 0, 1, 1, 2])
    duplicate_sets = np.array(["a", "a", "b", "c", "d", "e"])
    groups = np.array(["p", "p", "p", "q", "q", "r"])
    result = compute_metrics(softmax(logits), labels, duplicate_sets, groups, CLASSES)
    assert list(result) == [
        *["n_images", "n_slices", "n_groups", "classes", "notes", *FIGURES],
        *["per_class", "confusion_matrix"],
    ]
    assert (result["n_images"], result["n_slices"], result["n_groups"]) == (6, 5, 3)
    assert result["confusion_matrix"] == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert values({name: result[name] for name in FIGURES if name != "roc_auc_macro"}) == {
        "accuracy": pytest.approx(4 / 6),
        "accuracy_per_slice": pytest.approx(3 / 5),  # a c e of a b c d e
        "precision_macro": pytest.approx((1 + 1 / 2 + 1 / 2) / 3),
        "recall_macro": pytest.approx((2 / 3 + 1 / 2 + 1) / 3),
        "f1_macro": pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3),
        # 6 images, 4 right; true 3 2 1, predicted 2 2 2: (6*4 - 12) / sqrt((36 - 12) * (36 - 14))
        "mcc": pytest.approx(12 / np.sqrt(24 * 22)),
    }
    # Menin has 0.79 and 0.21 on its own images, 0.58 0.11 0.04 0.02 on the others: 4 + 3 of 8
    assert values(result["per_class"]["Menin"]) == {
        "precision": pytest.approx(1 / 2),
        "recall": pytest.approx(1 / 2),
        "specificity": pytest.approx(3 / 4),
        "f1": pytest.approx(1 / 2),
        "roc_auc": pytest.approx(7 / 8),
    }
    assert [result["per_class"][name]["support"] for name in CLASSES] == [3, 2, 1]
    assert result["notes"] == []


@pytest.mark.parametrize("n_classes", [2, 3, 7])
def test_agrees_with_scikit_learn(n_classes: int) -> None:
    rng = np.random.default_rng(n_classes)
    labels = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, 200)])
    logits = rng.normal(size=(len(labels), n_classes)).astype(np.float32)
    logits[np.arange(len(labels)), labels] += 1
    classes = [f"class {index}" for index in range(n_classes)]
    ids = np.arange(len(labels))
    predicted, probs = logits.argmax(axis=1), softmax(logits)
    result = compute_metrics(probs, labels, ids, ids, classes)
    precision, recall, f1, support = reference.precision_recall_fscore_support(labels, predicted)
    areas = [reference.roc_auc_score(labels == k, probs[:, k]) for k in range(n_classes)]
    expected = {
        "accuracy": reference.accuracy_score(labels, predicted),
        "accuracy_per_slice": reference.accuracy_score(labels, predicted),
        "precision_macro": precision.mean(),
        "recall_macro": reference.balanced_accuracy_score(labels, predicted),
        "f1_macro": reference.f1_score(labels, predicted, average="macro"),
        "roc_auc_macro": np.mean(areas),
        "mcc": reference.matthews_corrcoef(labels, predicted),
    }
    assert values({name: result[name] for name in FIGURES}) == pytest.approx(expected, abs=1e-12)
    confusion = reference.confusion_matrix(labels, predicted)
    assert result["confusion_matrix"] == confusion.tolist()
    assert compute_macro_f1(confusion) == pytest.approx(expected["f1_macro"], abs=1e-12)
    for index, name in enumerate(classes):
        row = result["per_class"][name]
        specificity = reference.recall_score(labels != index, predicted != index)
        assert row["support"] == support[index]
        assert list(values(row).values()) == pytest.approx(
            [precision[index], recall[index], specificity, f1[index], areas[index]], abs=1e-12
        )


def test_class_never_predicted_counts_with_zero_precision() -> None:
    result = score([0, 0, 2, 2], [0, 1, 2, 2])
    assert list(values(result["per_class"]["Menin"]).values())[:4] == [None, 0.0, 1.0, 0.0]
    assert result["precision_macro"]["value"] == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert any("Menin: precision is null" in note for note in result["notes"])


def test_class_without_images_is_not_averaged() -> None:
    result = score([0, 1, 2, 2], [0, 0, 2, 2])
    menin = result["per_class"]["Menin"]
    assert menin["support"] == 0
    assert list(values(menin).values()) == [0.0, None, 3 / 4, 0.0, None]
    assert result["precision_macro"]["value"] == pytest.approx(1.0)
    assert result["recall_macro"]["value"] == pytest.approx(3 / 4)
    assert result["f1_macro"]["value"] == pytest.approx((2 / 3 + 1) / 2)
    assert result["roc_auc_macro"]["value"] == pytest.approx((3 / 4 + 1) / 2)
    assert any("Menin: recall and roc_auc are null" in note for note in result["notes"])
    assert any("macro averages" in note and "without Menin" in note for note in result["notes"])
    # neither present nor predicted
    result = score([0, 0, 2], [0, 2, 2])
    assert list(values(result["per_class"]["Menin"]).values()) == [None, None, 1.0, None, None]
    assert any("neither present nor predicted" in note for note in result["notes"])


def test_images_of_one_class_only() -> None:
    result = score([0, 0, 1], [0, 0, 0])
    assert result["mcc"]["value"] is None
    assert result["roc_auc_macro"]["value"] is None
    assert result["per_class"]["Glioma"]["specificity"]["value"] is None
    assert result["accuracy"]["value"] == pytest.approx(2 / 3)
    assert result["f1_macro"]["value"] == pytest.approx(4 / 5)
    for name in ("mcc", "roc_auc_macro"):
        assert any(f"{name}: null" in note and "one class" in note for note in result["notes"])
    result = score([1], [1])
    assert (result["accuracy"]["value"], result["f1_macro"]["value"]) == (1.0, 1.0)
    assert result["mcc"]["value"] is None
    # one class is predicted
    result = score([0, 0, 0, 0], [0, 1, 0, 1], n_classes=2)
    assert result["mcc"] == {"value": 0.0, "ci95": None}
    assert any("mcc: 0 by convention" in note for note in result["notes"])


def test_ties_go_to_the_first_class() -> None:
    ids = np.arange(3)
    result = compute_metrics(np.ones((3, 3)), np.array([0, 1, 2]), ids, ids, CLASSES)
    assert result["confusion_matrix"] == [[1, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert result["roc_auc_macro"]["value"] == 0.5


def test_result_is_strict_json_of_plain_values() -> None:
    for labels in ([0], [0, 0], [1, 2], [0, 1, 2, 0], [2, 2, 2]):
        for predicted in range(3):
            result = score([predicted] * len(labels), labels)
            assert json.loads(json.dumps(result, allow_nan=False)) == result
            assert type(result["accuracy"]["value"]) is float
            assert type(result["confusion_matrix"][0][0]) is int


@pytest.mark.parametrize("seed", range(4))
def test_intervals_contain_their_values(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 60)
    probs = softmax(rng.normal(size=(60, 3)) + 3 * np.eye(3)[labels])
    result = compute_metrics(probs, labels, np.arange(60) // 2, np.arange(60) // 4, CLASSES)
    estimates = [result[key] for key in FIGURES]
    for metrics in result["per_class"].values():
        estimates += [entry for key, entry in metrics.items() if key != "support"]
    for estimate in estimates:
        low, high = estimate["ci95"]
        assert low <= estimate["value"] <= high
        assert high - low > 0.01


def test_no_images_and_probabilities_that_are_not_finite_are_refused() -> None:
    empty = np.zeros(0, int)
    with pytest.raises(UserError, match="no images"):
        compute_metrics(np.zeros((0, 3)), empty, empty, empty, CLASSES)
    probs = np.zeros((4, 3))
    probs[1, 0], probs[1, 1], probs[3, 2] = np.nan, np.inf, -np.inf
    with pytest.raises(UserError, match=r"2 of 4 images .*NaN or infinite"):
        compute_metrics(probs, np.zeros(4, int), np.arange(4), np.arange(4), CLASSES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([0, 3])}, "outside 0..2"),
        ({"labels": np.array([-1, 0])}, "outside 0..2"),
        ({"labels": np.array([0.0, 1.0])}, "not integers"),
        ({"probs": np.zeros((2, 2))}, "probs: shape"),
        ({"duplicate_sets": np.zeros(3)}, "duplicate_sets: shape"),
        ({"groups": np.zeros(3)}, "groups: shape"),
        ({"classes": ["a", "b", "a"]}, "repeats"),
    ],
)
def test_wrong_arrays_are_refused(change: dict[str, Any], message: str) -> None:
    arrays: dict[str, Any] = {"probs": np.zeros((2, 3)), "labels": np.array([0, 1])}
    ids: dict[str, Any] = {"duplicate_sets": np.arange(2), "groups": np.arange(2)}
    with pytest.raises(ValueError, match=message):
        compute_metrics(**(arrays | ids | {"classes": CLASSES} | change))


def test_accuracy_per_slice_gives_each_slice_one_vote() -> None:
    # a: 3 of 4 duplicates right, b: 0 of 1, c: 1 of 1; images alone would give 4 of 6
    correct = np.array([True, False, True, True, True, False])
    estimate = estimate_accuracy_per_slice(correct, np.array(["a", "b", "a", "c", "a", "a"]))
    assert estimate is not None
    assert estimate.value == pytest.approx((3 / 4 + 0 + 1) / 3)
    assert estimate.residuals.sum() == pytest.approx(0)
    assert estimate.weights.sum() == pytest.approx(1)


def test_softmax_of_large_logits() -> None:
    logits = np.array([[1000.0, 1000.0], [-1000.0, 0.0], [0.0, np.log(3)]])
    before = logits.copy()
    assert softmax(logits) == pytest.approx(np.array([[0.5, 0.5], [0.0, 1.0], [0.25, 0.75]]))
    assert np.array_equal(logits, before)
    assert softmax(np.zeros((1, 2), np.float32)).dtype == np.float64


def test_wrong_class_ids_are_refused() -> None:
    for predicted, labels in (([3], [0]), ([0], [-1]), ([0, 1], [0])):
        with pytest.raises(ValueError, match=r"outside|rows"):
            compute_confusion(np.array(predicted), np.array(labels), 3)


def test_macro_f1_by_hand() -> None:
    # F1 of the first: 2*1 / (2*1 + 2 + 0); of the second: 2*1 / (2*1 + 0 + 2); the third is absent
    assert compute_macro_f1(np.array([[1, 2, 0], [0, 1, 0], [0, 0, 0]])) == pytest.approx(1 / 2)
    assert compute_macro_f1(np.array([[0, 2], [1, 0]])) == 0.0
    with pytest.raises(ValueError, match="no images"):
        compute_macro_f1(np.zeros((3, 3), int))
