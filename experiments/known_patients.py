"""Compare the accuracy under ever stricter splits, up to whole patients.

    python -m experiments.known_patients data --weights WEIGHTS.pth --json FILE

DATA is a prepared folder in which the patients are known. Every slice is predicted once per seed by
the network of the fold that tests it; the folds are drawn from

    image      single files (byte-identical files stay together)
    duplicate  duplicate sets: files of the same slice
    strong     files with strong links: of one slice or of neighbouring slices
    picture    groups found in pictures, as prepare.py forms them without known patients
    patient    patients

The same recipe, slices and seeds are used for all, so the accuracies are compared slice by slice,
with patients as the unit of the intervals. `--random-labels` gives every patient a random class:
whatever exceeds the majority class then comes from recognising patients, not from their disease.
Finished runs (session/NAME, results/NAME) are reused, stopped ones are resumed.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from duplicates.clustering import DUPLICATE_SCORE, STRONG_SCORE, connect
from duplicates.finder import Duplicates
from duplicates.result_file import load_duplicates
from evaluation.comparison import compare_paired
from evaluation.intervals import describe, estimate_ratio
from evaluation.patients import aggregate_by_patient
from experiments import cli
from experiments.fold_runs import FOLDS, is_finished, train_folds
from helper import UserError
from preparation.manifest import link_groups, load_manifest, name_sets, write_manifest
from preparation.splits import split_groups

SPLITS = ("image", "duplicate", "strong", "picture", "patient")
RECIPES = {
    "mobilenet_v2": ("--image-size", "96", "--epochs", "5", "--patience", "0"),
    "net": ("--image-size", "96", "--epochs", "20", "--patience", "0"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = cli.build_parser("known_patients", __doc__)
    parser.add_argument("data", type=Path, help="prepared folder with known patients")
    parser.add_argument("--weights", type=Path, help="ImageNet weights of mobilenet_v2")
    parser.add_argument("--models", nargs="+", default=["mobilenet_v2"], choices=RECIPES)
    parser.add_argument(
        "--splits", nargs="+", default=["image", "picture", "patient"], choices=SPLITS
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--random-labels", action="store_true", help="a random class per patient")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each training")
    options = parser.parse_args(argv)
    if "mobilenet_v2" in options.models and options.weights is None:
        parser.error("--weights is missing: mobilenet_v2 starts from ImageNet weights")
    return cli.run(measure, options)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train the missing runs and compare the splits of each model."""
    slices = load_patients(options.data)
    if options.random_labels:
        slices = draw_labels(slices)
    figures: dict[str, Any] = {
        "data": options.data.name,
        "random_labels": options.random_labels,
        "folds": FOLDS,
        "seeds": options.seeds,
        "n_images": len(slices),
        "n_slices": int(slices["duplicate_set"].nunique()),
        "n_patients": int(slices["patient"].nunique()),
        "n_groups": int(slices["group"].nunique()),
        "models": {},
    }
    for model in options.models:
        hits: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
        rows: dict[str, Any] = {}
        for split in options.splits:
            runs = [train(options, slices, split, model, seed) for seed in options.seeds]
            hits[split] = {
                unit: np.mean([score(run, slices)[unit] for run in runs], axis=0)
                for unit in ("slice", "patient")
            }
            rows[split] = describe_split(runs, slices, hits[split])
            print_row(model, split, rows[split])
        figures["models"][model] = {
            "recipe": " ".join(RECIPES[model]),
            "splits": rows,
            "differences": compare_splits(hits, slices),
        }
    return figures


def load_patients(data_dir: Path) -> pd.DataFrame:
    """Load the readable slices of a folder in which every patient is known.

    Raises:
        UserError: The patient of a slice is unknown.
    """
    frame = load_manifest(data_dir)
    frame = frame[frame["width"] > 0].reset_index(drop=True)
    if n_unknown := int((frame["patient"] == "").sum()):
        raise UserError(
            f"{data_dir}: the patients of {n_unknown} of {len(frame)} slices are unknown; prepare "
            "it with --patients FILE"
        )
    return frame.assign(source=[str(data_dir / path) for path in frame["path"]])


def draw_labels(slices: pd.DataFrame) -> pd.DataFrame:
    """Permute the classes among the groups of patients; paths follow their class."""
    groups = slices.drop_duplicates("group").sort_values("group")
    labels = np.random.default_rng(0).permutation(groups["label"])
    label = slices["group"].map(dict(zip(groups["group"], labels, strict=True)))
    names = slices["path"].str.removeprefix("Images/").str.replace("/", "_")
    return slices.assign(label=label, path="Images/" + label + "/" + names)


# ---- runs


def train(
    options: argparse.Namespace, slices: pd.DataFrame, split: str, model: str, seed: int
) -> Path:
    """Train one cross-validation unless it is finished; return its folder of results."""
    kind = "-random" if options.random_labels else ""
    name = f"{options.data.name}{kind}-{split}-{model}-{seed}"
    grouping = "patient" if split == "image" else split
    folder = options.data.with_name(f"{options.data.name}{kind}-{grouping}")
    if not is_finished(name):
        write_folder(folder, regroup(options.data, slices, grouping), options.data)
    weights = ["--weights", str(options.weights)] if model != "net" else []
    split_options = ["--split-by", "image" if split == "image" else "group"]
    seeds = ["--split-seed", str(seed), "--seed", str(seed), "--threads", str(options.threads)]
    command = ["--model", model, *RECIPES[model], *weights, *split_options, *seeds]
    return train_folds(name, folder, command)


