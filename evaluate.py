"""Evaluate checkpoints: `python evaluate.py session/RUN/best.pt`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import args
import helper
from helper import log

RESULTS_DIR = Path("results")

# torch is imported inside the functions: `--help` and a wrong option answer without it.


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    config = args.parse_evaluate(argv)
    return helper.run_verb(evaluate, config, config.debug)


def evaluate(config: args.EvaluateConfig) -> None:
    """The figures of checkpoints on one split, as files under results/ and a summary on screen.

    Of a run with --folds, the figures of all its folds together. Of several checkpoints, those of
    their ensemble, with a comparison of all.
    """
    from evaluation import predictions, robustness
    from reporting import results

    judged = [
        predictions.judge_run(
            path,
            config.split,
            config.data,
            device=config.device,
            batch_size=config.batch_size,
            threads=config.threads,
        )
        for path in config.checkpoints
    ]
    names = [name_run(each.path, each.checkpoints[0]["run"]) for each in judged]
    trained_on = Path(judged[0].checkpoints[0]["data"])
    identity: dict[str, Any] = {
        "run": "+".join(names),
        "checkpoint": " ".join(each.path.as_posix() for each in judged),
        "data": (config.data or trained_on).as_posix(),
        "split": config.split,
        "environment": helper.describe_environment(helper.resolve_device(config.device), sys.argv),
    }
    if len(judged) == 1:
        whole, comparison = judged[0], None
    else:
        members = predictions.align(judged)
        whole = predictions.average_members(members)
        comparison = results.compare(members, names, whole)
    report = results.build_report(whole, identity)
    if comparison:
        report["comparison"] = comparison
    results_dir = RESULTS_DIR / name_results(config, identity["run"], trained_on)
    results.check_results_dir(results_dir, report)
    if config.stress:
        report["stress"] = robustness.run_stress(whole, config.batch_size)
        report["notes"] = [*robustness.describe_shortcut(report["stress"]), *report["notes"]]
    results.write_results(results_dir, report, whole, config.gallery)
    summarise(report, results_dir)


def name_run(path: Path, run: str) -> str:
    """What a checkpoint is called: its run's name, the folder's for folds, last.pt marked."""
    if path.is_dir():
        return path.resolve().name
    return run if path.stem == "best" else f"{run}-{path.stem}"


def name_results(config: args.EvaluateConfig, run: str, trained_on: Path) -> str:
    """The folder under results/: the run's own for its test split alone."""
    name = config.name or run
    data_dir = config.data or trained_on
    if data_dir.resolve() != trained_on.resolve():
        name = f"{name}-on-{data_dir.resolve().name}"
    return name if config.split == "test" else f"{name}-{config.split}"


def summarise(report: dict[str, Any], results_dir: Path) -> None:
    """The headline on the screen, its warnings first."""
    from reporting.wording import show_figure

    for note in report["notes"]:
        log.info("note: %s", note)
    if "comparison" in report:
        print_comparison(report["comparison"])
    log.info(
        "%s, %s split: accuracy %s, per slice %s, macro-F1 %s on %d images of %d groups; "
        "commonest class of training %.4f, brightness alone %.4f",
        report["run"],
        report["split"],
        *(show_figure(report[key]) for key in ("accuracy", "accuracy_per_slice", "f1_macro")),
        report["n_images"],
        report["n_groups"],
        report["baselines"]["majority"],
        report["baselines"]["brightness"],
    )
    log.info("%s", helper.NOTICE)
    log.info("open %s and %s", results_dir / "report.html", results_dir / "plots")


def print_comparison(comparison: dict[str, Any]) -> None:
    """A row a run, the ensemble last, then every pair."""
    from reporting.wording import show_figure

    for row in comparison["rows"]:
        log.info(
            "%-24s accuracy %s  per slice %s  macro-F1 %s  ECE %.4f  NLL %.4f",
            row["run"],
            *(show_figure(row[key]) for key in ("accuracy", "accuracy_per_slice", "f1_macro")),
            row["ece"],
            row["nll"],
        )
    for pair in comparison["pairs"]:
        log.info(
            "%s less %s: %+.4f [%+.4f, %+.4f], p = %.3g by groups (%d ahead, %d behind)",
            pair["first"],
            pair["second"],
            pair["difference"],
            *pair["ci95"],
            pair["p_value"],
            pair["n_first"],
            pair["n_second"],
        )
    spread = comparison["spread"]
    log.info(
        "over the runs: accuracy %.4f, standard deviation %.4f, from %.4f to %.4f",
        *(spread[key] for key in ("mean", "standard_deviation", "least", "greatest")),
    )


if __name__ == "__main__":
    sys.exit(main())
