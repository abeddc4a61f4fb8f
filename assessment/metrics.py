"""The figures of metrics.json as pure functions of logits, labels, slices and groups.

One rule decides what is undefined: a figure whose denominator is zero is null, and `notes` gives
the reason. Macro averages are taken over the classes that have images; there, a class that is never
predicted counts with precision 0, so that ignoring a class cannot raise the average.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import matthews_corrcoef, roc_auc_score

from helper import UserError

IntArray = NDArray[np.integer[Any]]
FloatArray = NDArray[np.floating[Any]]

CALIBRATION_KEYS = ("ece", "ece_classwise", "brier", "nll", "temperature")
CONFORMAL_KEYS = ("alpha", "coverage", "coverage_by_class", "mean_set_size")
CLASS_KEYS = ("precision", "recall", "specificity", "f1", "roc_auc")

# Who fills one of these parts takes its note away.
PENDING_NOTES = {
    "intervals": "intervals: every ci95 is null, no interval has been computed for this run",
    "calibration": "calibration: null, the probabilities of this run have not been calibrated",
    "conformal": "conformal: null, no prediction sets have been fitted for this run",
}


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
    logits: FloatArray,
    labels: IntArray,
    slices: NDArray[Any],
    groups: NDArray[Any],
    classes: Sequence[str],
) -> dict[str, Any]:
    """Every figure of metrics.json that logits and labels decide, ready for strict JSON.

    All figures are fractions; higher is better. The Matthews coefficient lies in [-1, 1], the rest
    in [0, 1]. A tie between logits goes to the first class. One-vs-rest AUC uses the probabilities.
    `baselines` is left null for the caller: it needs training labels.

    Args:
        logits: [N, K].
        labels: [N] class ids in 0..K-1.
        slices: [N] ids; copies of one slice share one.
        groups: [N] ids; what must stay on one side of a split shares one.
        classes: K names in the order of the ids.

    Raises:
        UserError: There are no images, or logits are NaN or infinite.
        ValueError: Shapes disagree, names repeat or an id lies outside 0..K-1.

    Source: Gorodkin, "Comparing two K-category assignments by a K-category correlation
        coefficient", 2004 (mcc).
    """
    _check_inputs(logits, labels, slices, groups, classes)
    notes = list(PENDING_NOTES.values())
    predicted = logits.argmax(axis=1)
    confusion = compute_confusion(predicted, labels, len(classes))
    present = confusion.sum(axis=1) > 0
    if not present.all():
        absent = ", ".join(name for name, has in zip(classes, present, strict=True) if not has)
        notes.append(f"macro averages: over the classes that have images, so without {absent}")
    per_class = _compute_per_class(confusion, softmax(logits), labels, classes, notes)
    correct = predicted == labels
    macro = {
        key: _average(figures[key] for figures, has in zip(per_class, present, strict=True) if has)
        for key in ("recall", "f1", "roc_auc")
    }
    precisions = [figures["precision"] or 0.0 for figures in per_class]
    if macro["roc_auc"] is None:
        notes.append("roc_auc_macro: null, the images are of one class only")
    return {
        "n_images": len(labels),
        "n_slices": len(np.unique(slices)),
        "n_groups": len(np.unique(groups)),
        "classes": list(classes),
        "notes": notes,
        "accuracy": _figure(correct.mean()),
        "accuracy_per_slice": _figure(compute_accuracy_per_slice(correct, slices)),
        "precision_macro": _figure(np.mean(np.array(precisions)[present])),
        "recall_macro": _figure(macro["recall"]),
        "f1_macro": _figure(macro["f1"]),
        "roc_auc_macro": _figure(macro["roc_auc"]),
        "mcc": _figure(_compute_mcc(predicted, labels, notes)),
        "per_class": {
            name: {key: _figure(figures[key]) for key in CLASS_KEYS} | {"support": int(support)}
            for name, figures, support in zip(
                classes, per_class, confusion.sum(axis=1), strict=True
            )
        },
        "confusion_matrix": confusion.tolist(),
        "calibration": dict.fromkeys(CALIBRATION_KEYS),
        "conformal": dict.fromkeys(CONFORMAL_KEYS),
        "baselines": {"majority": None, "brightness": None},
    }


def compute_accuracy_per_slice(correct: NDArray[np.bool_], slices: NDArray[Any]) -> float:
    """Accuracy with one vote for each distinct slice, in [0, 1], higher is better.

    Args:
        correct: [N] whether the verdict on the image is right.
        slices: [N] ids; the copies of a slice share its vote.
    """
    _, vote = np.unique(slices, return_inverse=True)
    return float(np.mean(np.bincount(vote, weights=correct) / np.bincount(vote)))


def _check_inputs(
    logits: FloatArray,
    labels: IntArray,
    slices: NDArray[Any],
    groups: NDArray[Any],
    classes: Sequence[str],
) -> None:
    n_images = len(labels)
    if n_images == 0:
        raise UserError("evaluation: there are no images; choose another --split or --data")
    if logits.shape != (n_images, len(classes)):
        raise ValueError(f"logits: shape {logits.shape}, not {(n_images, len(classes))}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels: {labels.dtype} ids, not integers")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(f"labels: ids lie outside 0..{len(classes) - 1}")
    if len(set(classes)) != len(classes):
        raise ValueError(f"classes: a name repeats in {list(classes)}")
    for name, ids in (("slices", slices), ("groups", groups)):
        if ids.shape != (n_images,):
            raise ValueError(f"{name}: shape {ids.shape}, not {(n_images,)}")
    n_bad = int((~np.isfinite(logits)).any(axis=1).sum())
    if n_bad:
        raise UserError(
            f"evaluation: {n_bad} of {n_images} images have logits that are NaN or infinite; "
            "use another checkpoint or train again with a lower learning rate"
        )


def _compute_per_class(
    confusion: NDArray[np.int64],
    probs: NDArray[np.float64],
    labels: IntArray,
    classes: Sequence[str],
    notes: list[str],
) -> list[dict[str, float | None]]:
    """The figures of each class against the rest; reasons for what is null go to `notes`."""
    n_images = len(labels)
    rows: list[dict[str, float | None]] = []
    for index, name in enumerate(classes):
        true_positives = int(confusion[index, index])
        n_true = int(confusion[index].sum())
        n_predicted = int(confusion[:, index].sum())
        n_others = n_images - n_true
        true_negatives = n_others - (n_predicted - true_positives)
        missing = []
        if not n_predicted:
            missing.append("precision is null, it is never predicted")
        if not n_true:
            missing.append("recall and roc_auc are null, it has no images")
        if not n_true and not n_predicted:
            missing.append("f1 is null, it is neither present nor predicted")
        if not n_others:
            missing.append("specificity and roc_auc are null, no other class has images")
        if missing:
            notes.append(f"{name}: {'; '.join(missing)}")
        one_sided = not n_true or not n_others
        rows.append(
            {
                "precision": _ratio(true_positives, n_predicted),
                "recall": _ratio(true_positives, n_true),
                "specificity": _ratio(true_negatives, n_others),
                "f1": _ratio(2 * true_positives, n_true + n_predicted),
                "roc_auc": None if one_sided else roc_auc_score(labels == index, probs[:, index]),
            }
        )
    return rows


def _compute_mcc(predicted: IntArray, labels: IntArray, notes: list[str]) -> float | None:
    if len(np.unique(labels)) == 1:
        notes.append("mcc: null, the images are of one class only")
        return None
    if len(np.unique(predicted)) == 1:
        notes.append("mcc: 0 by convention, one class is predicted for every image")
        return 0.0
    return float(matthews_corrcoef(labels, predicted))


def _ratio(numerator: int, denominator: int) -> float | None:
    return numerator / denominator if denominator else None


def _average(values: Any) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _figure(value: float | None) -> dict[str, float | None]:
    return {"value": None if value is None else float(value), "ci95": None}
