"""The headline of the README: grouped cross-validation of one recipe, several seeds.

    python -m experiments.headline --weights WEIGHTS.pth --json results/benchmarks/headline.json

Trains what is not there yet (session/headline-SEED/fold_1…5; hours on a CPU), pools the folds of
each seed, and compares the seeds. Every slice is judged by networks that were trained on neither it
nor its group. The recipe was chosen on val slices (docs/recipe.md), which are among those judged
here: whatever chance favoured it there may favour it here a little.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

import evaluate
import main as training
from common.atomic_files import write_json
from evaluation.predictions import Verdicts, align, average_members, judge_run
from experiments.cli import parse_training_study
from helper import read_commit, run_verb
from reporting.results import build_report, compare
from reporting.wording import show_figure

FOLDS = 5
RECIPE = ["--model", "mobilenet_v2", "--image-size", "160", "--epochs", "6", "--patience", "0"]
IDENTITY = ("run", "checkpoint", "data", "split", "environment")


def train_missing(seed: int, weights: Path, threads: int) -> Path:
    """Train one cross-validation, or go on with it, unless it is there; its folder."""
    run_dir = training.SESSION_DIR / f"headline-{seed}"
    if (evaluate.RESULTS_DIR / run_dir.name / "metrics.json").exists():  # written last
        return run_dir
    command = [
        *RECIPE,
        *("--weights", str(weights), "--folds", str(FOLDS), "--threads", str(threads)),
        *("--split-seed", str(seed), "--seed", str(seed), "--name", run_dir.name),
    ]
    if run_dir.exists():
        command = ["--resume", str(run_dir)]
    if training.main(command) != 0:
        raise SystemExit(1)
    return run_dir


def run_study(seeds: list[int], weights: Path, threads: int) -> dict[str, Any]:
    """Train what is missing, pool the folds of each seed, compare the seeds."""
    paths = [train_missing(seed, weights, threads) for seed in seeds]
    members = align(
        [judge_run(path, "test", None, device="auto", batch_size=64, threads=0) for path in paths]
    )
    rows = {path.name: describe(member) for path, member in zip(paths, members, strict=True)}
    names = next(iter(rows.values()))
    first = members[0].rows
    return {
        "recipe": " ".join(RECIPE),
        "folds": FOLDS,
        "seeds": seeds,
        "trained_at": sorted(
            {
                str(kept["environment"]["commit"])
                for member in members
                for kept in member.checkpoints
            }
        ),
        "commit": read_commit(),
        "n_images": len(first),
        "n_slices": int(first["slice"].nunique()),
        "n_groups": int(first["group"].nunique()),
        "runs": rows,
        "mean": {name: float(np.mean([row[name] for row in rows.values()])) for name in names},
        "comparison": compare(members, list(rows), average_members(members)),
    }


def describe(verdicts: Verdicts) -> dict[str, float]:
    """The figures of one seed that have no interval; those with one are in the comparison."""
    report = build_report(verdicts, dict.fromkeys(IDENTITY))
    return {
        **{key: report["calibration"][key] for key in ("ece", "ece_classwise", "nll")},
        "nll_uncalibrated": report["calibration"]["uncalibrated"]["nll"],
        **{key: report["conformal"][key] for key in ("coverage", "mean_set_size")},
        **report["baselines"],
    }


def print_table(figures: dict[str, Any]) -> None:
    """The table as the README has it."""
    print("| run | accuracy | per slice | macro-F1 | ECE | ECE, classwise | NLL | set size |")
    print("|---|---|---|---|---|---|---|---|")
    for row in figures["comparison"]["rows"]:
        sizes = figures["runs"].get(row["run"])
        cells = [
            row["run"],
            *(show_figure(row[key]) for key in ("accuracy", "accuracy_per_slice", "f1_macro")),
            *(f"{row[key]:.4f}" for key in ("ece", "ece_classwise", "nll")),
            f"{sizes['mean_set_size']:.3f}" if sizes else "",
        ]
        print(f"| {' | '.join(cells)} |")
    spread = figures["comparison"]["spread"]
    print(
        f"accuracy over the seeds: {spread['mean']:.4f}, standard deviation "
        f"{spread['standard_deviation']:.4f}; {figures['n_images']} images, {figures['n_slices']} "
        f"slices, {figures['n_groups']} groups"
    )


def study(options: argparse.Namespace) -> None:
    """Print the table, and write the figures where asked to."""
    figures = run_study(options.seeds, options.weights, options.threads)
    print_table(figures)
    if options.json:
        write_json(options.json, figures)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return run_verb(study, parse_training_study("headline", __doc__, argv, fewest_seeds=2))


if __name__ == "__main__":
    sys.exit(main())
