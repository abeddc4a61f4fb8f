"""Build the content of metrics.json and write the files of results/RUN."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from common import atomic_files, fonts, run_paths
from evaluation import calibration, conformal, other_classes, patients, training_copies
from evaluation.ensembles import Predictions
from evaluation.intervals import describe
from evaluation.label_review import review_predictions
from evaluation.predictions import LEAKY_SPLIT, PHANTOM, describe_leak
from evaluation.thresholds import Thresholds, evaluate_thresholds
from explanation import heatmaps
from explanation.evidence import describe_evidence
from helper import UserError
from preparation.audit import read_audit
from preparation.audit_text import describe_audit
from reporting import galleries, label_sheet, notes, plots, uncertainty_plots
from reporting.html_report import write_report
from reporting.model_card import write_model_card
from reporting.run_index import write_index
from reporting.run_metrics import compute_run_metrics, get_ids
from reporting.wording import (
    Context,
    describe_origin,
    describe_patients,
    format_estimate,
    list_headline,
    list_limits,
)

METRICS_SCHEMA = 1


# ---- metrics.json


def build_report(
    predictions: Predictions, identity: dict[str, Any], thresholds: Iterable[str] = ()
) -> dict[str, Any]:
    """Compute the content of metrics.json.

    Args:
        predictions: Of one run, pooled folds or an ensemble.
        identity: `run`, `checkpoint`, `data`, `split` and `environment`.
        thresholds: `CLASS=P` each, of `--threshold`; only `thresholds` depends on them.

    Raises:
        UserError: A threshold is invalid.
    """
    calibrated, fitted = predictions.calibrated, predictions.calibrations
    labels, classes = predictions.labels, predictions.classes
    ids = get_ids(predictions)
    groups, rule = ids[2], Thresholds.parse(thresholds, classes)
    computed = compute_run_metrics(predictions, ids)
    temperature = float(np.mean([each["temperature"] for each in fitted])) if fitted else None
    copies = training_copies.summarise(predictions)
    others = _summarise_others(predictions)
    report = {
        "schema": METRICS_SCHEMA,
        **{key: identity[key] for key in ("run", "checkpoint", "data", "split")},
        **computed,
        "calibration": {
            **calibration.compute_calibration(calibrated.probs, labels, groups),
            "temperature": temperature,
            "uncalibrated": calibration.compute_calibration(predictions.raw_probs, labels, groups),
        },
        "augrc": describe(calibration.estimate_augrc(calibrated.probs, labels), groups),
        "conformal": dict.fromkeys(conformal.CONFORMAL_KEYS),
        "review": None,
        "operating_points": None,
        "thresholds": evaluate_thresholds(
            rule, calibrated.probs, labels, groups, _aggregate_by_patient(predictions)
        ),
        "label_review": review_predictions(predictions)[1],
        "baselines": predictions.baselines,
        "copies_of_training": copies,
        "other_classes": others,
        "provenance": notes.describe_provenance(predictions.checkpoints),
        "environment": identity["environment"],
        "notes": [
            *predictions.warnings,
            *other_classes.describe(others),
            *describe_leak(predictions),
            *_describe_copies(copies),
            *computed["notes"],
            *notes.describe_majority(predictions),
            *notes.describe_calibration(predictions),
            *fonts.describe_names(classes),
        ],
    }
    if report["patients"] != patients.KNOWN:
        report["notes"].insert(len(predictions.warnings), _describe_patients(predictions, report))
    sets, low_confidence = calibrated.prediction_sets, calibrated.low_confidence
    if sets is not None and low_confidence is not None and calibrated.detected is not None:
        report |= {
            "conformal": conformal.compute_coverage(sets, labels, groups, classes),
            "review": calibration.compute_review(low_confidence, predictions.correct, groups),
            "operating_points": calibration.compute_operating_points(
                calibrated.detected, labels, groups, classes
            ),
        }
    return report


def _aggregate_by_patient(predictions: Predictions) -> patients.PatientPredictions:
    patient, _, group = get_ids(predictions)
    probs, labels = predictions.calibrated.probs, predictions.labels
    return patients.aggregate_by_patient(probs, labels, patient, group)


def _summarise_others(predictions: Predictions) -> dict[str, Any] | None:
    """Return `other_classes` of metrics.json; null without slices of other classes."""
    if predictions.others is None:
        return None
    fitted = predictions.fitted.calibration
    calibrated = calibration.apply_calibration(fitted, predictions.others.logits)
    return other_classes.summarise(predictions.others, calibrated, predictions.classes)


def _describe_patients(predictions: Predictions, report: Mapping[str, Any]) -> str:
    """Return the sentence on the patients of the slices."""
    n_known = int((predictions.rows["patient"] != "").sum())
    return describe_patients(report, n_known, int(predictions.related.sum()))


def _describe_copies(copies: dict[str, Any] | None) -> list[str]:
    """Return a note on copies of training slices among other data, if they were searched for."""
    if copies is None:
        return []
    n, n_checked, n_training = (copies[key] for key in ("n", "n_checked", "n_training_slices"))
    searched = f"{n_checked} slices that are not of the run, against {n_training} training slices"
    if not n:
        return [f"OTHER DATA: no copy of a training slice was found ({searched})"]
    without = format_estimate(copies["accuracy_without"])
    return [
        f"OTHER DATA: {n} copies of training slices were found ({searched}); accuracy of the "
        f"others: {without}; prepare.py --against lists the copies"
    ]


# ---- files


def check_results_dir(
    results_dir: Path, report: dict[str, Any], earlier_data: Sequence[str] = ()
) -> None:
    """Check that no results of another checkpoint, split or data folder are overwritten.

    Args:
        results_dir: results/RUN.
        report: New results.
        earlier_data: Folders from which the data of the run moved.

    Raises:
        UserError: The folder holds such results.
    """
    path, identity = results_dir / "metrics.json", ("checkpoint", "split", "data")
    if not path.exists():
        return
    try:
        present = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        present = None
    if not isinstance(present, dict) or not all(
        isinstance(present.get(key), str) for key in identity
    ):
        raise UserError(
            f"{path} was not written by this program or is damaged; choose another --name or move "
            "that folder"
        )
    base = results_dir.parent.parent  # of relative paths in metrics.json
    moved = [(base / folder).resolve() for folder in earlier_data]
    for key in identity:
        there = (base / present[key]).resolve()
        here = Path(report[key]) if key == "data" else base / report[key]
        is_moved = key == "data" and there in moved
        if not is_moved and there != here.resolve():
            raise UserError(
                f"{results_dir} holds results of {key} {present[key]}, not {report[key]}; choose "
                "another --name or move that folder"
            )


def write_results(
    results_dir: Path, report: dict[str, Any], predictions: Predictions, n_gallery: int
) -> None:
    """Write every file of results/RUN, metrics.json last: if it exists, all files are complete.

    Then the list of all runs, results/index.html, is written anew.

    Args:
        results_dir: results/RUN.
        report: Content of metrics.json.
        predictions: Of one run, pooled folds or an ensemble.
        n_gallery: Number of slices in each gallery.
    """
    (results_dir / "metrics.json").unlink(missing_ok=True)
    with atomic_files.atomic_path(results_dir / "predictions.csv") as temporary:
        table = tabulate(predictions, report["thresholds"])
        table.to_csv(temporary, index=False, lineterminator="\n")
    _write_patients(results_dir / "patients.csv", predictions)
    cases, _ = review_predictions(predictions)
    with atomic_files.atomic_path(results_dir / "label_review.csv") as temporary:
        cases.to_csv(temporary, index=False, lineterminator="\n")
    plots_dir = results_dir / "plots"
    for old in plots_dir.glob("*.png"):
        old.unlink()  # it may be from an evaluation with other plots
    stamps = {"PHANTOM": PHANTOM, "LEAKY SPLIT": LEAKY_SPLIT}
    stamp = " · ".join(word for word, note in stamps.items() if note in report["notes"]) or None
    shown, renamed, shown_cases = _name_readably(report, predictions, cases)
    selected = galleries.select(renamed, n_gallery if predictions.member_slices else 0)
    with fonts.use_fonts(fonts.collect(predictions.classes, predictions.rows["path"])):
        for name, figure in draw_plots(shown, renamed, selected, shown_cases):
            plots.save(figure, plots_dir / f"{name}.png", stamp)
    context = _build_context(report, predictions, shows_heatmaps=bool(selected))
    write_report(results_dir / "report.html", report, plots_dir, context, selected)
    write_model_card(results_dir / "model_card.md", report, predictions.checkpoints, context)
    data = run_paths.make_relative(Path(report["data"]), results_dir.parent.parent)
    atomic_files.write_json(results_dir / "metrics.json", report | {"data": data.as_posix()})
    write_index(results_dir.parent)


def _write_patients(path: Path, predictions: Predictions) -> None:
    """Write patients.csv if a patient is known; otherwise remove one of an earlier evaluation."""
    found = _aggregate_by_patient(predictions)
    if not len(found.patients):
        path.unlink(missing_ok=True)
        return
    with atomic_files.atomic_path(path) as temporary:
        table = patients.tabulate_patients(found, predictions.classes)
        table.to_csv(temporary, index=False, lineterminator="\n")


def tabulate(predictions: Predictions, thresholds: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """Return predictions.csv, one row per slice; classes of a prediction set are joined by |.

    With `thresholds` of metrics.json, `predicted_by_threshold` is the class by this rule.
    """
    calibrated, classes = predictions.calibrated, np.array(predictions.classes)
    columns = ["path", "sha256", "patient", "duplicate_set", "group", "label"]
    table = predictions.rows[columns].reset_index(drop=True)
    table["predicted"] = classes[calibrated.probs.argmax(1)]
    table["confidence"] = calibrated.probs.max(1).round(6)
    for index, name in enumerate(classes):
        table[f"p_{name}"] = calibrated.probs[:, index].round(6)
    if thresholds:
        rule = Thresholds(tuple(predictions.classes), thresholds["values"])
        table["predicted_by_threshold"] = classes[rule.predict(calibrated.probs)]
    if calibrated.prediction_sets is None:
        return table.assign(prediction_set="", needs_review="")
    return table.assign(
        prediction_set=["|".join(classes[row]) for row in calibrated.prediction_sets],
        needs_review=calibrated.needs_review,
    )


def _name_readably(
    report: dict[str, Any], predictions: Predictions, cases: pd.DataFrame
) -> tuple[dict[str, Any], Predictions, pd.DataFrame]:
    """Return all that is plotted with stand-ins for class names that no installed font shows."""
    names = fonts.choose_names(predictions.classes)
    if all(old == new for old, new in names.items()):
        return report, predictions, cases
    classes = list(names.values())
    renamed = replace(
        predictions,
        checkpoints=[{**each, "classes": classes} for each in predictions.checkpoints],
        rows=predictions.rows.assign(label=predictions.rows["label"].map(names)),
    )
    per_class = {names[name]: figures for name, figures in report["per_class"].items()}
    return {**report, "per_class": per_class}, renamed, cases.replace(names)


def draw_plots(
    report: dict[str, Any],
    predictions: Predictions,
    selected: Sequence[galleries.Gallery],
    cases: pd.DataFrame,
) -> Iterator[tuple[str, Figure]]:
    """Yield name and figure of every plot that applies to these predictions."""
    probs, labels, classes = predictions.calibrated.probs, predictions.labels, predictions.classes
    compared = report.get("comparison", {"rows": [report]})["rows"]
    accuracies = {
        name: {row["run"]: row[key] for row in compared}
        for key, name in list_headline(report).items()
        if key.startswith("accuracy")
    }
    yield "accuracy", plots.plot_accuracies(accuracies, report["baselines"])
    confusion = np.array(report["confusion_matrix"])
    yield "confusion_matrix", plots.plot_confusion_matrix(confusion, classes)
    yield "class_metrics", plots.plot_class_metrics(report["per_class"])
    yield "roc", plots.plot_roc_curves(probs, labels, classes)
    yield "pr", plots.plot_pr_curves(probs, labels, classes)
    curves = {"plain softmax": predictions.raw_probs}
    if predictions.is_ensemble:
        curves["ensemble"] = probs
    elif report["calibration"]["temperature"] is not None:
        curves["calibrated"] = probs
    yield "reliability", uncertainty_plots.plot_reliability(curves, labels)
    review = report["review"]
    yield "risk_coverage", uncertainty_plots.plot_risk_coverage(probs, labels, review)
    if len(predictions.checkpoints) == 1:
        [checkpoint] = predictions.checkpoints
        history = pd.DataFrame(checkpoint["history"])
        yield "training", plots.plot_training_curves(history, checkpoint["best"]["epoch"])
    if "stress" in report:
        yield "stress", plots.plot_robustness(report["stress"])
    for gallery in selected:
        yield gallery.name, galleries.plot_gallery(gallery.items, gallery.title)
    if len(cases):
        yield "label_review", label_sheet.plot_cases(cases, Path(report["data"]))


def _describe_heatmaps(predictions: Predictions) -> str:
    evidence = describe_evidence(predictions.checkpoints)
    return f"Method: {heatmaps.METHODS[heatmaps.DEFAULT]}. {evidence}"


def _build_context(
    report: dict[str, Any], predictions: Predictions, *, shows_heatmaps: bool
) -> Context:
    """Return the statements on data, output and limits."""
    first, temperature = predictions.checkpoints[0], report["calibration"]["temperature"]
    training_data = describe_origin(first["data"], first["classes"], first["phantom"])
    is_own = Path(first["data"]).resolve() == Path(report["data"]).resolve()
    if predictions.is_ensemble:
        shown = "" if temperature is None else f" (temperature {temperature:.3f})"
        output = f"the average of the networks' calibrated probabilities{shown}"
    elif temperature is None:
        output = "softmax probabilities, not calibrated"
    else:
        output = f"calibrated probabilities (temperature {temperature:.3f})"
    return Context(
        training_data=training_data,
        evaluation_data=training_data if is_own else f"slices of {report['data']}",
        patients=_describe_patients(predictions, report),
        output=output,
        limits=list_limits(report["classes"], PHANTOM in report["notes"]),
        audit=describe_audit(audit) if (audit := read_audit(Path(report["data"]))) else (),
        heatmaps=_describe_heatmaps(predictions) if shows_heatmaps else "",
    )
