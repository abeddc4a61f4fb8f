"""report.html: one self-contained file with tables and plots."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.atomic_files import write_text
from helper import NOTICE
from reporting.wording import (
    AVERAGES,
    Context,
    describe_spread,
    format_estimate,
    format_figure,
    format_interval,
    format_number,
    list_differences,
    list_headline,
    load_template,
    split_notes,
)

Metrics = Mapping[str, Any]
Table = dict[str, Any]
PLOTS = {
    "accuracy.png": "Accuracies with 95 % intervals, and the accuracies of the baselines per image",
    "confusion_matrix.png": "Confusion matrix: counts and shares of each true class",
    "class_metrics.png": "Precision, recall and F1 of each class",
    "roc.png": "ROC curves, each class against the rest",
    "pr.png": "Precision-recall curves, each class against the rest",
    "reliability.png": "Reliability: share of correct predictions by confidence, and number of "
    "images at each confidence",
    "risk_coverage.png": "Review: error rate of the remaining slices when the least confident ones "
    "are sent for review; points: thresholds set on val",
    "stress.png": "Robustness: accuracy by strength of each corruption, in eight orientations, "
    "with brightness matched and with the inside of the head blanked",
    "errors.png": "Errors of highest confidence, each plain and with its heat map",
    "least_certain.png": "Predictions of lowest confidence, each plain and with its heat map",
    "label_review.png": "Labels to check: the first cases of label_review.csv, each with its label "
    "and the class that contradicts it",
    "training.png": "Training curves: losses, val scores, learning rate",
}
CALIBRATION = {
    "ece": "expected calibration error (ECE)",
    "ece_debiased": "ECE without its bias",
    "ece_classwise": "ECE, classwise",
    "brier": "Brier score",
    "nll": "negative log-likelihood",
}


def write_report(path: Path, report: Metrics, plots_dir: Path, context: Context) -> None:
    """Write report.html with the plots embedded; it needs no other file.

    Args:
        path: File to write.
        report: Content of metrics.json.
        plots_dir: Folder of the plots; missing ones are left out.
        context: Further statements.
    """
    warnings, notes = split_notes(report["notes"])
    page = load_template("report.html.jinja", autoescape=True).render(
        report=report,
        context=context,
        notice=NOTICE,
        warnings=warnings,
        notes=notes,
        cards=_build_cards(report),
        averages=_table(
            ["other averages", ""],
            ((name, format_estimate(report[key])) for key, name in AVERAGES.items()),
        ),
        comparison=_build_comparison(report.get("comparison")),
        classes=_tabulate_classes(report["per_class"]),
        patients=_tabulate_patients(report),
        operating_points=_tabulate_operating_points(report["operating_points"]),
        thresholds=_tabulate_thresholds(report["thresholds"]),
        other_classes=_tabulate_others(report),
        calibration=_tabulate_calibration(report["calibration"]),
        coverage=_tabulate_coverage(report["conformal"]),
        stress=_build_stress(report.get("stress")),
        provenance=_tabulate_provenance(report),
        plots={
            name: {"text": text, "source": _embed(plots_dir / name)}
            for name, text in PLOTS.items()
            if (plots_dir / name).exists()
        },
    )
    write_text(path, page + "\n")


def _embed(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _table(head: Sequence[str], rows: Iterable[Iterable[Any]]) -> Table:
    return {"head": head, "rows": list(rows)}


def _build_cards(report: Metrics) -> list[dict[str, str]]:
    """Return the main metrics and the baselines beside them."""
    metrics = [
        {
            "name": name,
            "value": format_number(report[key]["value"]),
            "about": format_interval(report[key]),
            "kind": "",
        }
        for key, name in list_headline(report).items()
    ]
    baselines = {
        "majority": (
            "majority-class baseline",
            "accuracy of always predicting the most frequent class of training",
        ),
        "brightness": (
            "brightness baseline",
            "accuracy of a classifier on seven brightness statistics",
        ),
    }
    return metrics + [
        {
            "name": name,
            "value": format_number(report["baselines"][key]),
            "about": about,
            "kind": "plain",
        }
        for key, (name, about) in baselines.items()
    ]


def _build_comparison(comparison: Metrics | None) -> dict[str, Any] | None:
    if not comparison:
        return None
    columns = list_headline(comparison["rows"][0])
    return {
        "runs": _table(
            ["run", *columns.values(), "ECE without its bias", "NLL"],
            (
                (
                    row["run"],
                    *(format_estimate(row[key]) for key in (*columns, "ece_debiased")),
                    format_number(row["nll"]),
                )
                for row in comparison["rows"]
            ),
        ),
        "spread": describe_spread(comparison),
        "pairs": _table(
            ["pair", "difference of accuracy", "groups better", "groups worse", "p, by groups"],
            (
                (
                    name,
                    f"{pair['difference']:+.4f} [{pair['ci95'][0]:+.4f}, {pair['ci95'][1]:+.4f}]",
                    *(pair["n_first"], pair["n_second"], f"{pair['p_value']:.3g}"),
                )
                for name, pair in list_differences(comparison)
            ),
        ),
    }


def _tabulate_classes(per_class: Metrics) -> Table:
    keys = ("precision", "recall", "specificity", "f1", "roc_auc")
    return _table(
        ["class", "precision", "recall", "specificity", "F1", "ROC AUC", "images"],
        (
            (name, *(format_estimate(metrics[key]) for key in keys), metrics["support"])
            for name, metrics in per_class.items()
        ),
    )


def _tabulate_patients(report: Metrics) -> Table | None:
    if not report["n_patients"]:
        return None
    return _table(
        ["class", "recall per patient", "patients"],
        (
            (name, format_estimate(recall), recall["n_patients"])
            for name, recall in report["recall_per_patient"].items()
        ),
    )


def _tabulate_operating_points(points: Metrics | None) -> Table | None:
    if not points:
        return None
    keys = ("sensitivity", "specificity")
    return _table(
        ["class", "sensitivity", "specificity reached"],
        ((name, *(format_estimate(point[key]) for key in keys)) for name, point in points.items()),
    )


def _tabulate_thresholds(thresholds: Metrics | None) -> Table | None:
    if not thresholds:
        return None
    columns = ["sensitivity", "specificity"]
    if thresholds["accuracy_per_patient"]["value"] is not None:
        columns += ["sensitivity_per_patient", "specificity_per_patient"]
    return _table(
        ["class", "threshold", *(name.replace("_", " ") for name in columns)],
        (
            (
                name,
                f"{thresholds['values'][name]:g}" if name in thresholds["values"] else "",
                *(format_estimate(figures[key]) for key in columns),
            )
            for name, figures in thresholds["per_class"].items()
        ),
    )


def _tabulate_others(report: Metrics) -> Table | None:
    if not report["other_classes"]:
        return None
    return _table(
        ["class that the model lacks", "images", *(f"as {name}" for name in report["classes"])],
        (
            (name, found["n_images"], *found["predicted"].values())
            for name, found in report["other_classes"].items()
        ),
    )


def _tabulate_calibration(calibration: Metrics) -> Table:
    temperature = calibration["temperature"]
    columns = {"not calibrated": calibration}
    if temperature is not None:
        columns = {
            "plain softmax": calibration["uncalibrated"],
            f"calibrated (temperature {temperature:.3f})": calibration,
        }
    return _table(
        ["lower is better", *columns],
        (
            (name, *(format_figure(column[key]) for column in columns.values()))
            for key, name in CALIBRATION.items()
        ),
    )


def _tabulate_coverage(conformal: Metrics) -> Table | None:
    if conformal["coverage"] is None:
        return None
    by_group, intervals = conformal["coverage_by_group"], conformal["coverage_by_class_ci95"]
    rows = [
        (name, {"value": value, "ci95": intervals[name]}, by_group["by_class"][name])
        for name, value in conformal["coverage_by_class"].items()
    ]
    overall = {"value": conformal["coverage"], "ci95": conformal["coverage_ci95"]}
    rows.append(("all classes", overall, by_group))
    return _table(
        ["class", "coverage of the slices", "coverage if every group counts once"],
        ((name, *map(format_estimate, estimates)) for name, *estimates in rows),
    )


def _build_stress(stress: Metrics | None) -> dict[str, Any] | None:
    if not stress:
        return None
    blank, matched = (stress["probes"][key] for key in ("blank_interior", "matched_brightness"))
    blanked = f"inside of the head blanked ({blank['covered']:.0%} of the slices)"
    return {
        "probes": _table(
            ["probe for shortcuts", "accuracy", "brightness baseline on the same images"],
            (
                ("unchanged", format_estimate(stress["clean"]), ""),
                (blanked, format_estimate(blank["accuracy"]), format_number(blank["brightness"])),
                (
                    "all slices with the same histogram",
                    format_estimate(matched["accuracy"]),
                    format_number(matched["brightness"]),
                ),
            ),
        ),
        "corruptions": _table(
            ["corruption", "1", "2", "3", "4", "5 (strongest)"],
            (
                (name, *(f"{row['accuracy']['value']:.3f}" for row in rows))
                for name, rows in stress["corruptions"].items()
            ),
        ),
    }


def _tabulate_provenance(report: Metrics) -> Table:
    facts = {key: report[key] for key in ("checkpoint", "data")}
    return _table(["", ""], (facts | report["provenance"] | report["environment"]).items())
