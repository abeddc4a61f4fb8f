"""Recipes tried for the headline, judged on val alone; the test slices are never asked for.

    python -m experiments.recipes --weights WEIGHTS.pth --json results/benchmarks/recipes.json

Trains what is not there yet (session/recipe-NAME-SEED) on the grouped split of each seed, and
prints the best epoch's val figures. The choice and its reason stand in docs/recipe.md.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import pandas as pd

import args
import main as training
from common.atomic_files import write_json
from experiments.cli import parse_training_study
from helper import resolve_device, run_verb
from runs import lifecycle

COMMON = ["--model", "mobilenet_v2", "--patience", "0"]
RECIPES = {
    "sketch": ["--image-size", "160", "--epochs", "6"],
    "longer": ["--image-size", "160", "--epochs", "12"],
    "smaller-longer": ["--image-size", "128", "--epochs", "12"],
    "larger": ["--image-size", "192", "--epochs", "8"],
    "whole-rate": ["--image-size", "160", "--epochs", "6", "--body-lr-factor", "1.0"],
    "mixup": ["--image-size", "160", "--epochs", "12", "--mixup", "0.2"],
}


def train_missing(name: str, seed: int, weights: Path, threads: int) -> Path:
    """Train one recipe without judging it, unless that is done; its folder."""
    run_dir = training.SESSION_DIR / f"recipe-{name}-{seed}"
    command = [
        *(*COMMON, *RECIPES[name], "--weights", str(weights), "--threads", str(threads)),
        *("--split-seed", str(seed), "--seed", str(seed), "--name", run_dir.name),
    ]
    config = args.parse_train(command)
    assert isinstance(config, args.TrainConfig)
    device = resolve_device(config.run.device)
    if (run_dir / "last.pt").exists():
        lifecycle.take_up(run_dir, device)  # at once where it had ended
    else:
        table, data_dir = training.load_table(config), training.find_data(config)
        lifecycle.start_run(config, table, data_dir, run_dir, run_dir.name, device)
    return run_dir


def read_best(run_dir: Path) -> dict[str, float]:
    """The val figures of the epoch that was kept, and what an epoch cost."""
    history = pd.read_csv(run_dir / "history.csv")
    best = history.sort_values(["val_macro_f1", "val_loss"], ascending=[False, True]).iloc[0]
    keys = ("epoch", "val_accuracy", "val_macro_f1", "val_loss")
    return {**{key: float(best[key]) for key in keys}, "time_s": float(history["time_s"].sum())}


def study(options: argparse.Namespace) -> None:
    """Print the table, and write the figures where asked to."""
    figures: dict[str, Any] = {}
    for name in options.recipes:
        outcomes = {
            seed: read_best(train_missing(name, seed, options.weights, options.threads))
            for seed in options.seeds
        }
        figures[name] = {"options": " ".join(RECIPES[name]), "seeds": outcomes}
    print("| recipe | options | val macro-F1, mean (each seed) | val loss | training, s |")
    print("|---|---|---|---|---|")
    for name, entry in figures.items():
        best = list(entry["seeds"].values())
        scores = [run["val_macro_f1"] for run in best]
        means = [statistics.mean(run[key] for run in best) for key in ("val_loss", "time_s")]
        each = ", ".join(f"{score:.4f}" for score in scores)
        print(
            f"| {name} | `{entry['options']}` | {statistics.mean(scores):.4f} ({each}) | "
            f"{means[0]:.4f} | {means[1]:.0f} |"
        )
    if options.json:
        write_json(options.json, figures)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = parse_training_study("recipes", __doc__, argv, recipes=tuple(RECIPES))
    return run_verb(study, options)


if __name__ == "__main__":
    sys.exit(main())
