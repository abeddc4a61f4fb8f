"""Predictions and accuracy of patients: the mean probability over the slices of each.

A patient with 45 slices and one with 5 count the same, so that few patients with many slices
cannot decide the accuracy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from evaluation.intervals import BoolArray, FloatArray, IntArray, describe, estimate_ratio

KNOWN, PARTLY_KNOWN, UNKNOWN = "known", "partly known", "unknown"


@dataclass(frozen=True)
class PatientPredictions:
    """Predictions of P patients, sorted by patient.

    A patient with slices of several classes has an entry for each class.

    Attributes:
        patients: [P] names.
        groups: [P] the group that all slices of the patient are in.
        labels: [P] class ids.
        probs: [P, K] mean probabilities over the slices.
        n_slices: [P] files of the patient.
        n_slices_right: [P] those of them that are predicted correctly.
    """

    patients: NDArray[Any]
    groups: NDArray[Any]
    labels: IntArray
    probs: FloatArray
    n_slices: IntArray
    n_slices_right: IntArray

    @property
    def predicted(self) -> IntArray:
        """[P] ids of the most probable class; a tie goes to the first."""
        return self.probs.argmax(axis=1)

    @property
    def correct(self) -> BoolArray:
        """[P] whether the most probable class is the true one."""
        return self.predicted == self.labels


def aggregate_by_patient(
    probs: FloatArray, labels: IntArray, patients: NDArray[Any], groups: NDArray[Any]
) -> PatientPredictions:
    """Average the probabilities of each known patient.

    Args:
        probs: [N, K].
        labels: [N] class ids.
        patients: [N] names, "" if unknown; such slices are left out.
        groups: [N] ids.
    """
    known = patients != ""
    probs, labels, groups = probs[known], labels[known], groups[known]
    pairs = pd.MultiIndex.from_arrays([patients[known], labels])
    codes, units = pairs.factorize(sort=True)
    n_units = len(units)
    n_slices = np.bincount(codes, minlength=n_units)
    sums = np.zeros((n_units, probs.shape[1]))
    np.add.at(sums, codes, probs)
    first = np.unique(codes, return_index=True)[1]
    return PatientPredictions(
        patients=patients[known][first],
        groups=groups[first],
        labels=labels[first],
        probs=sums / n_slices[:, None],
        n_slices=n_slices,
        n_slices_right=np.bincount(codes[probs.argmax(axis=1) == labels], minlength=n_units),
    )


def find_status(patients: NDArray[Any]) -> str:
    """Return whether the patients of N slices, "" if unknown, are known, partly or not at all."""
    n_known = np.count_nonzero(patients != "")
    if n_known == len(patients):
        return KNOWN
    return PARTLY_KNOWN if n_known else UNKNOWN


def compute_patient_metrics(
    probs: FloatArray,
    labels: IntArray,
    patients: NDArray[Any],
    groups: NDArray[Any],
    classes: Sequence[str],
) -> dict[str, Any]:
    """Compute the metrics by patient of metrics.json, with 95 % intervals by group.

    Args:
        probs: [N, K] probabilities.
        labels: [N] class ids.
        patients: [N] names, "" if unknown.
        groups: [N] ids.
        classes: K names.

    Returns:
        `patients`: known, partly known or unknown; `n_patients`; `accuracy_per_patient` and, by
        class, `recall_per_patient`, over the known patients, null without any.
    """
    found = aggregate_by_patient(probs, labels, patients, groups)
    is_class = {name: found.labels == index for index, name in enumerate(classes)}
    return {
        "patients": find_status(patients),
        "n_patients": len(np.unique(found.patients)),
        "accuracy_per_patient": describe(estimate_ratio(found.correct), found.groups),
        "recall_per_patient": {
            name: describe(estimate_ratio(found.correct & own, own), found.groups)
            | {"n_patients": int(own.sum())}
            for name, own in is_class.items()
        },
    }


def tabulate_patients(found: PatientPredictions, classes: Sequence[str]) -> pd.DataFrame:
    """Return patients.csv, one row for each patient."""
    names = np.array(classes)
    table = pd.DataFrame(
        {
            "patient": found.patients,
            "label": names[found.labels],
            "predicted": names[found.predicted],
            "confidence": found.probs.max(axis=1).round(6),
        }
    )
    for index, name in enumerate(classes):
        table[f"p_{name}"] = found.probs[:, index].round(6)
    return table.assign(n_slices=found.n_slices, n_slices_right=found.n_slices_right)
