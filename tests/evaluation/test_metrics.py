import json
import time
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

CLASSES = ["Glioma", "Menin", "Tumor"]


def score(predicted: list[int], labels: list[int], n_classes: int = 3) -> dict[str, Any]:
    """Metrics of verdicts given as class ids, every image its own slice and group."""
    probs = np.eye(n_classes)[predicted]
    ids = np.arange(len(labels))
    return compute_metrics(probs, np.array(labels), ids, ids, CLASSES[:n_classes])


def values(figures: dict[str, Any]) -> dict[str, float | None]:
    return {name: entry["value"] for name, entry in figures.items() if name != "support"}


def test_hand_worked_three_classes() -> None:
    # Glioma: 2 of 3 right, one called Menin. Menin: 1 of 2, one called Tumor. Tumor: 1 of 1.
    logits = np.array(
        [
            [2.0, 0.0, 0.0],
            [3.0, 0.0, 1.0],
            [0.0, 1.0, 0.0],
            [0.0, 2.0, 0.0],
            [0.0, 0.0, 1.0],
            [0.0, 0.0, 4.0],
        ]
    )
    labels = np.array([0, 0, 0, 1, 1, 2])
    slices = np.array(["a", "a", "b", "c", "d", "e"])
    groups = np.array(["p", "p", "p", "q", "q", "r"])
    result = compute_metrics(softmax(logits), labels, slices, groups, CLASSES)
    assert (result["n_images"], result["n_slices"], result["n_groups"]) == (6, 5, 3)
    assert result["confusion_matrix"] == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert result["accuracy"]["value"] == pytest.approx(4 / 6)
    assert result["accuracy_per_slice"]["value"] == pytest.approx(3 / 5)  # a c e of a b c d e
    assert result["precision_macro"]["value"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert result["recall_macro"]["value"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert result["f1_macro"]["value"] == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)
    # 6 images, 4 right; true 3 2 1, predicted 2 2 2: (6*4 - 12) / sqrt((36 - 12) * (36 - 14))
    assert result["mcc"]["value"] == pytest.approx(12 / np.sqrt(24 * 22))
    # Menin has 0.79 and 0.21 on its own images, 0.58 0.11 0.04 0.02 on the others: 4 + 3 of 8.
    assert values(result["per_class"]["Menin"]) == {
        "precision": pytest.approx(1 / 2),
        "recall": pytest.approx(1 / 2),
        "specificity": pytest.approx(3 / 4),
        "f1": pytest.approx(1 / 2),
        "roc_auc": pytest.approx(7 / 8),
    }
    assert [result["per_class"][name]["support"] for name in CLASSES] == [3, 2, 1]
    assert result["notes"] == []


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_classes", [2, 3, 7])
def test_agrees_with_scikit_learn(seed: int, n_classes: int) -> None:
    rng = np.random.default_rng([seed, n_classes])
    labels = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, 200)])
    logits = rng.normal(size=(len(labels), n_classes)).astype(np.float32)
    logits[np.arange(len(labels)), labels] += 1
    classes = [f"class {index}" for index in range(n_classes)]
    ids = np.arange(len(labels))
    predicted, probs = logits.argmax(axis=1), softmax(logits)
    result = compute_metrics(probs, labels, ids, ids, classes)
    precision, recall, f1, support = reference.precision_recall_fscore_support(labels, predicted)
    areas = [
        reference.roc_auc_score(labels == index, probs[:, index]) for index in range(n_classes)
    ]
    expected = {
        "accuracy": reference.accuracy_score(labels, predicted),
        "accuracy_per_slice": reference.accuracy_score(labels, predicted),
        "precision_macro": precision.mean(),
        "recall_macro": reference.balanced_accuracy_score(labels, predicted),
        "f1_macro": reference.f1_score(labels, predicted, average="macro"),
        "roc_auc_macro": np.mean(areas),
        "mcc": reference.matthews_corrcoef(labels, predicted),
    }
    for name, value in expected.items():
        assert result[name]["value"] == pytest.approx(value, abs=1e-12), name
    confusion = reference.confusion_matrix(labels, predicted)
    assert result["confusion_matrix"] == confusion.tolist()
    assert compute_macro_f1(confusion) == pytest.approx(expected["f1_macro"], abs=1e-12)
    for index, name in enumerate(classes):
        row = result["per_class"][name]
        specificity = reference.recall_score(labels != index, predicted != index)
        assert row["support"] == support[index]
        assert values(row) == pytest.approx(
            {
                "precision": precision[index],
                "recall": recall[index],
                "specificity": specificity,
                "f1": f1[index],
                "roc_auc": areas[index],
            },
            abs=1e-12,
        )


def test_class_never_predicted_counts_as_zero_precision() -> None:
    result = score([0, 0, 2, 2], [0, 1, 2, 2])
    assert values(result["per_class"]["Menin"]) | {"roc_auc": None} == {
        "precision": None,
        "recall": 0.0,
        "specificity": 1.0,
        "f1": 0.0,
        "roc_auc": None,
    }
    assert result["precision_macro"]["value"] == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert "Menin: precision is null, it is never predicted" in result["notes"]


