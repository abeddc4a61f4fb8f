"""report.html: one self-contained file with tables and plots."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from common.atomic_files import write_text
from explanation.overlay import draw_overlay
from helper import NOTICE
from reporting.galleries import Gallery
from reporting.wording import (
    AVERAGES,
    BASELINES,
    Context,
    describe_spread,
    format_estimate,
    format_figure,
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


def write_report(
    path: Path,
    report: Metrics,
    plots_dir: Path,
    context: Context,
    galleries: Sequence[Gallery] = (),
) -> None:
    """Write report.html with the plots embedded; it needs no other file.

    Args:
        path: File to write.
        report: Content of metrics.json.
        plots_dir: Folder of the plots; missing ones are left out.
        context: Further statements.
        galleries: Slices to check, shown instead of their plots.
    """
    warnings, notes = split_notes(report["notes"])
    page = load_template("report.html.jinja", autoescape=True).render(
        report=report,
        context=context,
        notice=NOTICE,
        warnings=warnings,
        notes=notes,
        answers=_build_answers(report, context),
        bars=_build_bars(report),
        galleries=_build_galleries(galleries),
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


def _build_bars(report: Metrics) -> list[dict[str, Any]]:
    """Return the main metrics and the baselines, with their places on a bar in percent."""
    rows = [
        {"name": name, "text": format_estimate(report[key]), **_place(report[key])}
        for key, name in list_headline(report).items()
    ]
    return rows + [
        {"name": name, "text": format_number(value), "value": 100 * value, "interval": None}
        for name, value in ((name, report["baselines"][key]) for key, name in BASELINES.items())
    ]


def _place(estimate: Metrics) -> dict[str, Any]:
    low, high = estimate["ci95"] or (estimate["value"], estimate["value"])
    return {"value": 100 * estimate["value"], "interval": (100 * low, 100 * (high - low))}


def _build_answers(report: Metrics, context: Context) -> list[tuple[str, str]]:
    """Return the questions of the first screen, and an answer of one or two sentences each."""
    patient, image = report["accuracy_per_patient"], report["accuracy"]
    counts = [(image, f"{report['n_images']} slices")]
    if patient["value"] is not None:
        counts.insert(0, (patient, f"{report['n_patients']} patients"))
    shares = " and ".join(f"{each['value']:.1%} of {name}" for each, name in counts)
    ranges = " and ".join(
        f"{each['ci95'][0]:.1%} to {each['ci95'][1]:.1%} of {name.partition(' ')[2]}"
        for each, name in counts
        if each["ci95"]
    )
    ece, baselines = report["calibration"]["ece_debiased"], report["baselines"]
    warnings, _ = split_notes(report["notes"])
    answers = {
        "How good?": f"{shares} are classified correctly.",
        "How sure?": f"With other cases of the same kind, {ranges} would be classified "
        "correctly (95 % intervals)."
        if ranges
        else "There are too few groups for an interval.",
        "Compared with what?": f"A classifier on brightness alone, without anatomy, reaches "
        f"{baselines['brightness']:.1%} of the slices, the most frequent class "
        f"{baselines['majority']:.1%}.",
        "Can its confidence be believed?": "The confidence differs from the share of correct "
        f"predictions by {100 * ece['value']:.1f} points on average."
        if ece["value"] is not None
        else "Too few slices to say.",
        "Can these figures be believed?": " ".join(
            [
                *(["With care: see the warnings above."] if warnings else []),
                *([f"{context.patients}."] if context.patients not in warnings else []),
            ]
        ),
    }
    return list(answers.items())


def _build_galleries(galleries: Sequence[Gallery]) -> list[dict[str, Any]]:
    """Return the title and the pictures of each gallery: slice and heat map side by side."""
    return [
        {
            "title": gallery.title,
            "pictures": [
                {
                    "source": _encode(draw_overlay(item.pixels, item.heatmap, [])),
                    "caption": item.caption.replace("\n", ", "),
                }
                for item in gallery.items
            ],
        }
        for gallery in galleries
    ]


def _encode(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"


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
