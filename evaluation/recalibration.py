"""Fit the calibration of networks to labelled slices of another source, and say what it changes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import calibration, conformal
from evaluation.calibration import Calibrated
from evaluation.conformal import MIN_SLICES
from evaluation.ensembles import Predictions, average_predictions
from evaluation.fitted import Fitted, write_fitted
from evaluation.held_out import CROSS_FITS, MIN_GROUPS, HeldOut, cross_fit, draw_folds
from evaluation.other_classes import count_left_out
from evaluation.predictions import predict_run
from evaluation.training_copies import mark_copies
from helper import UserError


def recalibrate(paths: Sequence[Path], data: Path, file: Path, **options: Any) -> list[str]:
    """Fit temperature, prediction sets and thresholds to the slices of a folder; write them.

    Groups that hold a copy of a training slice are left out: the networks have seen them.

    Args:
        paths: best.pt or the folder of a run; the networks of several are averaged.
        data: Folder that prepare.py wrote; its slices must be new to the networks.
        file: The file to write.
        options: `device`, `batch_size`, `threads`, `class_map` of `predict_checkpoint`.

    Returns:
        Lines that say what changes. Figures after the fit are cross-fitted: each fifth of the
        groups is calibrated by what is fitted on the others.

    Raises:
        UserError: As `predict_run`; a slice belongs to a run, or there are too few groups.
    """
    runs = [predict_run(path, "all", data, with_distances=True, **options) for path in paths]
    for run in runs:
        _check_unknown(run, data)
    runs = [mark_copies(run, data) for run in runs]
    found = runs[0] if len(runs) == 1 else average_predictions(runs)
    before = _leave_out_copies(found)
    rows, labels, classes = before.rows, before.labels, before.classes
    left_out = len(found.labels) - len(labels)
    if rows["group"].nunique() < MIN_GROUPS:
        copies = f" without copies of training slices ({left_out} slices)" if left_out else ""
        others = "".join(f" ({line})" for line in count_left_out(found.others))
        raise UserError(
            f"{data}: {rows['group'].nunique()} groups{copies}, at least {MIN_GROUPS} are needed "
            f"to fit a temperature; add slices of other patients{others}"
        )
    folds = draw_folds(rows["group"])
    held_out = HeldOut.of_rows(rows, labels, before.logits, before.distances, folds)
    after, _ = cross_fit(held_out, before.logits, folds, classes)
    report = {"before": _measure(before, before.calibrated), "after": _measure(before, after)}
    fitted = write_fitted(
        file,
        before.checkpoints,
        held_out,
        f"{len(labels)} slices ({held_out.n_groups} groups) of {data.name}",
        slices=sorted(set(rows["sha256"])),
        report=report,
    )
    notes = [f"note: {line}" for line in [*before.warnings, *count_left_out(found.others)]]
    if left_out:
        notes.append(
            f"note: {left_out} slices are left out: their groups hold copies of training slices"
        )
    return [*notes, *_describe(before.fitted, fitted, report), *_list_unfitted(fitted, held_out)]


def _check_unknown(predictions: Predictions, data: Path) -> None:
    """Refuse slices that belong to a run.

    Raises:
        UserError: Slices were used to train or to choose a network, or are in its test split.
    """
    known = {digest for each in predictions.checkpoints for digest in each["split"]["sha256"]}
    n_known = int(predictions.rows["sha256"].isin(known).sum())
    if n_known:
        raise UserError(
            f"{data}: {n_known} of {len(predictions.labels)} slices belong to the run; a "
            "calibration needs slices that no network has seen"
        )


def _leave_out_copies(predictions: Predictions) -> Predictions:
    """Return the predictions of groups without a copy of a training slice."""
    groups = predictions.rows["group"]
    has_copy = groups.isin(groups[predictions.related])
    return predictions.take(np.flatnonzero(~has_copy))


def _measure(predictions: Predictions, calibrated: Calibrated) -> dict[str, Any]:
    """Compute calibration errors, and coverage, size and review of the sets if there are any."""
    labels, groups = predictions.labels, predictions.rows["group"].to_numpy()
    figures = calibration.compute_calibration(calibrated.probs, labels, groups)
    sets = calibrated.prediction_sets
    if sets is not None and calibrated.needs_review is not None:
        figures |= conformal.compute_coverage(sets, labels, groups, predictions.classes)
        figures["share_for_review"] = float(calibrated.needs_review.mean())
    return figures


def _describe(before: Fitted, after: Fitted, report: dict[str, Any]) -> list[str]:
    """Return a line for each figure, before and after."""
    old, new = before.calibration or {"temperature": 1.0}, after.calibration
    assert new is not None
    temperature = float(np.mean(old["temperature"]))
    lines = [
        f"fitted on {after.source}; figures after the fit are cross-fitted over "
        f"{CROSS_FITS} parts of the groups",
        f"temperature: {temperature:.3f} -> {new['temperature']:.3f}",
    ]
    names = {
        "ece": "ECE",
        "nll": "NLL",
        "coverage": "coverage of the prediction sets",
        "mean_set_size": "classes in a set",
        "share_for_review": "share to review by the sets",
    }
    lines += [
        f"{name}: {_format(report['before'].get(key))} -> {_format(report['after'][key])}"
        for key, name in names.items()
    ]
    limits = old.get("conformal", {}).get("thresholds", {})
    for name, value in new["conformal"]["thresholds"].items():
        lines.append(f"threshold of {name}: {_format(limits.get(name))} -> {_format(value)}")
    lines.append(f"OOD threshold: {before.ood_threshold:.3f} -> {after.ood_threshold:.3f}")
    return lines


def _list_unfitted(fitted: Fitted, held_out: HeldOut) -> list[str]:
    """Return a note for each part that these slices are too few for."""
    assert fitted.calibration is not None
    notes = [
        f"note: {name} is in every prediction set, as only {count} of its groups are here; at "
        f"least {MIN_SLICES} are needed"
        for name, count in fitted.calibration["conformal"]["n_slices"].items()
        if count < MIN_SLICES
    ]
    if np.isnan(held_out.distances).any():
        notes.append("note: the OOD threshold was not fitted: a network has no OOD reference")
    return notes


def _format(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
