"""Measure whether one network that a fold ensemble teaches closes the gap between both.

    python -m experiments.distillation DATA --recipe "--model mobilenet_v2" --weights WEIGHTS.pth \\
      --json FILE

DATA is a prepared folder. Its slices are divided into FOLDS folds by group. Each fold is the test
split of three runs that see none of its groups: one network (`single`), a cross-validation whose
networks are averaged (`ensemble`), and one network with that as `--teacher` (`student`). So every
slice is predicted once by each of the three. The share of the gap is that of the NLL or accuracy
between single and ensemble that the student closes.

Finished runs (session/NAME, results/NAME) are reused, stopped ones are resumed.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import dataset
from common.run_paths import RESULTS_DIR, SESSION_DIR
from evaluation.predictions import predict_run
from experiments import cli
from experiments.fold_runs import FOLDS, train_run
from experiments.headline import SMALLEST_PROB, describe_mean
from helper import log
from preparation.manifest import write_manifest
from preparation.splits import HELD_OUT, split_folds

KINDS = ("single", "student", "ensemble")


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = cli.build_parser("distillation", __doc__)
    parser.add_argument("data", type=Path, help="prepared folder")
    parser.add_argument("--recipe", required=True, metavar="OPTIONS", help="options of main.py")
    parser.add_argument("--weights", type=Path, help="initial weights")
    parser.add_argument("--seed", type=int, default=0, help="of folds, initial weights and order")
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(1, FOLDS + 1)))
    parser.add_argument("--work", type=Path, default=Path("distillation"), help="folder to write")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each training")
    return cli.run(measure, parser.parse_args(argv))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train the missing runs, and return and print the figures."""
    folders = write_folds(options.data, options.work, options.seed)
    slices = pd.concat([measure_fold(options, fold, folders[fold]) for fold in options.folds])
    figures = compare(slices)
    for name, row in figures.items():
        log.info("%-9s NLL %s, accuracy %s", name, *(format_mean(row[key]) for key in row))
    return {"data": options.data.name, "recipe": options.recipe, "folds": options.folds, **figures}


def write_folds(data_dir: Path, work: Path, seed: int) -> dict[int, Path]:
    """Write a manifest for each fold, which is its test split; return the folders from fold 1."""
    table = dataset.load_table(data_dir)
    paths = [(data_dir / path).absolute().as_posix() for path in table["path"]]
    folds = split_folds(table["label"].to_numpy(), table["group"].to_numpy(), FOLDS, seed)
    folders = {}
    for fold, splits in enumerate(folds, 1):
        folders[fold] = work / f"{data_dir.name}-{seed}" / f"fold_{fold}"
        whole = table.assign(path=paths, split=splits)
        write_manifest(whole, folders[fold])
        write_manifest(whole[whole["split"] == HELD_OUT], folders[fold] / HELD_OUT)
    return folders


def measure_fold(options: argparse.Namespace, fold: int, folder: Path) -> pd.DataFrame:
    """Return group, NLL and hit of the three on each slice of a fold; train what is missing."""
    start = f"distillation-{options.data.name}-{options.seed}-{fold}"
    weights = [] if options.weights is None else ["--weights", str(options.weights)]
    common = ["--data", str(folder), *options.recipe.split(), *weights]
    common += ["--seed", str(options.seed), "--threads", str(options.threads)]
    teacher = f"{start}-teacher"
    train_run(f"{start}-single", common)
    train_run(teacher, [*common, "--folds", str(FOLDS), "--keep-test"])
    train_run(f"{start}-student", [*common, "--teacher", str(SESSION_DIR / teacher)])
    parts = {kind: read_probs(RESULTS_DIR / f"{start}-{kind}") for kind in ("single", "student")}
    parts["ensemble"] = predict_averaged(SESSION_DIR / teacher, folder / HELD_OUT, options.threads)
    order = parts["single"].index
    figures = {"group": parts["single"]["group"]}
    for kind in KINDS:
        chosen = parts[kind].loc[order]
        figures[f"nll {kind}"] = -np.log(chosen["prob"].clip(SMALLEST_PROB))
        figures[f"hit {kind}"] = chosen["hit"]
    return pd.DataFrame(figures)


def read_probs(results: Path) -> pd.DataFrame:
    """Return group, probability of the label and hit of predictions.csv, by SHA-256."""
    table = pd.read_csv(results / "predictions.csv")
    columns = [f"p_{label}" for label in table["label"]]
    probs = [table[column].iloc[row] for row, column in enumerate(columns)]
    hits = (table["label"] == table["predicted"]).astype(float)
    return pd.DataFrame(
        {"group": table["group"].to_numpy(), "prob": probs, "hit": hits.to_numpy()},
        index=table["sha256"],
    )


def predict_averaged(run_dir: Path, folder: Path, threads: int) -> pd.DataFrame:
    """Return the same of the averaged networks of a cross-validation, on other slices."""
    found = predict_run(run_dir, "all", folder, device="auto", batch_size=64, threads=threads)
    probs = found.calibrated.probs[np.arange(len(found.labels)), found.labels]
    hits = (found.calibrated.probs.argmax(axis=1) == found.labels).astype(float)
    return pd.DataFrame({"prob": probs, "hit": hits}, index=found.rows["sha256"])


def compare(slices: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return mean NLL and accuracy, differences from `single`, and shares of the gap."""
    figures: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        figures[kind] = {
            name: describe_mean(slices[f"{key} {kind}"].to_numpy(float), slices["group"])
            for key, name in (("nll", "NLL"), ("hit", "accuracy"))
        }
    for kind in KINDS[1:]:
        figures[f"{kind} minus single"] = {
            name: describe_difference(slices, key, kind)
            for key, name in (("nll", "NLL"), ("hit", "accuracy"))
        }
    gains = (figures[f"{kind} minus single"] for kind in KINDS[1:])
    student, ensemble = ({name: row[name]["value"] for name in row} for row in gains)
    figures["share of the gap"] = {
        name: {"value": student[name] / ensemble[name] if ensemble[name] else None}
        for name in student
    }
    return figures


def describe_difference(slices: pd.DataFrame, key: str, kind: str) -> dict[str, Any]:
    """Return the mean paired difference from `single`, with its interval by group."""
    values = (slices[f"{key} {kind}"] - slices[f"{key} single"]).to_numpy(float)
    return describe_mean(values, slices["group"], lowest=-np.inf)


def format_mean(figure: dict[str, Any]) -> str:
    """Return a figure with its interval, if it has one."""
    if figure["value"] is None:
        return "-"
    interval = "[{:+.4f}, {:+.4f}]".format(*figure["ci95"]) if "ci95" in figure else ""
    return f"{figure['value']:+.4f} {interval}".strip()


if __name__ == "__main__":
    sys.exit(main())