def test_class_without_images_stays_out_of_the_averages() -> None:
    result = score([0, 1, 2, 2], [0, 0, 2, 2])
    menin = result["per_class"]["Menin"]
    assert menin["support"] == 0
    assert values(menin) == {
        "precision": 0.0,
        "recall": None,
        "specificity": 3 / 4,
        "f1": 0.0,
        "roc_auc": None,
    }
    assert result["precision_macro"]["value"] == pytest.approx(1.0)
    assert result["recall_macro"]["value"] == pytest.approx(3 / 4)
    assert result["f1_macro"]["value"] == pytest.approx((2 / 3 + 1) / 2)
    assert result["roc_auc_macro"]["value"] == pytest.approx((3 / 4 + 1) / 2)
    assert "Menin: recall and roc_auc are null, it has no images" in result["notes"]
    assert "macro averages: over the classes that have images, so without Menin" in result["notes"]


def test_class_neither_present_nor_predicted() -> None:
    result = score([0, 0, 2], [0, 2, 2])
    assert values(result["per_class"]["Menin"]) == {
        "precision": None,
        "recall": None,
        "specificity": 1.0,
        "f1": None,
        "roc_auc": None,
    }
    assert any("neither present nor predicted" in note for note in result["notes"])


def test_one_class_only() -> None:
    result = score([0, 0, 1], [0, 0, 0])
    assert result["mcc"]["value"] is None
    assert result["roc_auc_macro"]["value"] is None
    assert result["per_class"]["Glioma"]["specificity"]["value"] is None
    assert result["accuracy"]["value"] == pytest.approx(2 / 3)
    assert result["f1_macro"]["value"] == pytest.approx(4 / 5)
    assert "mcc: null, the images are of one class only" in result["notes"]
    assert "roc_auc_macro: null, the images are of one class only" in result["notes"]


def test_one_image() -> None:
    result = score([1], [1])
    assert result["accuracy"]["value"] == 1.0
    assert result["f1_macro"]["value"] == 1.0
    assert result["mcc"]["value"] is None


def test_one_predicted_class_has_mcc_zero() -> None:
    result = score([0, 0, 0, 0], [0, 1, 0, 1], n_classes=2)
    assert result["mcc"]["value"] == 0.0
    assert (
        "mcc: 0 by convention without interval, one class is predicted for every image"
        in result["notes"]
    )


def test_ties_go_to_the_first_class() -> None:
    ids = np.arange(3)
    result = compute_metrics(np.ones((3, 3)), np.array([0, 1, 2]), ids, ids, CLASSES)
    assert result["confusion_matrix"] == [[1, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert result["roc_auc_macro"]["value"] == 0.5


@pytest.mark.parametrize("labels", [[0], [0, 0], [1, 2], [0, 1, 2, 0], [2, 2, 2]])
@pytest.mark.parametrize("verdict", [0, 1, 2])
def test_result_is_strict_json_of_plain_values(labels: list[int], verdict: int) -> None:
    result = score([verdict] * len(labels), labels)
    text = json.dumps(result, allow_nan=False)
    assert json.loads(text) == result
    assert type(result["accuracy"]["value"]) is float
    assert type(result["confusion_matrix"][0][0]) is int


def test_keys_in_the_order_of_the_contract() -> None:
    result = score([0, 1, 2], [0, 1, 2])
    macro = ["precision_macro", "recall_macro", "f1_macro", "roc_auc_macro", "mcc"]
    assert list(result) == [
        *["n_images", "n_slices", "n_groups", "classes", "notes"],
        *["accuracy", "accuracy_per_slice", *macro],
        *["per_class", "confusion_matrix"],
    ]


@pytest.mark.parametrize("seed", range(4))
def test_intervals_hold_their_values(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 60)
    logits = rng.normal(size=(60, 3)) + 3 * np.eye(3)[labels]
    result = compute_metrics(
        softmax(logits), labels, np.arange(60) // 2, np.arange(60) // 4, CLASSES
    )
    headline = ["accuracy", "accuracy_per_slice", "precision_macro", "recall_macro", "f1_macro"]
    figures = [result[key] for key in [*headline, "roc_auc_macro", "mcc"]]
    figures += [
        entry
        for name in CLASSES
        for key, entry in result["per_class"][name].items()
        if key != "support"
    ]
    for figure in figures:
        low, high = figure["ci95"]
        assert low < figure["value"] <= high or low <= figure["value"] < high
        assert high - low > 0.01


def test_a_class_is_judged_by_its_own_images() -> None:
    """Recall of one class is the accuracy on its images: the same interval as of these alone."""
    labels = np.repeat([0, 1, 2], 20)
    predicted = labels.copy()
    predicted[:4] = 1
    groups = np.arange(60) // 2
    result = compute_metrics(np.eye(3)[predicted], labels, np.arange(60), groups, CLASSES)
    own = slice(0, 20)
    alone = compute_metrics(
        np.eye(3)[predicted[own]], labels[own], np.arange(20), groups[own], CLASSES
    )
    low, high = alone["accuracy"]["ci95"]
    found = result["per_class"]["Glioma"]["recall"]
    assert found["value"] == pytest.approx(0.8)
    # the groups of other classes add only G / (G - 1) of a finite sample: 30 groups against 10
    assert found["ci95"] == pytest.approx([low, high], abs=0.02)


def test_verdicts_that_are_not_finite_are_counted_and_refused() -> None:
    probs = np.zeros((4, 3))
    probs[1, 0], probs[1, 1], probs[3, 2] = np.nan, np.inf, -np.inf
    with pytest.raises(UserError, match="2 of 4 images have verdicts that are NaN or infinite"):
        compute_metrics(probs, np.zeros(4, int), np.arange(4), np.arange(4), CLASSES)


def test_no_images_are_refused() -> None:
    empty = np.zeros(0, int)
    with pytest.raises(UserError, match="no images"):
        compute_metrics(np.zeros((0, 3)), empty, empty, empty, CLASSES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([0, 3])}, "outside 0..2"),
        ({"labels": np.array([-1, 0])}, "outside 0..2"),
        ({"labels": np.array([0.0, 1.0])}, "not integers"),
        ({"probs": np.zeros((2, 2))}, "probs: shape"),
        ({"slices": np.zeros(3)}, "slices: shape"),
        ({"groups": np.zeros(3)}, "groups: shape"),
        ({"classes": ["a", "b", "a"]}, "repeats"),
    ],
)
def test_wrong_arrays_are_refused(change: dict[str, Any], message: str) -> None:
    inputs: dict[str, Any] = {
        "probs": np.zeros((2, 3)),
        "labels": np.array([0, 1]),
        "slices": np.arange(2),
        "groups": np.arange(2),
        "classes": CLASSES,
    }
    with pytest.raises(ValueError, match=message):
        compute_metrics(**(inputs | change))


