"""Classification metrics of metrics.json as pure functions of arrays.

A metric whose denominator is zero is null, and `notes` gives the reason. Macro averages are over
the classes that have images; a class that is never predicted counts with precision 0, so that
ignoring a class cannot raise the average.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from evaluation.intervals import (
    BoolArray,
    Estimate,
    FloatArray,
    IntArray,
    average_estimates,
    compute_interval,
    describe,
    estimate_auc,
    estimate_mcc,
    estimate_ratio,
)
from helper import UserError

CLASS_KEYS = ("precision", "recall", "specificity", "f1", "roc_auc")


def softmax(logits: FloatArray) -> NDArray[np.float64]:
    """Compute probabilities [N, K] of finite logits [N, K] in float64, without overflow."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def compute_confusion(predicted: IntArray, labels: IntArray, n_classes: int) -> NDArray[np.int64]:
    """Count images by true class (rows) and predicted class (columns): [K, K] from ids [N].

    Raises:
        ValueError: The lengths differ or an id is outside 0..K-1.
    """
    for name, ids in (("predicted", predicted), ("labels", labels)):
        if len(ids) and (ids.min() < 0 or ids.max() >= n_classes):
            raise ValueError(f"{name}: ids are outside 0..{n_classes - 1}")
    if len(predicted) != len(labels):
        raise ValueError(f"predicted has {len(predicted)} rows, labels has {len(labels)}")
    cells = labels.astype(np.int64) * n_classes + predicted
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)


def compute_macro_f1(confusion: IntArray) -> float:
    """Compute the mean F1, in [0, 1], of the classes that have images from counts [K, K].

    Raises:
        ValueError: There are no images.
    """
    if not confusion.sum():
        raise ValueError("macro F1 of no images is undefined")
    present = confusion.sum(axis=1) > 0
    true_positives = confusion.diagonal()[present]
    # 2 TP + FP + FN is the row sum plus the column sum, above zero where a class has images
    denominator = (confusion.sum(axis=0) + confusion.sum(axis=1))[present]
    return float(np.mean(2 * true_positives / denominator))


def score_validation(logits: FloatArray, labels: IntArray) -> dict[str, float]:
    """Compute the scores of an epoch, `val_loss`, `val_accuracy` and `val_macro_f1`.

    Args:
        logits: [N, K]; the loss is the mean cross-entropy.
        labels: [N] class ids.
    """
    log_probs = log_softmax(logits.astype(np.float64), axis=1)
    confusion = compute_confusion(logits.argmax(axis=1), labels, logits.shape[1])
    return {
        "val_loss": float(-log_probs[np.arange(len(labels)), labels].mean()),
        "val_accuracy": float(confusion.trace() / confusion.sum()),
        "val_macro_f1": compute_macro_f1(confusion),
    }


def compute_metrics(
    probs: FloatArray,
    labels: IntArray,
    duplicate_sets: NDArray[Any],
    groups: NDArray[Any],
    classes: Sequence[str],
) -> dict[str, Any]:
    """Compute the classification metrics of metrics.json with 95 % intervals, groups as the unit.

    Higher is better. The Matthews coefficient is in [-1, 1], all others are in [0, 1]. A tie
    between classes goes to the first.

    Args:
        probs: [N, K] probabilities.
        labels: [N] class ids in 0..K-1.
        duplicate_sets: [N] ids; files that show the same slice share one.
        groups: [N] ids; related images share one.
        classes: K names in the order of the ids.

    Returns:
        Plain values, ready for strict JSON.

    Raises:
        UserError: There are no images, or probabilities are NaN or infinite.
        ValueError: Shapes disagree, names repeat or an id is outside 0..K-1.
    """
    _check_inputs(probs, labels, classes, duplicate_sets=duplicate_sets, groups=groups)
    notes: list[str] = []
    predicted = probs.argmax(axis=1)
    confusion = compute_confusion(predicted, labels, len(classes))
    present = confusion.sum(axis=1) > 0
    if not present.all():
        absent = ", ".join(name for name, has in zip(classes, present, strict=True) if not has)
        notes.append(f"macro averages: over the classes that have images, without {absent}")
    per_class = [
        _estimate_class(name, labels == index, predicted == index, probs[:, index], notes)
        for index, name in enumerate(classes)
    ]
    n_images = len(labels)
    never_predicted = Estimate(0.0, np.zeros(n_images), np.full(n_images, 1 / n_images))
    with_images = [found for found, has in zip(per_class, present, strict=True) if has]
    estimates = {
        "accuracy": estimate_ratio(predicted == labels),
        "accuracy_per_slice": estimate_accuracy_per_slice(predicted == labels, duplicate_sets),
        "precision_macro": average_estimates(
            found["precision"] or never_predicted for found in with_images
        ),
        **{
            f"{key}_macro": average_estimates(found[key] for found in with_images)
            for key in ("recall", "f1", "roc_auc")
        },
    }
    if estimates["roc_auc_macro"] is None:
        notes.append("roc_auc_macro: null, the images are of one class only")
    return {
        "n_images": n_images,
        "n_slices": len(np.unique(duplicate_sets)),
        "n_groups": len(np.unique(groups)),
        "classes": list(classes),
        "notes": notes,
        **{key: describe(estimate, groups) for key, estimate in estimates.items()},
        "mcc": _compute_mcc(confusion, predicted, labels, groups, notes),
        "per_class": {
            name: {key: describe(found[key], groups) for key in CLASS_KEYS}
            | {"support": int(support)}
            for name, found, support in zip(classes, per_class, confusion.sum(axis=1), strict=True)
        },
        "confusion_matrix": confusion.tolist(),
    }


