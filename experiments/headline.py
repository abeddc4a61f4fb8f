"""Measure one recipe by patient: five folds, several seeds, their ensemble, and other data.

    python -m experiments.headline DATA [DATA] --recipe "--model mobilenet_v2 --image-size 96" \\
      --weights WEIGHTS.pth --json FILE

Each DATA is a prepared folder with known patients. For each seed (of split, initial weights and
order) the recipe is trained with --folds 5, so every slice is predicted once by a network that was
trained on no slice of its patient. The ensemble averages the seeds for every slice. The same recipe
with --split-by image shows what a random split would report.

With two folders, each slice of one is also predicted by the networks of the other that were not
trained on its patient: one of each seed if that set has the patient too, otherwise all. Classes are
matched by name, or by --class-map as in evaluate.py.

Finished runs (session/NAME, results/NAME) are reused, stopped ones are resumed.
"""

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

import evaluate
from common.run_paths import RESULTS_DIR, SESSION_DIR
from evaluation.calibration import compute_calibration
from evaluation.ensembles import Predictions
from evaluation.metrics import compute_metrics
from evaluation.patients import compute_patient_metrics
from evaluation.predictions import predict_checkpoint
from experiments import cli
from experiments.fold_runs import FOLDS, is_finished, train_folds
from experiments.known_patients import load_patients
from preparation.splits import HELD_OUT
from reporting.run_metrics import get_ids

# column of the table: keys of metrics.json
COLUMNS = {
    "per slice": ("accuracy",),
    "per duplicate set": ("accuracy_per_slice",),
    "per patient": ("accuracy_per_patient",),
    "macro-F1": ("f1_macro",),
    "AUC": ("roc_auc_macro",),
    "NLL": ("nll",),
    "ECE": ("calibration", "ece_debiased"),
    "AUGRC": ("augrc",),
    "set size": ("set_size",),
}
SMALLEST_PROB = 5e-7  # predictions.csv has six digits


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = cli.build_parser("headline", __doc__)
    parser.add_argument("data", type=Path, nargs="+", help="prepared folders with known patients")
    parser.add_argument("--recipe", required=True, metavar="OPTIONS", help="options of main.py")
    parser.add_argument("--weights", type=Path, help="initial weights")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--random-seeds", type=int, nargs="*", default=[0], help="seeds of the random split"
    )
    parser.add_argument("--class-map", nargs="*", default=[], metavar="OLD=NEW")
    parser.add_argument("--name", default="headline", help="start of the names of the runs")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each training")
    return cli.run(measure, parser.parse_args(argv))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train the missing runs, and return and print the tables."""
    for data_dir in options.data:
        load_patients(data_dir)  # fails before anything is trained
    runs = {
        data_dir: [train(options, data_dir, "group", seed) for seed in options.seeds]
        for data_dir in options.data
    }
    own = {data_dir.name: describe_own(options, data_dir, runs[data_dir]) for data_dir in runs}
    other = {
        f"{trained.name} on {tested.name}": score_other(options, trained, runs[trained], tested)
        for trained, tested in itertools.permutations(options.data, 2)
    }
    print_tables({**own, **other})
    return {
        **{"recipe": options.recipe, "folds": FOLDS, "seeds": options.seeds},
        **{"own": own, "other": other},
    }


def train(options: argparse.Namespace, data_dir: Path, split_by: str, seed: int) -> str:
    """Train one cross-validation unless it is finished, and return its name."""
    kind = "" if split_by == "group" else "-random"
    name = f"{options.name}-{data_dir.name}{kind}-{seed}"
    weights = [] if options.weights is None else ["--weights", str(options.weights)]
    train_folds(
        name,
        data_dir,
        [
            *options.recipe.split(),
            *weights,
            *("--split-by", split_by, "--split-seed", str(seed), "--seed", str(seed)),
            *("--threads", str(options.threads)),
        ],
    )
    return name


def describe_own(
    options: argparse.Namespace, data_dir: Path, names: Sequence[str]
) -> dict[str, Any]:
    """Return the figures of each seed, of the ensemble and of random splits on the own slices."""
    rows = {
        f"seed {seed}": read_report(name) for seed, name in zip(options.seeds, names, strict=True)
    }
    if len(names) > 1:
        rows["ensemble"] = read_report(evaluate_ensemble(options, data_dir, names))
    for seed in options.random_seeds:
        rows[f"random images, seed {seed}"] = read_report(train(options, data_dir, "image", seed))
    return rows


def evaluate_ensemble(options: argparse.Namespace, data_dir: Path, names: Sequence[str]) -> str:
    """Evaluate the mean of several cross-validations, and return the name of its results."""
    name = f"{options.name}-{data_dir.name}-ensemble"
    command = [*(str(SESSION_DIR / each) for each in names), "--name", name]
    if not is_finished(name) and evaluate.main(command) != 0:
        raise SystemExit(1)
    return name


def read_report(name: str) -> dict[str, Any]:
    """Return the figures of one run that the table shows, and how long its training took."""
    report = json.loads((RESULTS_DIR / name / "metrics.json").read_text("utf-8"))
    histories = [pd.read_csv(path) for path in (SESSION_DIR / name).glob("fold_*/history.csv")]
    training_s = sum(float(history["time_s"].sum()) for history in histories)
    predictions = RESULTS_DIR / name / "predictions.csv"
    report |= describe_means(pd.read_csv(predictions, dtype=str, keep_default_na=False))
    return {**choose_figures(report), "training_s": training_s or None, "results": name}


def describe_means(slices: pd.DataFrame) -> dict[str, Any]:
    """Return NLL and size of the prediction sets, with intervals, from predictions.csv as text."""
    probs = np.array([float(row[f"p_{row['label']}"]) for _, row in slices.iterrows()])
    figures = {"nll": describe_mean(compute_nll(probs), slices["group"])}
    if (slices["needs_review"] != "").any():  # else no sets were fitted
        texts = slices["prediction_set"]
        sizes = texts.str.count(r"\|") + (texts != "")
        figures["set_size"] = describe_mean(sizes.to_numpy(float), slices["group"])
    return figures


def compute_nll(probs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the negative log-likelihood [N] of probabilities [N] of the labels."""
    return -np.log(probs.clip(SMALLEST_PROB))


