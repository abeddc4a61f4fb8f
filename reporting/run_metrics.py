"""Metrics of the predictions of a run, and the comparison of several runs."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation import calibration, comparison, metrics, patients
from evaluation.ensembles import Predictions
from helper import UserError
from reporting.wording import HEADLINE

ENSEMBLE = "ensemble"


def get_ids(predictions: Predictions) -> list[np.ndarray]:
    """Return patient [N], duplicate set [N] and group [N] of the slices."""
    return [predictions.rows[name].to_numpy() for name in ("patient", "duplicate_set", "group")]


def compute_run_metrics(predictions: Predictions, ids: Sequence[np.ndarray]) -> dict[str, Any]:
    """Compute the metrics by image, duplicate set and patient, with the ids of `get_ids`."""
    probs, labels, classes = predictions.calibrated.probs, predictions.labels, predictions.classes
    patient, duplicate_set, group = ids
    return {
        **metrics.compute_metrics(probs, labels, duplicate_set, group, classes),
        **patients.compute_patient_metrics(probs, labels, patient, group, classes),
    }


def compare_runs(
    members: Sequence[Predictions], names: Sequence[str], ensemble: Predictions
) -> dict[str, Any]:
    """Compare several runs and their ensemble on the same slices.

    Returns:
        `rows` with the accuracies and macro-F1 (each with interval), ECE (also without its bias,
        with interval) and NLL; `pairs` with the difference of accuracies, its interval and tests by
        groups and by slices, and the same `per_patient`; `spread` and `spread_per_patient` of
        accuracy over the members. What is per patient is null if no patient is known.

    Raises:
        UserError: Two runs have the same name.
    """
    for name in names:
        if name == ENSEMBLE or names.count(name) > 1:
            raise UserError(
                f"more than one of the runs to compare is called {name}; give each run once, and "
                "train each with its own --name"
            )
    compared = {**dict(zip(names, members, strict=True)), ENSEMBLE: ensemble}
    ids = patient, duplicate_set, group = get_ids(ensemble)
    rows, by_patient = [], {}
    for name, member in compared.items():
        probs, labels = member.calibrated.probs, member.labels
        computed = compute_run_metrics(member, ids)
        errors = calibration.compute_calibration(probs, labels, group)
        by_patient[name] = patients.aggregate_by_patient(probs, labels, patient, group)
        rows.append(
            {
                "run": name,
                **{key: computed[key] for key in HEADLINE},
                **{key: errors[key] for key in ("ece", "ece_debiased", "ece_classwise", "nll")},
            }
        )
    pairs = [
        {
            "first": first,
            "second": second,
            **comparison.compare_paired(
                compared[first].correct, compared[second].correct, duplicate_set, group
            ),
            "per_patient": comparison.compare_patients(by_patient[first], by_patient[second]),
        }
        for first, second in itertools.combinations(compared, 2)
    ]
    spreads = {
        name: comparison.compute_spread([row[key]["value"] for row in rows[:-1]])
        for name, key in (("spread", "accuracy"), ("spread_per_patient", "accuracy_per_patient"))
    }
    return {"rows": rows, "pairs": pairs, **spreads}
