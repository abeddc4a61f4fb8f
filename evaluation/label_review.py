"""Likely label errors: slices whose prediction confidently contradicts the label in the data.

A slice is listed if a class other than its label is probable enough to be typical of that class,
or if a copy of the slice has another label. The list is for a reader, who decides; no label is
changed. The predictions must come from networks that were not trained on the slice or its group:
a network learns wrong labels, too.

Source: Northcutt, Jiang and Chuang 2021, Confident learning: estimating uncertainty in dataset
labels (class thresholds and confident disagreement).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import dataset
from evaluation.ensembles import Predictions
from evaluation.intervals import BoolArray, FloatArray, IntArray

IDS = ("path", "sha256", "patient", "duplicate_set", "group")
COLUMNS = (
    *("rank", *IDS, "label", "suggested", "confidence", "p_label", "margin"),
    *("n_slices_of_group_disagreeing", "n_slices_of_group", "reason"),
)
CONFLICT, PREDICTION = "duplicates", "prediction"  # values of the column `reason`
ROUNDING = 1e-9  # a mean of equal probabilities may exceed them by as much


def review_predictions(predictions: Predictions) -> tuple[pd.DataFrame, dict[str, Any] | None]:
    """List the cases of a run, and summarise them for metrics.json.

    Slices that a network was trained on, or that are related to a training slice, are left out.

    Returns:
        The cases (see `find_cases`), and `n_cases`, `n_conflicts` (cases whose copies have
        different labels), `n_images` and `n_groups` that were reviewed, and `out_of_fold` (whether
        they are the pooled folds of a cross-validation); None if no slice could be reviewed.
    """
    rows = predictions.rows
    seen = predictions.related | dataset.find_related(rows, rows)
    held_out = predictions.take(np.flatnonzero(~seen))
    probs, labels = held_out.calibrated.probs, held_out.labels
    cases = find_cases(held_out.rows, probs, labels, held_out.classes)
    if not len(labels):
        return cases, None
    return cases, {
        "n_cases": len(cases),
        "n_conflicts": int((cases["reason"] == CONFLICT).sum()),
        "n_images": len(labels),
        "n_groups": int(held_out.rows["group"].nunique()),
        "out_of_fold": bool(predictions.folds.any()),
    }


def find_cases(
    rows: pd.DataFrame, probs: FloatArray, labels: IntArray, classes: Sequence[str]
) -> pd.DataFrame:
    """Rank the groups with a disagreeing slice; each group is one case, shown by its worst slice.

    Conflicting labels of copies come first, because they do not depend on a network. Within both
    kinds the label of the lowest probability comes first; ties go by margin, then by path.

    Args:
        rows: IDS of N images.
        probs: [N, K] calibrated probabilities by networks that were not trained on the images.
        labels: [N] class ids in 0..K-1.
        classes: K names.

    Returns:
        COLUMNS: `label` is that of the data, `suggested` the class that contradicts it,
        `confidence` and `p_label` their probabilities, `margin` confidence minus p_label, and
        `reason` CONFLICT or PREDICTION. A slice of a group is a duplicate set; it disagrees if one
        of its images does.
    """
    duplicate_sets = rows["duplicate_set"].to_numpy()
    is_conflict, other_label = find_conflicts(probs, labels, duplicate_sets)
    suggested = np.where(is_conflict, other_label, suggest_labels(probs, labels))
    each = np.arange(len(labels))
    names = np.array(classes)
    table = rows[list(IDS)].reset_index(drop=True)
    table = table.assign(
        label=names[labels],
        suggested=names[suggested],
        confidence=probs[each, suggested].round(6),
        p_label=probs[each, labels].round(6),
        reason=np.where(is_conflict, CONFLICT, PREDICTION),
    )
    table["margin"] = (table["confidence"] - table["p_label"]).round(6)
    by_group = table.groupby("group")["duplicate_set"]
    table["n_slices_of_group"] = by_group.transform("nunique")
    found = table[suggested != labels].copy()
    by_group = found.groupby("group")["duplicate_set"]
    found["n_slices_of_group_disagreeing"] = by_group.transform("nunique")
    found = found.sort_values(
        ["reason", "p_label", "margin", "path"], ascending=[True, True, False, True]
    )
    cases = found.drop_duplicates("group").reset_index(drop=True)
    cases["rank"] = np.arange(1, len(cases) + 1)
    return cases[list(COLUMNS)]


def compute_thresholds(probs: FloatArray, labels: IntArray) -> NDArray[np.float64]:
    """Compute for each class its mean probability over the images with this label.

    Args:
        probs: [N, K].
        labels: [N] class ids.

    Returns:
        [K]; infinite for a class without images, which is then never suggested.
    """
    n_classes = probs.shape[1]
    counts = np.bincount(labels, minlength=n_classes)
    sums = np.bincount(labels, probs[np.arange(len(labels)), labels], minlength=n_classes)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)


def suggest_labels(probs: FloatArray, labels: IntArray) -> NDArray[np.int64]:
    """Return for each image the most probable class that reaches its threshold, else its label.

    Args:
        probs: [N, K].
        labels: [N] class ids.

    Returns:
        [N] class ids; the first class in a tie.
    """
    reached = np.where(probs >= compute_thresholds(probs, labels) - ROUNDING, probs, -1.0)
    return np.where((reached >= 0).any(axis=1), reached.argmax(axis=1), labels)


def find_conflicts(
    probs: FloatArray, labels: IntArray, duplicate_sets: NDArray[Any]
) -> tuple[BoolArray, NDArray[np.int64]]:
    """Find images whose copies have another label.

    Args:
        probs: [N, K].
        labels: [N] class ids.
        duplicate_sets: [N] ids; images of one slice share one.

    Returns:
        [N] whether a copy has another label; and [N] the most probable of the other labels of the
        copies, by their mean probabilities (the own label without a conflict).
    """
    codes = np.unique(duplicate_sets, return_inverse=True)[1]
    each, n_sets = np.arange(len(labels)), int(codes.max(initial=-1)) + 1
    has_label = np.zeros((n_sets, probs.shape[1]), dtype=bool)
    has_label[codes, labels] = True
    total = np.zeros((n_sets, probs.shape[1]))
    np.add.at(total, codes, probs)
    others = has_label[codes]
    others[each, labels] = False
    is_conflict = np.asarray(others.any(axis=1))
    likeliest = np.where(others, total[codes], -1.0).argmax(axis=1)
    return is_conflict, np.where(is_conflict, likeliest, labels)
