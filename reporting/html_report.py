"""report.html: one file that opens from disk."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.atomic_files import write_text
from helper import NOTICE
from reporting.wording import (
    AVERAGES,
    HEADLINE,
    Context,
    list_limits,
    load_template,
    part_notes,
    show,
    show_figure,
    show_interval,
)

PICTURES = {
    "confusion_matrix.png": "Confusion matrix: counts and shares of each true class",
    "class_metrics.png": "Precision, recall and F1 of each class",
    "roc.png": "ROC curves, one class against the rest",
    "pr.png": "Precision-recall curves, one class against the rest",
    "reliability.png": "Reliability: share of right verdicts by confidence, and how many images "
    "have each confidence",
    "risk_coverage.png": "Risk and coverage: error among the slices kept when those of least "
    "confidence are referred",
    "stress.png": "Stress: accuracy by strength of each corruption, in the eight positions, with "
    "brightness matched and with the inside of the head blanked",
    "errors.png": "The errors of highest confidence, each plain and with its heat map",
    "least_certain.png": "The verdicts of least confidence, each plain and with its heat map",
    "training.png": "Training curves: losses, val scores, learning rate",
}


def write_report(
    path: Path, report: Mapping[str, Any], pictures_dir: Path, context: Context
) -> None:
    """Write report.html with the pictures inside; nothing in it is fetched.

    Args:
        path: The file to write.
        report: The content of metrics.json.
        pictures_dir: Where the plots lie.
        context: What else there is to tell.
    """
    warnings, notes = part_notes(report["notes"])
    page = load_template("report.html.jinja", autoescape=True).render(
        title=f"{report['run']}: {report['split']} split",
        notice=NOTICE,
        warnings=warnings,
        contents=_list_contents(report),
        basis=f"{report['n_images']} images of {report['n_slices']} distinct slices in "
        f"{report['n_groups']} groups.",
        cards=_list_cards(report, context),
        averages={
            "head": ["other averages", ""],
            "rows": [(name, show_figure(report[key])) for key, name in AVERAGES.items()],
        },
        comparison=_show_comparison(report.get("comparison")),
        classes=_tabulate_classes(report),
        operating_points=_tabulate_points(report["operating_points"]),
        calibration=_tabulate_calibration(report["calibration"]),
        sets=_show_sets(report["conformal"]),
        referral=_tabulate_referral(report["referral"]),
        stress=_show_stress(report.get("stress")),
        heatmap_method=context.heatmap_method,
        audit="\n".join(context.audit),
        made_from=context.made_from,
        judged_on=context.judged_on,
        limits=list_limits(report),
        notes=notes,
        provenance=_tabulate_provenance(report),
        pictures={
            name: {"text": text, "source": _inline(pictures_dir / name)}
            for name, text in PICTURES.items()
            if (pictures_dir / name).exists()
        },
    )
    write_text(path, page + "\n")


def _inline(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _list_contents(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    sections = {
        "headline": "Headline",
        "comparison": "Runs",
        "classes": "Classes",
        "trust": "Trust",
        "stress": "Stress",
        "data": "Data",
        "limits": "Limits",
        "provenance": "Provenance",
    }
    optional = {"comparison", "stress"}
    return [
        (anchor, name)
        for anchor, name in sections.items()
        if anchor not in optional or report.get(anchor)
    ]


def _list_cards(report: Mapping[str, Any], context: Context) -> list[dict[str, str]]:
    """The headline, then what it is to be compared with."""
    cards = [
        {"name": name, "value": show(report[key]["value"]), "about": show_interval(report[key])}
        | {"kind": ""}
        for key, name in HEADLINE.items()
    ]
    baselines = report["baselines"]
    beside = [
        (
            "always the commonest class of training",
            baselines["majority"],
            "accuracy without looking",
        ),
        ("brightness alone", baselines["brightness"], "accuracy without anatomy"),
    ]
    cards += [
        {"name": name, "value": show(value), "about": about, "kind": "plain"}
        for name, value, about in beside
    ]
    if leaky := context.leaky:
        cards.append(
            {
                "name": "leaky: the same training on a random split",
                "value": show(leaky["value"]),
                "about": f"{show_interval(leaky)} accuracy with copies on both sides, run "
                f"{leaky['run']}; not to be believed",
                "kind": "plain",
            }
        )
    return cards


def _show_comparison(comparison: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not comparison:
        return None
    spread = comparison["spread"]
    return {
        "runs": {
            "head": ["run", "accuracy", "per slice", "F1, macro", "ECE", "NLL"],
            "rows": [
                (
                    row["run"],
                    *(show_figure(row[key]) for key in ("accuracy", "accuracy_per_slice")),
                    show_figure(row["f1_macro"]),
                    show(row["ece"]),
                    show(row["nll"]),
                )
                for row in comparison["rows"]
            ],
        },
        "spread": f"Over the runs: mean accuracy {show(spread['mean'])}, standard deviation "
        f"{show(spread['standard_deviation'])}, from {show(spread['least'])} to "
        f"{show(spread['greatest'])}.",
        "pairs": {
            "head": ["pair", "difference of accuracy", "groups ahead", "behind", "p, by groups"],
            "rows": [
                (
                    f"{pair['first']} less {pair['second']}",
                    f"{pair['difference']:+.4f} [{pair['ci95'][0]:+.4f}, {pair['ci95'][1]:+.4f}]",
                    pair["n_first"],
                    pair["n_second"],
                    f"{pair['p_value']:.3g}",
                )
                for pair in comparison["pairs"]
            ],
        },
    }


def _tabulate_classes(report: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("precision", "recall", "specificity", "f1", "roc_auc")
    return {
        "head": ["class", "precision", "recall", "specificity", "F1", "ROC AUC", "images"],
        "rows": [
            (name, *(show_figure(figures[key]) for key in keys), figures["support"])
            for name, figures in report["per_class"].items()
        ],
    }


def _tabulate_points(points: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not points:
        return None
    return {
        "head": ["class", "sensitivity", "specificity reached"],
        "rows": [
            (name, show_figure(point["sensitivity"]), show_figure(point["specificity"]))
            for name, point in points.items()
        ],
    }


def _tabulate_calibration(calibration: Mapping[str, Any]) -> dict[str, Any]:
    names = {
        "ece": "expected calibration error (ECE)",
        "ece_classwise": "ECE, classwise",
        "brier": "Brier score",
        "nll": "negative log-likelihood",
    }
    raw, temperature = calibration["uncalibrated"], calibration["temperature"]
    if temperature is None:
        head, columns = ["lower is better", "as it is"], [calibration]
    else:
        scaled = f"calibrated (temperature {temperature:.3f})"
        head, columns = ["lower is better", "plain softmax", scaled], [raw, calibration]
    return {
        "head": head,
        "rows": [(name, *(show(column[key]) for column in columns)) for key, name in names.items()],
    }


def _show_sets(conformal: Mapping[str, Any]) -> dict[str, Any] | None:
    if conformal["coverage"] is None:
        return None
    return {
        "text": "A set holds every class that the slice is like enough; "
        f"{1 - conformal['alpha']:.0%} of the slices of each class are meant to have it in their "
        f"set. Here {conformal['coverage']:.1%} of all do, with {conformal['mean_set_size']:.3f} "
        f"classes a set; {conformal['share_single']:.1%} of the sets are one class, "
        f"{conformal['share_empty']:.1%} are empty: such a slice is like none of them.",
        "coverage": {
            "head": ["class", "sets that hold it"],
            "rows": [(name, show(value)) for name, value in conformal["coverage_by_class"].items()],
        },
    }


def _tabulate_referral(referral: Sequence[Mapping[str, Any]] | None) -> dict[str, Any] | None:
    if not referral:
        return None
    return {
        "head": ["meant to be referred", "referred", "accuracy of the rest"],
        "rows": [
            (
                f"{row['share_of_val']:.0%}",
                f"{row['referred']:.1%}",
                show_figure(row["accuracy_of_the_rest"]),
            )
            for row in referral
        ],
    }


def _show_stress(stress: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not stress:
        return None
    blank, matched = (stress["probes"][key] for key in ("blank_interior", "matched_brightness"))
    return {
        "text": f"Changed at the size of the network. {stress['position_agreement']:.1%} of the "
        "slices get the same verdict in all eight positions. A low figure without the inside of "
        "the head proves no absence of shortcuts: such slices are like none that it has seen.",
        "probes": {
            "head": ["probe for shortcuts", "accuracy", "brightness alone on such slices"],
            "rows": [
                ("as they are", show_figure(stress["clean"]), ""),
                (
                    f"inside of the head blanked ({blank['covered']:.0%} of the slices, where a "
                    "head was found)",
                    show_figure(blank["accuracy"]),
                    show(blank["brightness"]),
                ),
                (
                    "all slices with one histogram",
                    show_figure(matched["accuracy"]),
                    show(matched["brightness"]),
                ),
            ],
        },
        "corruptions": {
            "head": ["corruption", "1", "2", "3", "4", "5 (strongest)"],
            "rows": [
                (name, *(f"{row['accuracy']['value']:.3f}" for row in rows))
                for name, rows in stress["corruptions"].items()
            ],
        },
    }


def _tabulate_provenance(report: Mapping[str, Any]) -> dict[str, Any]:
    facts = {
        "checkpoint": report["checkpoint"],
        "data": report["data"],
        **report["provenance"],
        **report["environment"],
    }
    return {"head": ["", ""], "rows": facts.items()}