def test_accuracy_per_slice_gives_each_slice_one_vote() -> None:
    # a: 3 of 4 copies right, b: 0 of 1, c: 1 of 1; images alone would give 4 of 6.
    correct = np.array([True, False, True, True, True, False])
    slices = np.array(["a", "b", "a", "c", "a", "a"])
    estimate = estimate_accuracy_per_slice(correct, slices)
    assert estimate is not None
    assert estimate.value == pytest.approx((3 / 4 + 0 + 1) / 3)
    assert estimate.residuals.sum() == pytest.approx(0)
    assert estimate.shares.sum() == pytest.approx(1)


def test_softmax_of_large_logits() -> None:
    probs = softmax(np.array([[1000.0, 1000.0], [-1000.0, 0.0], [0.0, np.log(3)]]))
    assert probs == pytest.approx(np.array([[0.5, 0.5], [0.0, 1.0], [0.25, 0.75]]))
    assert softmax(np.zeros((1, 2), np.float32)).dtype == np.float64


def test_softmax_leaves_its_input_alone() -> None:
    logits = np.array([[1.0, 2.0]])
    softmax(logits)
    assert logits.tolist() == [[1.0, 2.0]]


def test_confusion_rows_are_true() -> None:
    confusion = compute_confusion(np.array([0, 1, 1, 1]), np.array([0, 0, 0, 1]), 3)
    assert confusion.tolist() == [[1, 2, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(("predicted", "labels"), [([3], [0]), ([0], [-1]), ([0, 1], [0])])
def test_confusion_refuses(predicted: list[int], labels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"outside|rows"):
        compute_confusion(np.array(predicted), np.array(labels), 3)


def test_macro_f1_by_hand() -> None:
    # F1 of the first: 2*1 / (2*1 + 2 + 0); of the second: 2*1 / (2*1 + 0 + 2); the third is absent.
    assert compute_macro_f1(np.array([[1, 2, 0], [0, 1, 0], [0, 0, 0]])) == pytest.approx(1 / 2)
    assert compute_macro_f1(np.array([[0, 2], [1, 0]])) == 0.0
    with pytest.raises(ValueError, match="no images"):
        compute_macro_f1(np.zeros((3, 3), int))


def test_a_thousand_images_take_no_time() -> None:
    """Every figure with its interval; measured 0.014 s, and 2 s are asked for."""
    rng = np.random.default_rng(0)
    probs, labels = rng.dirichlet(np.ones(3), 1000), rng.integers(0, 3, 1000)
    groups = rng.integers(0, 250, 1000)
    started_s = time.perf_counter()
    compute_metrics(probs, labels, np.arange(1000), groups, ["a", "b", "c"])
    assert time.perf_counter() - started_s < 2
