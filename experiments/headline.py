"""Cross-validate one recipe on groups with several seeds: the results table of the README.

    python -m experiments.headline --weights WEIGHTS.pth --json results/benchmarks/headline.json

Trains the runs that are missing (session/headline-SEED/fold_1…5; hours on a CPU), pools the folds
of each seed and compares the seeds. Every slice is predicted by networks that were trained on
neither it nor its group. The recipe was chosen on val slices that are among the slices evaluated
here, so the figures may be slightly optimistic.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd

import evaluate
import main as training
from evaluation.predictions import Predictions, align, average_predictions, predict_run
from experiments import cli
from reporting.results import build_report, compare
from reporting.wording import format_estimate

FOLDS = 5
RECIPE = ["--model", "mobilenet_v2", "--image-size", "160", "--epochs", "6", "--patience", "0"]
IDENTITY = ("run", "checkpoint", "data", "split", "environment")


def train_missing(seed: int, weights: Path, threads: int) -> Path:
    """Train or resume one cross-validation unless it is finished; return its folder."""
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


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train the missing runs, pool the folds of each seed and print the comparison."""
    paths = [train_missing(seed, options.weights, options.threads) for seed in options.seeds]
    members = align(
        [predict_run(path, "test", None, device="auto", batch_size=64, threads=0) for path in paths]
    )
    rows = {path.name: describe(member) for path, member in zip(paths, members, strict=True)}
    commits = {str(each["environment"]["commit"]) for run in members for each in run.checkpoints}
    first = members[0].rows
    figures = {
        "recipe": " ".join(RECIPE),
        "folds": FOLDS,
        "seeds": options.seeds,
        "trained_at": sorted(commits),
        "n_images": len(first),
        "n_slices": int(first["duplicate_set"].nunique()),
        "n_groups": int(first["group"].nunique()),
        "runs": rows,
        "mean": pd.DataFrame(rows.values()).mean().to_dict(),
        "comparison": compare(members, list(rows), average_predictions(members)),
    }
    print_table(figures)
    return figures


def describe(predictions: Predictions) -> dict[str, float]:
    """Return the figures of one seed that have no interval; the comparison holds the others."""
    report = build_report(predictions, dict.fromkeys(IDENTITY))
    return {
        **{key: report["calibration"][key] for key in ("ece", "ece_classwise", "nll")},
        "nll_uncalibrated": report["calibration"]["uncalibrated"]["nll"],
        **{key: report["conformal"][key] for key in ("coverage", "mean_set_size")},
        **report["baselines"],
    }


def print_table(figures: dict[str, Any]) -> None:
    """Print the table of the README and the spread over the seeds."""
    print("| run | accuracy | per slice | macro-F1 | ECE | ECE, classwise | NLL | set size |")
    print(f"|{'---|' * 8}")
    for row in figures["comparison"]["rows"]:
        own = figures["runs"].get(row["run"])
        cells = [
            row["run"],
            *(format_estimate(row[key]) for key in ("accuracy", "accuracy_per_slice", "f1_macro")),
            *(f"{row[key]:.4f}" for key in ("ece", "ece_classwise", "nll")),
            f"{own['mean_set_size']:.3f}" if own else "",
        ]
        print(f"| {' | '.join(cells)} |")
    spread = figures["comparison"]["spread"]
    print(
        f"accuracy over the seeds: mean {spread['mean']:.4f}, standard deviation "
        f"{spread['standard_deviation']:.4f}; {figures['n_images']} images, {figures['n_slices']} "
        f"distinct slices, {figures['n_groups']} groups; baselines: "
        f"majority class {figures['mean']['majority']:.4f}, "
        f"brightness {figures['mean']['brightness']:.4f}"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = cli.build_parser("headline", __doc__)
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each training")
    options = parser.parse_args(argv)
    if len(set(options.seeds)) < max(2, len(options.seeds)):
        parser.error("--seeds: give two or more different seeds")
    return cli.run(measure, options)


if __name__ == "__main__":
    sys.exit(main())
