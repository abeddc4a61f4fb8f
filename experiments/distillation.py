"""Measure whether one network that a fold ensemble teaches closes the gap between both.

    python -m experiments.distillation DATA --recipe "--model mobilenet_v2" --weights WEIGHTS.pth \\
      --json FILE

DATA is a prepared folder. Its slices are divided into FOLDS folds by group. Each fold is the test
split of three runs that see none of its groups: one network (`single`), a cross-validation whose
networks are averaged (`ensemble`), and one network with that as `--teacher` (`student`). So every
slice is predicted once by each of the three. The share of the gap is what the student gains of the
NLL or accuracy that the ensemble gains; it is given where the ensemble is better beyond its
interval.

The intervals are by group, for these trained networks: chance of training is not in them. The
networks of the ensemble together learn from all slices outside the fold; the single network and the
student use a part of these for validation.

Finished runs (session/NAME, results/NAME) are reused, stopped ones are resumed.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import dataset
from common.run_paths import SESSION_DIR
from evaluation.predictions import predict_run
from experiments import cli
from experiments.fold_runs import FOLDS, train_run
from experiments.headline import compute_nll, describe_mean
from helper import log
from modeling.members import is_folds
from preparation.manifest import write_manifest
from preparation.splits import HELD_OUT, split_folds

# ends of the names of the runs, and what they show
RUNS = {"single": "single", "student": "student", "teacher": "ensemble"}
KINDS = tuple(RUNS.values())


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = cli.build_parser("distillation", __doc__)
    parser.add_argument("data", type=Path, help="prepared folder")
    parser.add_argument("--recipe", required=True, metavar="OPTIONS", help="options of main.py")
    parser.add_argument("--weights", type=Path, help="initial weights")
    parser.add_argument("--seed", type=int, default=0, help="of folds, initial weights and order")
    parser.add_argument(
        "--folds", type=int, default=FOLDS, choices=range(1, FOLDS + 1), help="folds to measure"
    )
    parser.add_argument("--name", default="distillation", help="start of the names of the runs")
    parser.add_argument("--work", type=Path, default=Path("distillation"), help="folder to write")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each training")
    return cli.run(measure, parser.parse_args(argv))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train the missing runs, and return and print the figures."""
    folders = write_folds(options.data, options.work, options.seed)
    measured = range(1, options.folds + 1)
    slices = pd.concat([measure_fold(options, fold, folders[fold]) for fold in measured])
    figures = compare(slices)
    for name, row in figures.items():
        log.info("%-22s NLL %s, accuracy %s", name, *(format_mean(row[key]) for key in row))
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
    start = f"{options.name}-{options.data.name}-{options.seed}-{fold}"
    weights = [] if options.weights is None else ["--weights", str(options.weights)]
    common = ["--data", str(folder), *options.recipe.split(), *weights]
    common += ["--seed", str(options.seed), "--threads", str(options.threads)]
    teacher = f"{start}-teacher"
    train_run(f"{start}-single", common)
    train_run(teacher, [*common, "--folds", str(FOLDS), "--keep-test"])
    train_run(f"{start}-student", [*common, "--teacher", str(SESSION_DIR / teacher)])
    held_out = folder / HELD_OUT
    parts = [predict_slices(f"{start}-{kind}", kind, held_out, options.threads) for kind in RUNS]
    for part in parts[1:]:
        assert part.index.equals(parts[0].index)
        assert part["group"].equals(parts[0]["group"])
    return pd.concat([parts[0], *(part.drop(columns="group") for part in parts[1:])], axis=1)


def predict_slices(run: str, kind: str, folder: Path, threads: int) -> pd.DataFrame:
    """Return group, NLL and hit of a run on all slices of a folder, by path."""
    path = SESSION_DIR / run
    path = path if is_folds(path) else path / "best.pt"
    found = predict_run(path, "all", folder, device="auto", batch_size=64, threads=threads)
    own = found.calibrated.probs[np.arange(len(found.labels)), found.labels]
    hits = (found.calibrated.probs.argmax(axis=1) == found.labels).astype(float)
    name = RUNS[kind]
    return pd.DataFrame(
        {
            "group": found.rows["group"].to_numpy(),
            f"nll {name}": compute_nll(own),
            f"hit {name}": hits,
        },
        index=found.rows["path"].to_numpy(),
    )


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
    student, ensemble = (figures[f"{kind} minus single"] for kind in KINDS[1:])
    gains = {"NLL": ensemble["NLL"]["ci95"][1] < 0, "accuracy": ensemble["accuracy"]["ci95"][0] > 0}
    figures["share of the gap"] = {
        name: {"value": student[name]["value"] / ensemble[name]["value"] if is_better else None}
        for name, is_better in gains.items()
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