def estimate_accuracy_per_slice(
    correct: BoolArray, duplicate_sets: NDArray[Any]
) -> Estimate | None:
    """Estimate the accuracy, in [0, 1], with one vote shared by the duplicates of a slice."""
    codes = np.unique(duplicate_sets, return_inverse=True)[1]
    votes = 1 / np.bincount(codes)[codes]  # [N]
    return estimate_ratio(correct * votes, votes)


def _check_inputs(
    probs: FloatArray, labels: IntArray, classes: Sequence[str], **ids: NDArray[Any]
) -> None:
    n_images = len(labels)
    if n_images == 0:
        raise UserError("evaluation: there are no images; choose another --split or --data")
    if probs.shape != (n_images, len(classes)):
        raise ValueError(f"probs: shape {probs.shape}, not {(n_images, len(classes))}")
    for name, values in ids.items():
        if values.shape != (n_images,):
            raise ValueError(f"{name}: shape {values.shape}, not {(n_images,)}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels: {labels.dtype} ids, not integers")
    if len(set(classes)) != len(classes):
        raise ValueError(f"classes: a name repeats in {list(classes)}")
    n_bad = int((~np.isfinite(probs)).any(axis=1).sum())
    if n_bad:
        raise UserError(
            f"evaluation: {n_bad} of {n_images} images have NaN or infinite probabilities; use "
            "another checkpoint or train again with a lower learning rate"
        )


def _estimate_class(
    name: str, is_true: BoolArray, is_predicted: BoolArray, scores: FloatArray, notes: list[str]
) -> dict[str, Estimate | None]:
    """Estimate the metrics of one class against the rest; append reasons for nulls to `notes`."""
    is_hit = is_true & is_predicted
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
        "precision": estimate_ratio(is_hit, is_predicted),
        "recall": estimate_ratio(is_hit, is_true),
        "specificity": estimate_ratio(~is_true & ~is_predicted, ~is_true),
        "f1": estimate_ratio(2.0 * is_hit, is_true.astype(float) + is_predicted),
        "roc_auc": estimate_auc(is_true, scores),
    }


def _compute_mcc(
    confusion: NDArray[np.int64],
    predicted: IntArray,
    labels: IntArray,
    groups: NDArray[Any],
    notes: list[str],
) -> dict[str, Any]:
    """Compute the Matthews correlation in [-1, 1] with its interval."""
    estimate = estimate_mcc(confusion, predicted, labels)
    if estimate is not None:
        low, high = compute_interval(estimate, groups)
        return {"value": 2 * estimate.value - 1, "ci95": [2 * low - 1, 2 * high - 1]}
    if len(np.unique(labels)) == 1:
        notes.append("mcc: null, the images are of one class only")
        return {"value": None, "ci95": None}
    notes.append("mcc: 0 by convention without interval, one class is predicted for every image")
    return {"value": 0.0, "ci95": None}
