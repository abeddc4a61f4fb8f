"""What copies on both sides of a split are worth: the same training under both kinds of split.

    python -m experiments.leak --weights WEIGHTS.pth --json results/benchmarks/leak.json

Trains what is not there yet (session/leak-MODEL-SPLIT-SEED; hours on a CPU), judges every run again
with the groups of today's manifest, and prints the table of the README.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import evaluate
import main as training
from args import DATA_DIR
from common.atomic_files import write_json
from evaluation.intervals import Estimate, compute_difference, compute_interval, estimate_ratio
from evaluation.predictions import judge as judge_checkpoint
from experiments.cli import parse_training_study
from helper import run_verb

RECIPES = {
    "mobilenet_v2": ["--image-size", "128", "--epochs", "5"],
    "resnet18": ["--no-pretrained", "--image-size", "96", "--epochs", "10"],
    "net": ["--image-size", "128", "--epochs", "25"],
}
SPLITS = ("image", "group")


def name_run(model: str, split_by: str, seed: int) -> str:
    """The name of one training."""
    return f"leak-{model}-{split_by}-{seed}"


def train_missing(model: str, split_by: str, seed: int, weights: Path, threads: int) -> None:
    """Train one run, with the same budget whatever the split, unless it is there."""
    name = name_run(model, split_by, seed)
    if (evaluate.RESULTS_DIR / name / "metrics.json").exists():  # written last: it is finished
        return
    if (training.SESSION_DIR / name / "last.pt").exists():
        if training.main(["--resume", str(training.SESSION_DIR / name)]) != 0:
            raise SystemExit(1)
        return
    start = ["--weights", str(weights)] if model == "mobilenet_v2" else []
    division = ["--split-by", split_by, "--split-seed", str(seed), "--seed", str(seed)]
    common = ["--patience", "0", "--threads", str(threads), "--name", name]
    command = ["--model", model, *start, *RECIPES[model], *division, *common]
    if training.main(command) != 0:
        raise SystemExit(1)


def judge(model: str, split_by: str, seed: int) -> tuple[pd.DataFrame, dict[str, float]]:
    """The verdicts of one run on its own test split, and the baselines on the same rows."""
    path = training.SESSION_DIR / name_run(model, split_by, seed) / "best.pt"
    verdicts = judge_checkpoint(path, "test", None, device="cpu", batch_size=64, threads=0)
    rows = verdicts.rows.assign(seed=seed, correct=verdicts.correct)
    [kept] = verdicts.checkpoints
    learnt = pd.DataFrame(kept["split"]).query("split == 'train'")["sha256"]
    table = pd.read_csv(DATA_DIR / "CSV" / "images.csv", usecols=["sha256", "slice", "group"])
    table = table[table["sha256"].isin(set(learnt))]
    for column, flag in (("slice", "has_copy"), ("group", "has_relative")):
        rows[flag] = rows[column].isin(set(table[column]))
    return rows, verdicts.baselines


def estimate_accuracy(rows: pd.DataFrame) -> Estimate:
    """The accuracy over all rows."""
    estimate = estimate_ratio(rows["correct"].to_numpy())
    assert estimate is not None
    return estimate


def describe(rows: pd.DataFrame, baselines: list[dict[str, float]]) -> dict[str, Any]:
    """The figures of one model under one split, over all seeds."""
    per_seed = rows.groupby("seed")["correct"].mean()
    return {
        "accuracy": float(per_seed.mean()),
        "ci95": compute_interval(estimate_accuracy(rows), rows["group"].to_numpy()),
        "per_seed": per_seed.round(4).tolist(),
        "n_images": len(rows),
        "n_slices": int(rows["slice"].nunique()),
        "n_groups": int(rows["group"].nunique()),
        "copy_in_training": float(rows["has_copy"].mean()),
        "relative_in_training": float(rows["has_relative"].mean()),
        "accuracy_where_related": _mean(rows["correct"][rows["has_relative"]]),
        "accuracy_where_new": _mean(rows["correct"][~rows["has_relative"]]),
        "majority": float(np.mean([known["majority"] for known in baselines])),
        "brightness": float(np.mean([known["brightness"] for known in baselines])),
    }


def _mean(correct: "pd.Series[bool]") -> float | None:
    return float(correct.mean()) if len(correct) else None


def run_study(seeds: list[int], weights: Path, threads: int) -> dict[str, Any]:
    """Train what is missing, judge all, compare."""
    figures: dict[str, Any] = {"seeds": seeds, "models": {}}
    for model in RECIPES:
        judged = {}
        entry: dict[str, Any] = {"recipe": " ".join(RECIPES[model])}
        figures["models"][model] = entry
        for split_by in SPLITS:
            for seed in seeds:
                train_missing(model, split_by, seed, weights, threads)
            verdicts = [judge(model, split_by, seed) for seed in seeds]
            judged[split_by] = rows = pd.concat([rows for rows, _ in verdicts], ignore_index=True)
            entry[split_by] = describe(rows, [baselines for _, baselines in verdicts])
        leaky, honest = (judged[split_by] for split_by in SPLITS)
        difference, interval = compute_difference(
            estimate_accuracy(leaky),
            leaky["group"].to_numpy(),
            estimate_accuracy(honest),
            honest["group"].to_numpy(),
        )
        entry["difference"], entry["difference_ci95"] = difference, interval
    return figures


def print_table(figures: dict[str, Any]) -> None:
    """The table of the README, and two columns more."""
    print("| model | image split | group split | difference | majority | brightness |")
    print("|---|---|---|---|---|---|")
    for model, entry in figures["models"].items():
        cells = [
            f"{entry[split]['accuracy']:.4f} [{entry[split]['ci95'][0]:.4f}, "
            f"{entry[split]['ci95'][1]:.4f}]"
            for split in SPLITS
        ]
        low, high = entry["difference_ci95"]
        cells.append(f"{entry['difference']:+.4f} [{low:+.4f}, {high:+.4f}]")
        cells += [
            " / ".join(f"{entry[split][name]:.3f}" for split in SPLITS)
            for name in ("majority", "brightness")
        ]
        print(f"| {model} | {' | '.join(cells)} |")


def study(options: argparse.Namespace) -> None:
    """Print the table, and write the figures where asked to."""
    figures = run_study(options.seeds, options.weights, options.threads)
    print_table(figures)
    if options.json:
        write_json(options.json, figures)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return run_verb(study, parse_training_study("leak", __doc__, argv))


if __name__ == "__main__":
    sys.exit(main())
