"""Notes on origin, calibration and the majority vote of predictions, for reports."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation import conformal
from evaluation.ensembles import Predictions
from modeling.checkpoint import hash_weights


def describe_provenance(checkpoints: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the SHA-256 of the splits, and of names and values of the weights."""
    digests = [hash_weights(checkpoint) for checkpoint in checkpoints]
    splits = dict.fromkeys(checkpoint["fingerprint"] for checkpoint in checkpoints)
    return {"split_sha256": " ".join(splits), "weights_sha256": " ".join(digests)}


def describe_calibration(predictions: Predictions) -> list[str]:
    """Return notes on the limits of the calibration."""
    fitted, checkpoints = predictions.calibrations, predictions.checkpoints
    n_unfitted = sum(not each.get("calibration") for each in checkpoints)
    if not fitted and n_unfitted:
        return [
            f"calibration: {n_unfitted} of {len(checkpoints)} checkpoints have none, "
            "so temperature, prediction sets and review are null and these probabilities are plain "
            "softmax; fit it with python main.py --resume session/RUN"
        ]
    if not fitted:
        return [
            "calibration: the ensemble averages probabilities that each run calibrated; nothing "
            "was fitted to the average, so temperature, prediction sets and review are null: "
            f"{predictions.fitted.source}"
        ]
    notes = [
        "temperature, prediction sets and review thresholds were fitted on "
        f"{predictions.fitted.source}"
    ]
    if len(fitted) > 1:
        n_images, n_groups = (
            _format_range([each[key] for each in fitted]) for key in ("n_images", "n_groups")
        )
        notes = [f"{notes[0]}: {n_images} slices ({n_groups} groups) for each fold"]
        notes.append(f"temperature: mean of {len(fitted)} folds")
    for name in predictions.classes:
        fewest = min(each["conformal"]["n_slices"][name] for each in fitted)
        if fewest < conformal.MIN_SLICES:
            notes.append(
                f"prediction sets: {name} is in every set, as they were fitted on only {fewest} of "
                f"its groups; at least {conformal.MIN_SLICES} are needed"
            )
    return notes


def describe_majority(predictions: Predictions) -> list[str]:
    """Return a note if the majority class of training does not occur among the slices."""
    majority = {each["baselines"]["majority"] for each in predictions.checkpoints}
    absent = sorted(majority - set(predictions.labels.tolist()))
    if not absent:
        return []
    reached = np.bincount(predictions.labels).max() / len(predictions.labels)
    names = ", ".join(predictions.classes[index] for index in absent)
    return [
        f"baselines: {names}, the most frequent class of training, does not occur among these "
        f"slices; always predicting their most frequent class would reach {reached:.4f}"
    ]


def _format_range(counts: Sequence[int]) -> str:
    """Format counts as 133, or 480 to 520."""
    least, most = min(counts), max(counts)
    return f"{least}" if least == most else f"{least} to {most}"
