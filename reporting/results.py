"""The files of results/RUN: metrics.json, predictions.csv, plots, report.html, model_card.md."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common import atomic_files
from evaluation import calibration, intervals, metrics
from evaluation.predictions import LEAKY_SPLIT, PHANTOM, Verdicts, describe_leak
from helper import UserError
from preparation.audit import describe_audit, read_audit
from reporting import galleries, plots, trust_plots
from reporting.html_report import write_report
from reporting.model_card import write_model_card
from reporting.wording import Context, attribute

METRICS_SCHEMA = 1
ENSEMBLE = "ensemble"
NOT_CALIBRATED = (
    "calibration: {missing} of {all} checkpoints hold none, so temperature, prediction sets and "
    "referral are null, and the probabilities of those are plain softmax; "
    "python main.py --resume session/RUN fits it"
)
ENSEMBLE_NOT_CALIBRATED = (
    "calibration: the ensemble averages probabilities that were calibrated on {of_whom}; nothing "
    "was fitted to the average, so temperature, prediction sets and referral are null"
)


def build_report(verdicts: Verdicts, identity: dict[str, Any]) -> dict[str, Any]:
    """The content of metrics.json.

    Args:
        verdicts: Of one run, pooled folds or an ensemble.
        identity: `run`, `checkpoint`, `data`, `split` and `environment`.
    """
    calibrated, labels, classes = verdicts.calibrated, verdicts.labels, verdicts.classes
    slices, groups = (verdicts.rows[name].to_numpy() for name in ("slice", "group"))
    figures = metrics.compute_metrics(calibrated.probs, labels, slices, groups, classes)
    fitted = [kept["calibration"] for kept in verdicts.checkpoints if kept.get("calibration")]
    # an average is calibrated by none of its networks' temperatures
    is_fitted = len(fitted) == len(verdicts.checkpoints) and not verdicts.is_average
    notes = [*verdicts.warnings, *describe_leak(verdicts), *figures["notes"]]
    report = {
        "schema": METRICS_SCHEMA,
        **{key: identity[key] for key in ("run", "checkpoint", "data", "split")},
        **figures,
        "calibration": {
            **calibration.compute_calibration(calibrated.probs, labels),
            "temperature": float(np.mean([each["temperature"] for each in fitted]))
            if is_fitted
            else None,
            "uncalibrated": calibration.compute_calibration(verdicts.raw_probs, labels),
        },
        "conformal": dict.fromkeys(calibration.CONFORMAL_KEYS),
        "referral": None,
        "operating_points": None,
        "baselines": verdicts.baselines,
        "provenance": {
            "split_sha256": " ".join(
                dict.fromkeys(kept["fingerprint"] for kept in verdicts.checkpoints)
            ),
            "weights_sha256": " ".join(_hash_weights(kept) for kept in verdicts.checkpoints),
        },
        "environment": identity["environment"],
    }
    if calibrated.sets is not None and calibrated.unsure is not None:
        report["conformal"] = calibration.compute_conformal(calibrated.sets, labels, classes)
        report["referral"] = calibration.compute_referral(
            calibrated.unsure, verdicts.correct, groups
        )
    if calibrated.called is not None:
        report["operating_points"] = calibration.compute_operating_points(
            calibrated.called, labels, groups, classes
        )
    report["notes"] = [
        *notes,
        *_describe_majority(verdicts),
        *_describe_calibration(verdicts, fitted),
    ]
    return report


def _hash_weights(kept: dict[str, Any]) -> str:
    """A hash of a checkpoint's weights by name, whatever else the file holds."""
    digest = hashlib.sha256()
    for name, tensor in sorted(kept["weights"].items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _describe_calibration(verdicts: Verdicts, fitted: Sequence[dict[str, Any]]) -> list[str]:
    """What limits the figures of calibration."""
    if len(fitted) < len(verdicts.checkpoints):
        missing = len(verdicts.checkpoints) - len(fitted)
        return [NOT_CALIBRATED.format(missing=missing, all=len(verdicts.checkpoints))]
    n_images, n_groups = (
        _show_range(each[key] for each in fitted) for key in ("n_images", "n_groups")
    )
    if len(fitted) == 1:
        of_whom = f"the {n_images} val slices ({n_groups} groups) that also chose the epoch"
    else:
        of_whom = (
            f"the val slices of each network ({n_images} of {n_groups} groups) that also chose its "
            "epoch"
        )
    if verdicts.is_average:
        return [ENSEMBLE_NOT_CALIBRATED.format(of_whom=of_whom)]
    notes = [
        f"temperature, prediction sets and referral were fitted on {of_whom}: a little too "
        "favourable"
    ]
    if len(fitted) > 1:
        notes.append(f"temperature: the mean of {len(fitted)} networks, each with its own")
    for name in verdicts.classes:
        fewest = min(each["conformal"]["n_slices"][name] for each in fitted)
        if fewest < calibration.FEWEST_SLICES:
            notes.append(
                f"prediction sets: {name} is in every set, for val has {fewest} groups of it, and "
                f"{calibration.FEWEST_SLICES} are the fewest that say more"
            )
    return notes


def _describe_majority(verdicts: Verdicts) -> list[str]:
    """Where naming the commonest class of training is no measure, what would be."""
    named = {kept["baselines"]["majority"] for kept in verdicts.checkpoints}
    missing = [verdicts.classes[index] for index in sorted(named - set(verdicts.labels.tolist()))]
    if not missing:
        return []
    reached = np.bincount(verdicts.labels).max() / len(verdicts.labels)
    return [
        f"baselines: {', '.join(missing)}, the commonest class of training, is not among the "
        f"judged slices; always naming the commonest of these would reach {reached:.4f}"
    ]


def _show_range(counts: Iterable[int]) -> str:
    """133, or 480 to 520."""
    known = list(counts)
    least, most = min(known), max(known)
    return f"{least}" if least == most else f"{least} to {most}"


def compare(members: Sequence[Verdicts], names: Sequence[str], whole: Verdicts) -> dict[str, Any]:
    """Several runs on the same slices: a row each and one for their ensemble, and every pair.

    Returns:
        `rows` with accuracy, accuracy per slice and macro-F1 (each with interval), ECE and NLL;
        `pairs` with the difference of accuracies, its interval and tests by groups and by slices;
        `spread` of accuracy over the members: mean, standard deviation, least and greatest.

    Raises:
        UserError: Two of them have one name.
    """
    for name in names:
        if name == ENSEMBLE or names.count(name) > 1:
            raise UserError(
                f"more than one of the runs to compare is called {name}; name each run once, and "
                "train with a --name of its own what is to be compared"
            )
    compared = {**dict(zip(names, members, strict=True)), ENSEMBLE: whole}
    slices, groups = (whole.rows[key].to_numpy() for key in ("slice", "group"))
    rows = []
    for name, member in compared.items():
        probs = member.calibrated.probs
        figures = metrics.compute_metrics(probs, member.labels, slices, groups, whole.classes)
        measured = calibration.compute_calibration(probs, member.labels)
        rows.append(
            {
                "run": name,
                **{key: figures[key] for key in ("accuracy", "accuracy_per_slice", "f1_macro")},
                **{key: measured[key] for key in ("ece", "ece_classwise", "nll")},
            }
        )
    pairs = [
        {
            "first": first,
            "second": second,
            **intervals.compare_paired(
                compared[first].correct, compared[second].correct, slices, groups
            ).to_dict(),
        }
        for first, second in itertools.combinations(compared, 2)
    ]
    accuracies = np.array([row["accuracy"]["value"] for row in rows[:-1]])
    spread = {
        "mean": float(accuracies.mean()),
        "standard_deviation": float(accuracies.std(ddof=1)),
        "least": float(accuracies.min()),
        "greatest": float(accuracies.max()),
    }
    return {"rows": rows, "pairs": pairs, "spread": spread}


def check_results_dir(results_dir: Path, report: dict[str, Any]) -> None:
    """Results of another checkpoint, split or data are never overwritten.

    Raises:
        UserError: The folder holds such results.
    """
    path = results_dir / "metrics.json"
    if not path.exists():
        return
    there, identity = read_metrics(path), ("checkpoint", "split", "data")
    if not all(isinstance(there.get(key), str) for key in identity):
        raise UserError(
            f"{path} is not of this program, or damaged; choose another --name, or move that folder"
        )
    for key in identity:
        if Path(there[key]).resolve() != Path(report[key]).resolve():
            raise UserError(
                f"{results_dir} holds results of {key} {there[key]}, not {report[key]}; choose "
                "another --name, or move that folder"
            )


def read_metrics(path: Path) -> dict[str, Any]:
    """The content of a metrics.json; empty where it is damaged."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def tabulate(verdicts: Verdicts) -> pd.DataFrame:
    """predictions.csv: a row a slice; `set` holds class names joined by |, empty where none."""
    calibrated, classes = verdicts.calibrated, np.array(verdicts.classes)
    table = verdicts.rows[["path", "sha256", "slice", "group", "label"]].reset_index(drop=True)
    table["predicted"] = classes[calibrated.probs.argmax(1)]
    table["confidence"] = calibrated.probs.max(1).round(6)
    for index, name in enumerate(classes):
        table[f"p_{name}"] = calibrated.probs[:, index].round(6)
    if calibrated.sets is None:
        return table.assign(set="", refer="")
    return table.assign(
        set=["|".join(classes[row]) for row in calibrated.sets], refer=calibrated.refer
    )


def write_results(
    results_dir: Path, report: dict[str, Any], verdicts: Verdicts, n_exhibits: int
) -> None:
    """Every file of results/RUN; metrics.json last, so that where it is, all is.

    Args:
        results_dir: results/RUN.
        report: The content of metrics.json.
        verdicts: Of one run, pooled folds or an ensemble.
        n_exhibits: Slices in each gallery.
    """
    labels, probs, classes = verdicts.labels, verdicts.calibrated.probs, verdicts.classes
    stamps = {"PHANTOM": PHANTOM, "LEAKY SPLIT": LEAKY_SPLIT}
    stamp = " · ".join(word for word, note in stamps.items() if note in report["notes"]) or None
    leaky = find_leaky_twin(verdicts, report, results_dir.parent)
    (results_dir / "metrics.json").unlink(missing_ok=True)
    with atomic_files.atomic_path(results_dir / "predictions.csv") as temporary:
        tabulate(verdicts).to_csv(temporary, index=False)
    pictures = results_dir / "plots"
    for old in pictures.glob("*.png"):
        old.unlink()  # what is not drawn again would be of another evaluation
    plots.plot_confusion_matrix(
        np.array(report["confusion_matrix"]),
        classes,
        pictures / "confusion_matrix.png",
        stamp=stamp,
    )
    plots.plot_class_metrics(report["per_class"], pictures / "class_metrics.png", stamp=stamp)
    plots.plot_roc_curves(probs, labels, classes, pictures / "roc.png", stamp=stamp)
    plots.plot_pr_curves(probs, labels, classes, pictures / "pr.png", stamp=stamp)
    curves = {"softmax": verdicts.raw_probs}
    if verdicts.is_average:
        curves["averaged"] = probs
    elif report["calibration"]["temperature"] is not None:
        curves["calibrated"] = probs
    trust_plots.plot_reliability(curves, labels, pictures / "reliability.png", stamp=stamp)
    trust_plots.plot_risk_coverage(probs, labels, pictures / "risk_coverage.png", stamp=stamp)
    if len(verdicts.checkpoints) == 1:
        history = pd.DataFrame(verdicts.checkpoints[0]["history"])
        best_epoch = verdicts.checkpoints[0]["best"]["epoch"]
        plots.plot_training_curves(history, best_epoch, pictures / "training.png", stamp=stamp)
    if "stress" in report:
        trust_plots.plot_stress(report["stress"], pictures / "stress.png", stamp=stamp)
    shows_maps = n_exhibits > 0 and len(verdicts.parts) > 0
    if shows_maps:
        plot_galleries(verdicts, n_exhibits, pictures, stamp)
    context = Context(
        **_describe_data(verdicts, report),
        output=_describe_output(verdicts, report["calibration"]["temperature"]),
        audit=describe_audit(audit) if (audit := read_audit(Path(report["data"]))) else (),
        leaky=leaky,
        heatmap_method=galleries.describe_method(verdicts) if shows_maps else "",
    )
    write_report(results_dir / "report.html", report, pictures, context)
    write_model_card(results_dir / "model_card.md", report, verdicts.checkpoints, context)
    atomic_files.write_json(results_dir / "metrics.json", report)


def _describe_data(verdicts: Verdicts, report: dict[str, Any]) -> dict[str, str]:
    """Whose slices the networks learnt from, and whose they were judged on."""
    kept = verdicts.checkpoints[0]
    made_from = attribute(kept["data"], kept["classes"], kept["phantom"])
    is_own = Path(kept["data"]).resolve() == Path(report["data"]).resolve()
    return {
        "made_from": made_from,
        "judged_on": made_from if is_own else f"slices of {report['data']}",
    }


def _describe_output(verdicts: Verdicts, temperature: float | None) -> str:
    """What the probabilities are."""
    if verdicts.is_average:
        return "the average of the networks' probabilities, to which nothing was fitted"
    if temperature is None:
        return "a softmax, not calibrated"
    return f"calibrated probabilities (temperature {temperature:.3f})"


def plot_galleries(verdicts: Verdicts, count: int, pictures: Path, stamp: str | None) -> None:
    """The worst errors and the least certain slices with their heat maps."""
    for name, title, exhibits in (
        ("errors.png", "Errors of highest confidence", galleries.show_errors(verdicts, count)),
        (
            "least_certain.png",
            "Verdicts of least confidence",
            galleries.show_least_certain(verdicts, count),
        ),
    ):
        if exhibits:
            trust_plots.plot_gallery(exhibits, title, pictures / name, stamp=stamp)


def find_leaky_twin(
    verdicts: Verdicts, report: dict[str, Any], results_root: Path
) -> dict[str, Any] | None:
    """The accuracy of the same training on a random split of the same images, if measured."""
    wanted = {key: report[key] for key in ("schema", "data", "split", "classes")}
    own = verdicts.checkpoints[0]["config"]
    if len(verdicts.checkpoints) > 1 or own["data"]["split_by"] == "image":
        return None
    for path in sorted(results_root.glob("*/metrics.json")):
        there = read_metrics(path)
        if any(there.get(key) != value for key, value in wanted.items()):
            continue
        kept = Path(there["checkpoint"]).parent / "config.json"
        if LEAKY_SPLIT not in there["notes"] or not kept.is_file():
            continue
        if _list_recipe(json.loads(kept.read_text("utf-8"))) == _list_recipe(own):
            return {**there["accuracy"], "run": there["run"]}
    return None


def _list_recipe(config: dict[str, Any]) -> dict[str, Any]:
    """What decides a training, but for the split, the seed and where it ran."""
    return {
        **{group: config[group] for group in ("model", "train", "augment")},
        "phantom": config["data"]["phantom"],
    }