def regroup(data_dir: Path, slices: pd.DataFrame, grouping: str) -> pd.DataFrame:
    """Return the slices with the groups of a split by `grouping`.

    Raises:
        UserError: The duplicate search of the folder is missing or of another version.
    """
    if grouping == "patient":
        return slices
    found = load_duplicates(data_dir / "cache" / "duplicates.npz")
    if found is None:
        raise UserError(f"{data_dir}: its duplicate search is missing; run prepare.py on it again")
    members = cluster(found, grouping)
    related = [str(members[digest]) for digest in slices["sha256"]]
    groups = name_sets("g", link_groups(slices["sha256"], related), slices["sha256"])
    splits = split_groups(slices["label"].to_numpy(), np.array(groups), 0)
    return slices.assign(group=groups, split=splits)


def cluster(found: Duplicates, grouping: str) -> dict[str, int]:
    """Return the group of each digest by links alone."""
    if grouping == "picture":
        return found.cluster()[1]
    links = found.links()
    least = {"duplicate": DUPLICATE_SCORE, "strong": STRONG_SCORE}[grouping]
    groups = connect(links.pairs[links.scores >= least, :2], len(found.digests))
    return dict(zip(found.digests, groups.tolist(), strict=True))


def write_folder(folder: Path, frame: pd.DataFrame, data_dir: Path) -> None:
    """Write a prepared folder with these rows, unless it exists; images are linked, not copied."""
    if (folder / "CSV" / "images.csv").exists():
        return
    for path, source in zip(frame["path"], frame["source"], strict=True):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            try:
                os.link(source, target)
            except OSError:  # another file system
                shutil.copyfile(source, target)
    (folder / "CSV").mkdir(exist_ok=True)
    shutil.copyfile(data_dir / "CSV" / "audit.json", folder / "CSV" / "audit.json")
    write_manifest(frame.drop(columns="source"), folder)


# ---- figures


def score(results_dir: Path, slices: pd.DataFrame) -> dict[str, npt.NDArray[np.float64]]:
    """Return whether each slice, and each patient by the mean of its slices, is right: [N], [P].

    Patients are in the order of `list_patient_groups`.
    """
    table = pd.read_csv(results_dir / "predictions.csv").set_index("path").loc[slices["path"]]
    columns = [name for name in table if name.startswith("p_")]
    classes = [name.removeprefix("p_") for name in columns]
    labels = np.array([classes.index(label) for label in slices["label"]])
    probs = table[columns].to_numpy()
    patients, groups = (slices[name].to_numpy(dtype=str) for name in ("patient", "group"))
    return {
        "slice": (probs.argmax(axis=1) == labels).astype(float),
        "patient": aggregate_by_patient(probs, labels, patients, groups).correct.astype(float),
    }


def list_patient_groups(slices: pd.DataFrame) -> npt.NDArray[np.str_]:
    """Return the group of each patient and class, sorted by both, [P]."""
    return slices.groupby(["patient", "label"])["group"].first().to_numpy(dtype=str)


def describe_split(
    runs: list[Path], slices: pd.DataFrame, hits: dict[str, npt.NDArray[np.float64]]
) -> dict[str, Any]:
    """Return the accuracies of one split over the seeds, with intervals by patient."""
    groups = slices["group"].to_numpy()
    by_seed = [float(score(run, slices)["slice"].mean()) for run in runs]
    reports = [json.loads((run / "metrics.json").read_text("utf-8")) for run in runs]
    baselines = pd.DataFrame([report["baselines"] for report in reports])
    return {
        "accuracy": describe(estimate_ratio(hits["slice"]), groups),
        "accuracy_per_patient": describe(
            estimate_ratio(hits["patient"]), list_patient_groups(slices)
        ),
        "accuracy_by_seed": by_seed,
        "seed_deviation": float(np.std(by_seed, ddof=1)) if len(runs) > 1 else None,
        "baselines": baselines.mean().to_dict(),
        "patients_with_errors": int((hits["patient"] < 1).sum()),
    }


def compare_splits(
    hits: dict[str, dict[str, npt.NDArray[np.float64]]], slices: pd.DataFrame
) -> dict[str, Any]:
    """Return the paired difference of each split from the strictest one, by patient."""
    names, groups = list(hits), slices["group"].to_numpy()
    sets, patient_groups = slices["duplicate_set"].to_numpy(), list_patient_groups(slices)
    strictest = hits[names[-1]]
    differences: dict[str, Any] = {}
    for name in names[:-1]:
        own = hits[name]
        differences[f"{name} minus {names[-1]}"] = {
            "slice": compare_paired(own["slice"], strictest["slice"], sets, groups),
            "patient": compare_paired(
                own["patient"], strictest["patient"], patient_groups, patient_groups
            ),
        }
    return differences


def print_row(model: str, split: str, row: dict[str, Any]) -> None:
    """Print the accuracies of one split as a line of a Markdown table."""
    cells = [
        "{value:.4f} [{ci95[0]:.4f}, {ci95[1]:.4f}]".format(**row[key])
        for key in ("accuracy", "accuracy_per_patient")
    ]
    baselines = [f"{row['baselines'][name]:.3f}" for name in ("majority", "brightness")]
    print(f"| {model} | {split} | {' | '.join(cells + baselines)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
