"""The figures of metrics.json as pure functions of logits, labels, slices and groups.

One rule decides what is undefined: a figure whose denominator is zero is null, and `notes` gives
the reason. Macro averages are taken over the classes that have images; there, a class that is never
predicted counts with precision 0, so that ignoring a class cannot raise the average.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.intervals import (
    Estimate,
    average_estimates,
    compute_interval,
    describe,
    estimate_auc,
    estimate_mcc,
    estimate_ratio,
)
from helper import UserError

IntArray = NDArray[np.integer[Any]]
FloatArray = NDArray[np.floating[Any]]

CLASS_KEYS = ("precision", "recall", "specificity", "f1", "roc_auc")


def softmax(logits: FloatArray) -> NDArray[np.float64]:
    """Probabilities of each row of logits, float64, each row adding up to 1.

    Args:
        logits: [N, K], finite; the largest of a row is subtracted first, so none overflows.
    """
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def compute_confusion(predicted: IntArray, labels: IntArray, n_classes: int) -> NDArray[np.int64]:
    """Counts of images by true class (rows) and predicted class (columns).

    Args:
        predicted: [N] class ids.
        labels: [N] class ids.
        n_classes: K.

    Returns:
        [K, K] counts.

    Raises:
        ValueError: The lengths differ or an id lies outside 0..K-1.
    """
    for name, ids in (("predicted", predicted), ("labels", labels)):
        if len(ids) and (ids.min() < 0 or ids.max() >= n_classes):
            raise ValueError(f"{name}: ids lie outside 0..{n_classes - 1}")
    if len(predicted) != len(labels):
        raise ValueError(f"predicted has {len(predicted)} rows, labels has {len(labels)}")
    cells = labels.astype(np.int64) * n_classes + predicted
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)


def compute_macro_f1(confusion: IntArray) -> float:
    """Mean F1 of the classes that have images, in [0, 1], higher is better.

    Args:
        confusion: [K, K] counts, rows true.

    Raises:
        ValueError: There is no image at all.
    """
    if not confusion.sum():
        raise ValueError("macro F1 of no images is undefined")
    present = confusion.sum(axis=1) > 0
    true_positives = confusion.diagonal()[present]
    # 2 TP + FP + FN is the row sum plus the column sum, above zero where a class has images.
    denominator = (confusion.sum(axis=0) + confusion.sum(axis=1))[present]
    return float(np.mean(2 * true_positives / denominator))


def compute_metrics(
    probs: FloatArray,
    labels: IntArray,
    slices: NDArray[Any],
    groups: NDArray[Any],
    classes: Sequence[str],
) -> dict[str, Any]:
    """The figures of metrics.json that are right or wrong, with intervals, ready for strict JSON.

    All figures are fractions; higher is better. The Matthews coefficient lies in [-1, 1], the rest
    in [0, 1]. A tie between classes goes to the first. Intervals are 95 %, groups as the unit.

    Args:
        probs: [N, K] probabilities.
        labels: [N] class ids in 0..K-1.
        slices: [N] ids; copies of one slice share one.
        groups: [N] ids; what must stay on one side of a split shares one.
        classes: K names in the order of the ids.

    Raises:
        UserError: There are no images, or probabilities are NaN or infinite.
        ValueError: Shapes disagree, names repeat or an id lies outside 0..K-1.
    """
    _check_inputs(probs, labels, slices, groups, classes)
    notes: list[str] = []
    predicted = probs.argmax(axis=1)
    confusion = compute_confusion(predicted, labels, len(classes))
    present = confusion.sum(axis=1) > 0
    if not present.all():
        absent = ", ".join(name for name, has in zip(classes, present, strict=True) if not has)
        notes.append(f"macro averages: over the classes that have images, so without {absent}")
    per_class = [
        _estimate_class(index, name, predicted, probs, labels, notes)
        for index, name in enumerate(classes)
    ]
    figures = {
        "accuracy": estimate_ratio(predicted == labels),
        "accuracy_per_slice": estimate_accuracy_per_slice(predicted == labels, slices),
        **{
            f"{key}_macro": _average(
                _never_predicted(len(labels))
                if key == "precision" and found[key] is None
                else found[key]
                for found, has in zip(per_class, present, strict=True)
                if has
            )
            for key in ("precision", "recall", "f1", "roc_auc")
        },
    }
    if figures["roc_auc_macro"] is None:
        notes.append("roc_auc_macro: null, the images are of one class only")
    return {
        "n_images": len(labels),
        "n_slices": len(np.unique(slices)),
        "n_groups": len(np.unique(groups)),
        "classes": list(classes),
        "notes": notes,
        **{key: describe(estimate, groups) for key, estimate in figures.items()},
        "mcc": _compute_mcc(confusion, predicted, labels, groups, notes),
        "per_class": {
            name: {key: describe(found[key], groups) for key in CLASS_KEYS}
            | {"support": int(support)}
            for name, found, support in zip(classes, per_class, confusion.sum(axis=1), strict=True)
        },
        "confusion_matrix": confusion.tolist(),
    }


def estimate_accuracy_per_slice(
    correct: NDArray[np.bool_], slices: NDArray[Any]
) -> Estimate | None:
    """Accuracy with one vote for each distinct slice, in [0, 1], higher is better.

    Args:
        correct: [N] whether the verdict on the image is right.
        slices: [N] ids; the copies of a slice share its vote.
    """
    codes = np.unique(slices, return_inverse=True)[1]
    votes = 1 / np.bincount(codes)[codes]  # [N]
    return estimate_ratio(correct * votes, votes)


def _check_inputs(
    probs: FloatArray,
    labels: IntArray,
    slices: NDArray[Any],
    groups: NDArray[Any],
    classes: Sequence[str],
) -> None:
    n_images = len(labels)
    if n_images == 0:
        raise UserError("evaluation: there are no images; choose another --split or --data")
    if probs.shape != (n_images, len(classes)):
        raise ValueError(f"probs: shape {probs.shape}, not {(n_images, len(classes))}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels: {labels.dtype} ids, not integers")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(f"labels: ids lie outside 0..{len(classes) - 1}")
    if len(set(classes)) != len(classes):
        raise ValueError(f"classes: a name repeats in {list(classes)}")
    for name, ids in (("slices", slices), ("groups", groups)):
        if ids.shape != (n_images,):
            raise ValueError(f"{name}: shape {ids.shape}, not {(n_images,)}")
    n_bad = int((~np.isfinite(probs)).any(axis=1).sum())
    if n_bad:
        raise UserError(
            f"evaluation: {n_bad} of {n_images} images have verdicts that are NaN or infinite; "
            "use another checkpoint or train again with a lower learning rate"
        )


def _estimate_class(
    index: int,
    name: str,
    predicted: IntArray,
    probs: FloatArray,
    labels: IntArray,
    notes: list[str],
) -> dict[str, Estimate | None]:
    """The figures of one class against the rest; reasons for what is null go to `notes`."""
    is_true, is_predicted = labels == index, predicted == index
    both = is_true & is_predicted
    missing = []
    if not is_predicted.any():
        missing.append("precision is null, it is never predicted")
    if not is_true.any():
        missing.append("recall and roc_auc are null, it has no images")
    if not is_true.any() and not is_predicted.any():
        missing.append("f1 is null, it is neither present nor predicted")
    if is_true.all():
        missing.append("specificity and roc_auc are null, no other class has images")
    if missing:
        notes.append(f"{name}: {'; '.join(missing)}")
    return {
        "precision": estimate_ratio(both, is_predicted),
        "recall": estimate_ratio(both, is_true),
        "specificity": estimate_ratio(~is_true & ~is_predicted, ~is_true),
        "f1": estimate_ratio(2.0 * both, is_true.astype(float) + is_predicted),
        "roc_auc": estimate_auc(is_true, probs[:, index]),
    }


def _never_predicted(n_images: int) -> Estimate:
    """Precision 0 of a class that is never predicted, as it counts in the macro average."""
    return Estimate(0.0, np.zeros(n_images), np.full(n_images, 1 / n_images))


def _compute_mcc(
    confusion: NDArray[np.int64],
    predicted: IntArray,
    labels: IntArray,
    groups: NDArray[Any],
    notes: list[str],
) -> dict[str, Any]:
    """Matthews' coefficient in [-1, 1] with its interval."""
    estimate = estimate_mcc(confusion, predicted, labels)
    if estimate is not None:
        low, high = compute_interval(estimate, groups)
        return {"value": 2 * estimate.value - 1, "ci95": [2 * low - 1, 2 * high - 1]}
    if len(np.unique(labels)) == 1:
        notes.append("mcc: null, the images are of one class only")
        return {"value": None, "ci95": None}
    notes.append("mcc: 0 by convention without interval, one class is predicted for every image")
    return {"value": 0.0, "ci95": None}


def _average(estimates: Iterable[Estimate | None]) -> Estimate | None:
    defined = [estimate for estimate in estimates if estimate is not None]
    return average_estimates(defined) if defined else None