def describe_mean(
    values: NDArray[np.float64], groups: Iterable[Any], lowest: float = 0.0
) -> dict[str, Any]:
    """Return the mean of values [N], at least `lowest`, and its 95 % interval by groups [N].

    Source: Liang and Zeger 1986, Longitudinal data analysis using generalized linear models, for
    the variance of a sum over groups.
    """
    value = float(values.mean())
    sums = pd.Series(values - value).groupby(list(groups)).sum()
    error = math.sqrt(len(sums) / (len(sums) - 1) * float((sums**2).sum())) / len(values)
    half = float(stats.t.ppf(0.975, len(sums) - 1)) * error
    return {"value": value, "ci95": [max(lowest, value - half), value + half]}


def choose_figures(report: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a report that the table shows."""
    counts = ("n_images", "n_slices", "n_groups", "n_patients", "baselines")
    row = {column: pick(report, keys) for column, keys in COLUMNS.items()}
    return {**row, **{key: report[key] for key in counts}}


def pick(report: dict[str, Any], keys: Sequence[str]) -> Any:
    """Return a value of a nested dict; None where a key is missing or its parent is null."""
    value: Any = report
    for key in keys:
        value = (value or {}).get(key)
    return value


# ---- other data


def score_other(
    options: argparse.Namespace, trained: Path, names: Sequence[str], tested: Path
) -> dict[str, Any]:
    """Score the networks of one set on the slices of another, patients in training removed.

    Returns:
        The figures of each seed and of the ensemble, as `describe_own`.
    """
    class_map = orient_pairs(options.class_map, load_patients(tested)["label"])
    members = [average_unseen(trained, name, tested, class_map, options) for name in names]
    probs = {f"seed {seed}": each for seed, (each, _) in zip(options.seeds, members, strict=True)}
    if len(members) > 1:
        probs["ensemble"] = np.mean(list(probs.values()), axis=0)
    _, predicted = members[0]
    patient, duplicate_set, group = get_ids(predicted)
    labels, classes = predicted.labels, predicted.classes
    rows = {}
    for name, each in probs.items():
        report = compute_metrics(each, labels, duplicate_set, group, classes)
        report |= compute_patient_metrics(each, labels, patient, group, classes)
        report["calibration"] = compute_calibration(each, labels, group)
        report["nll"] = describe_mean(compute_nll(each[np.arange(len(labels)), labels]), group)
        rows[name] = choose_figures({**report, "baselines": predicted.baselines})
    return rows


def average_unseen(
    trained: Path, name: str, tested: Path, class_map: list[str], options: argparse.Namespace
) -> tuple[NDArray[np.float64], Predictions]:
    """Predict slices by those networks of a run that were not trained on their patient.

    Returns:
        Mean probabilities [N, K], and the predictions of the first network: slices and baselines.
    """
    parts = [
        predict_checkpoint(
            *(SESSION_DIR / name / f"fold_{fold}" / "best.pt", "all", tested),
            device="auto",
            batch_size=64,
            threads=options.threads,
            class_map=class_map,
        )
        for fold in range(1, FOLDS + 1)
    ]
    fold_of = find_folds(load_patients(trained), SESSION_DIR / name / "split.csv")
    folds = parts[0].rows["patient"].map(fold_of).fillna(0).to_numpy(dtype=int)
    may_use = (folds == 0) | (folds == np.arange(1, FOLDS + 1)[:, None])  # [FOLDS, N]
    weights = may_use / may_use.sum(axis=0)
    probs = np.stack([part.calibrated.probs for part in parts])  # [FOLDS, N, K]
    return np.einsum("fn,fnk->nk", weights, probs), parts[0]


def find_folds(slices: pd.DataFrame, split_file: Path) -> dict[str, int]:
    """Return the fold, from 1, that tests each patient of a cross-validation."""
    splits = pd.read_csv(split_file, dtype=str).drop_duplicates("sha256").set_index("sha256")
    is_tested = splits[[f"fold_{fold}" for fold in range(1, FOLDS + 1)]] == HELD_OUT
    folds = slices["sha256"].map(is_tested.to_numpy().argmax(axis=1) + pd.Series(1, splits.index))
    return dict(zip(slices["patient"], folds, strict=True))


def orient_pairs(pairs: Sequence[str], labels: Iterable[str]) -> list[str]:
    """Return OLD=NEW with a label of the tested folder as OLD, whichever side it is given on."""
    known, turned = set(labels), []
    for pair in pairs:
        old, _, new = pair.partition("=")
        turned.append(pair if old in known else f"{new}={old}")
    return turned


# ---- tables


def print_tables(tables: dict[str, dict[str, Any]]) -> None:
    """Print the figures of each set of slices as a Markdown table."""
    for title, rows in tables.items():
        first = next(iter(rows.values()))
        n_images, n_patients = first["n_images"], first["n_patients"]
        print(f"\n| {title}: {n_images} slices, {n_patients} patients | {' | '.join(COLUMNS)} |")
        print(f"|{'---|' * (len(COLUMNS) + 1)}")
        for name, row in rows.items():
            print(f"| {name} | {' | '.join(format_cell(row[column]) for column in COLUMNS)} |")
        for name, value in first["baselines"].items():
            print(f"| {name} baseline | {value:.3f} |{' |' * (len(COLUMNS) - 1)}")


def format_cell(value: Any) -> str:
    """Return a number, with its interval if it has one."""
    if isinstance(value, dict):
        if value["value"] is None or value["ci95"] is None:
            return format_cell(value["value"])
        return "{value:.4f} [{ci95[0]:.3f}, {ci95[1]:.3f}]".format(**value)
    return "" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(main())
