"""Evaluate checkpoints: `python evaluate.py session/RUN/best.pt`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import args
import helper
from common.portable_names import quote
from common.run_paths import choose_results_dir, store
from helper import UserError, log

# torch is imported inside the functions, so that `--help` and a wrong option respond without it.


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    config = args.parse_evaluate(argv)
    return helper.run_command(evaluate, config, config.debug)


def evaluate(config: args.EvaluateConfig) -> None:
    """Evaluate checkpoints on one split; write results/RUN and print a summary.

    The folds of a run with --folds are pooled. Several checkpoints are compared, and the metrics
    are those of their ensemble.
    """
    if config.recalibrate is not None:
        recalibrate(config, config.recalibrate)
        return
    from evaluation import ensembles, predictions, robustness, training_copies
    from reporting import results, run_metrics

    split = choose_split(config)
    options = list_options(config)
    is_one = len(config.checkpoints) == 1
    members = [
        predictions.predict_run(
            path, split, config.data, config.calibration if is_one else None, **options
        )
        for path in config.checkpoints
    ]
    names = [name_run(each.path, each.checkpoints[0]["run"]) for each in members]
    trained_on = Path(members[0].checkpoints[0]["data"])
    members = [training_copies.mark_copies(each, config.data or trained_on) for each in members]
    identity: dict[str, Any] = {
        "run": "+".join(names),
        "checkpoint": " ".join(store(each.path, each.path).as_posix() for each in members),
        "data": (config.data or trained_on).as_posix(),
        "split": split,
        "environment": helper.describe_environment(helper.resolve_device(config.device), sys.argv),
    }
    if len(members) == 1:
        [combined] = members
    else:
        members = ensembles.align(members)
        combined = ensembles.average_predictions(members, config.calibration)
    report = results.build_report(combined, identity, config.threshold)
    if len(members) > 1:
        report["comparison"] = run_metrics.compare_runs(members, names, combined)
    name = name_results(config, identity["run"], split, trained_on)
    results_dir = choose_results_dir(config.checkpoints[0]) / name
    earlier_data = members[0].checkpoints[0].get("earlier_data", [])
    results.check_results_dir(results_dir, report, earlier_data)
    if config.stress and combined.is_ensemble:
        raise UserError(
            "--stress changes the slices of one network each; leave it out, or give one best.pt"
        )
    if config.stress:
        report["stress"] = robustness.run_stress(combined, config.batch_size)
        report["notes"] = [*robustness.describe_shortcut(report["stress"]), *report["notes"]]
    results.write_results(results_dir, report, combined, config.gallery)
    print_summary(report, results_dir)


def recalibrate(config: args.EvaluateConfig, data: Path) -> None:
    """Fit the calibration to labelled slices of another source, write it and print what changes.

    Raises:
        UserError: The file exists, the slices belong to the run, or they are too few.
    """
    from evaluation import recalibration

    name = config.name or data.resolve().name
    first = config.checkpoints[0]
    file = (first if first.is_dir() else first.parent) / f"calibration-{name}.json"
    if file.exists():
        raise UserError(f"{file} exists; choose another --name, or delete it")
    options = list_options(config)
    for line in recalibration.recalibrate(config.checkpoints, data, file, **options):
        log.info("%s", line)
    log.info("%s", helper.NOTICE)
    runs = " ".join(map(quote, config.checkpoints))
    log.info("use it: python predict.py %s PATH --calibration %s", runs, quote(file))


def list_options(config: args.EvaluateConfig) -> dict[str, Any]:
    """Return the options of `predictions.predict_run`."""
    names = ("device", "batch_size", "threads", "class_map")
    return {name: getattr(config, name) for name in names}


def choose_split(config: args.EvaluateConfig) -> str:
    """Return `--split`; the test split of data that are only to be evaluated is all of them."""
    import dataset

    is_whole = config.data is not None and dataset.is_evaluation_only(config.data)
    return "all" if is_whole and config.split == "test" else config.split


def name_run(path: Path, run: str) -> str:
    """Return the run's name, the folder's name for folds, or the name of another checkpoint."""
    if path.is_dir():
        return path.resolve().name
    return run if path.stem == "best" else f"{run}-{path.stem}"


def name_results(config: args.EvaluateConfig, run: str, split: str, trained_on: Path) -> str:
    """Return the folder under results/; other data, splits and calibrations get their own."""
    name = config.name or run
    data_dir = config.data or trained_on
    if data_dir.resolve() != trained_on.resolve():
        name = f"{name}-on-{data_dir.resolve().name}"
    name = name if split == "test" else f"{name}-{split}"
    return f"{name}-{config.calibration.stem}" if config.calibration else name


def print_summary(report: dict[str, Any], results_dir: Path) -> None:
    """Print notes, the comparison of runs, the main metrics and the baselines."""
    from reporting.wording import (
        describe_spread,
        format_estimate,
        format_headline,
        list_differences,
        tabulate_headline,
    )

    for note in report["notes"]:
        log.info("note: %s", note)
    if comparison := report.get("comparison"):
        for row in comparison["rows"]:
            log.info(
                "%-24s %s, ECE %.4f (without its bias %s), NLL %.4f",
                *(row["run"], format_headline(row), row["ece"]),
                *(format_estimate(row["ece_debiased"]), row["nll"]),
            )
        for name, pair in list_differences(comparison):
            log.info(
                "%s: %+.4f [%+.4f, %+.4f], p = %.3g by groups (%d better, %d worse)",
                *(name, pair["difference"], *pair["ci95"]),
                *(pair["p_value"], pair["n_first"], pair["n_second"]),
            )
        log.info("%s", describe_spread(comparison))
    patients = f", {report['n_patients']} patients" if report["n_patients"] else ""
    log.info(
        "%s, %s split: %d images, %d groups%s; in brackets: 95 %% intervals",
        *(report["run"], report["split"], report["n_images"], report["n_groups"], patients),
    )
    for line in tabulate_headline(report):
        log.info("%s", line)
    if thresholds := report["thresholds"]:
        for name, value in thresholds["values"].items():
            figures = thresholds["per_class"][name]
            log.info(
                "%s at threshold %g: sensitivity %s, specificity %s",
                *(name, value, format_estimate(figures["sensitivity"])),
                format_estimate(figures["specificity"]),
            )
    if review := report["label_review"]:
        log.info(
            "label review: %d of %d groups hold a slice whose label may be wrong",
            *(review["n_cases"], review["n_groups"]),
        )
    log.info("%s", helper.NOTICE)
    log.info("open %s and %s", quote(results_dir / "report.html"), quote(results_dir / "plots"))


if __name__ == "__main__":
    sys.exit(main())
