"""Plant wrong labels, cross-validate on them, and measure how many the label review finds.

    python -m experiments.label_errors --data data --weights WEIGHTS.pth --json FILE
    python -m experiments.label_errors --data data/phantom --model net --epochs 8 --json FILE

Each condition trains on a copy of the prepared folder (hard links) in which a share of the slices,
or of the groups (all slices of a patient), lie in the folder of another class. Networks,
calibration and evaluation see the wrong labels only. The predictions of each condition and recipe
are kept in the folder given by --keep, and are not made again if they are there. Baselines: the
smallest probability of the given label alone, and a random order.
"""

import argparse
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

import args
from args import EvaluateConfig
from common.atomic_files import atomic_path
from evaluation.intervals import describe, estimate_ratio
from evaluation.label_review import IDS, find_cases
from evaluation.predictions import predict_run
from experiments import cli
from helper import derive_seed
from loading.pixel_cache import open_pixels
from preparation.manifest import load_manifest, write_manifest
from reporting.wording import format_estimate
from runs import cross_validation, lifecycle

SHARES = (0.03, 0.1)
UNITS = {"slices": "sha256", "patients": "group"}  # what is moved to another class at once
FIRST = (10, 20, 50)
SHUFFLES = 200
TRUE = "true_label"
PREDICT = {"device": "cpu", "batch_size": 64, "threads": 0}


class Condition(NamedTuple):
    """Share of the units with a wrong label, 0 for none, and the seed that chooses them."""

    unit: str
    share: float
    seed: int

    @property
    def name(self) -> str:
        """Name of the file with its predictions."""
        return f"{self.unit}-{self.share:g}-{self.seed}"


# ---- training on wrong labels


def plant_errors(table: pd.DataFrame, condition: Condition) -> pd.Series:
    """Return the labels after a share of the units got another one; each class is as likely.

    Args:
        table: The manifest.
        condition: Unit, share and seed. A slice is a file; its copies keep their label.
    """
    rng = np.random.default_rng(derive_seed(condition.seed, "label errors", condition.unit))
    labels, keys = table["label"].copy(), table[UNITS[condition.unit]]
    units, classes = np.sort(keys.unique()), sorted(labels.unique())
    for unit in rng.choice(units, round(condition.share * len(units)), replace=False):
        rows = keys == unit
        labels[rows] = rng.choice([name for name in classes if name not in set(labels[rows])])
    return labels


def copy_mislabelled(data_dir: Path, labels: pd.Series, target: Path) -> pd.Series:
    """Copy a prepared folder by hard links, and move files to the folder of their new label.

    Args:
        data_dir: The folder to copy.
        labels: New label of each row of its manifest.
        target: Folder to create.

    Returns:
        The true label by path in the new folder.
    """
    shutil.copytree(data_dir, target, copy_function=_link)
    table = load_manifest(data_dir)
    is_moved = labels != table["label"]
    names = table["label"] + "-" + table["path"].str.rsplit("/", n=1).str[1]
    paths = table["path"].mask(is_moved, "Images/" + labels + "/moved-" + names)
    for old, new in zip(table["path"][is_moved], paths[is_moved], strict=True):
        (target / old).rename(target / new)
    changed = table.assign(label=labels, path=paths).sort_values("path")
    write_manifest(changed, target)  # replaces the link: the original does not change
    return table["label"].set_axis(paths)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def train(options: argparse.Namespace, condition: Condition) -> pd.DataFrame:
    """Cross-validate on wrong labels, or read the predictions of an earlier call.

    Returns:
        One row for each image, predicted by the network that was not trained on its group: path,
        ids, `label` (as trained), TRUE and the calibrated probabilities p_0, p_1, ...
    """
    recipe = (options.image_size, options.epochs, options.batch_size, options.folds)
    name = "-".join(map(str, (options.data.name, options.model, *recipe, condition.name)))
    kept = options.keep / f"{name}.csv"
    if kept.is_file():
        return pd.read_csv(kept, dtype={"patient": str}, keep_default_na=False)
    table = load_manifest(options.data)
    open_pixels(table, options.data, options.image_size)  # decoded once; the copies link the cache
    labels = plant_errors(table, condition)
    options.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.keep) as folder:
        data_dir, run_dir = Path(folder) / "data", Path(folder) / condition.name
        true_labels = copy_mislabelled(options.data, labels, data_dir)
        config = args.parse_train(
            [
                *("--data", str(data_dir), "--model", options.model, "--patience", "0"),
                *(("--weights", str(options.weights)) if options.weights else ()),
                *("--image-size", str(options.image_size), "--epochs", str(options.epochs)),
                *("--batch-size", str(options.batch_size), "--threads", str(options.threads)),
                *("--folds", str(options.folds), "--split-seed", str(condition.seed)),
                *(
                    "--seed",
                    str(condition.seed),
                ),
            ]
        )
        assert isinstance(config, args.TrainConfig)
        lifecycle.check_model(config)
        cross_validation.start_folds(config, run_dir, torch.device("cpu"))
        found = predict_run(run_dir, EvaluateConfig.split, None, **PREDICT)
    probs = {f"p_{index}": column for index, column in enumerate(found.calibrated.probs.T)}
    rows = found.rows[[*IDS, "label"]].assign(**probs)
    rows[TRUE] = true_labels[rows["path"]].to_numpy()
    with atomic_path(kept) as temporary:
        rows.to_csv(temporary, index=False, lineterminator="\n")
    return rows


# ---- how many are found


def order_cases(rows: pd.DataFrame) -> dict[str, list[NDArray[np.intp]]]:
    """Order the groups by every method; a group is shown by its row of highest score.

    Returns:
        For each method one or more orders of row numbers, one row for each group. `review` lists
        only the cases of the label review; all others list every group.
    """
    names = sorted(rows["label"].unique())
    probs = rows[_list_columns(rows)].to_numpy()
    labels = np.searchsorted(names, rows["label"])
    own = probs[np.arange(len(rows)), labels]
    others = probs.copy()
    others[np.arange(len(rows)), labels] = -1
    cases = find_cases(rows, probs, labels, names)
    mean_own = pd.Series(own).groupby(rows["group"].to_numpy()).transform("mean").to_numpy()
    rng = np.random.default_rng(0)
    scores = {
        "margin_without_thresholds": [others.max(axis=1) - own],
        "lowest_probability": [-own],
        "lowest_mean_of_group": [-mean_own - 1e-6 * own],
        "random": list(rng.random((SHUFFLES, len(rows)))),
    }
    row_of = pd.Series(np.arange(len(rows)), index=rows["path"])
    orders = {"review": [row_of[cases["path"]].to_numpy()]}
    groups = rows["group"].to_numpy()
    for name, several in scores.items():
        sorted_rows = [np.argsort(-score, kind="stable") for score in several]
        orders[name] = [rank[~pd.Series(groups[rank]).duplicated()] for rank in sorted_rows]
    return orders


def score_order(hits: NDArray[np.bool_], n_planted: int) -> dict[str, float]:
    """Compute precision at FIRST and at the number planted, recall and average precision.

    Args:
        hits: Whether each listed case holds a planted error, the first case first.
        n_planted: Number of groups that hold one, listed or not.

    Returns:
        `precision_at_N` (of the cases listed, if there are fewer), `precision_at_planted`,
        `recall_at_planted`, `recall` of the whole list, `average_precision` (a group that is not
        listed counts with precision 0), and `n_listed`.
    """
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    found = {f"precision_at_{count}": float(hits[:count].mean()) for count in FIRST}
    return {
        **found,
        "precision_at_planted": float(hits[:n_planted].mean()),
        "recall_at_planted": float(hits[:n_planted].sum() / n_planted),
        "recall": float(hits.sum() / n_planted),
        "average_precision": float(precision[hits].sum() / n_planted),
        "n_listed": len(hits),
    }


def find_planted(rows: pd.DataFrame) -> tuple[NDArray[np.bool_], int]:
    """Return which rows show a slice with a planted error, and the number of groups with one.

    All copies of such a slice count: a reader sees them together.
    """
    is_wrong = (rows["label"] != rows[TRUE]).to_numpy()
    sets = rows["duplicate_set"].to_numpy()
    return np.isin(sets, sets[is_wrong]), int(rows["group"][is_wrong].nunique())


def measure_condition(rows: pd.DataFrame) -> dict[str, Any]:
    """Count images, groups, planted errors and cases, and compute both accuracies."""
    n_labels = rows.groupby("duplicate_set")["label"].transform("nunique")
    names = np.array(sorted(rows["label"].unique()))
    predicted = names[rows[_list_columns(rows)].to_numpy().argmax(axis=1)]
    return {
        "n_images": len(rows),
        "n_groups": int(rows["group"].nunique()),
        "n_wrong_images": int((rows["label"] != rows[TRUE]).sum()),
        "n_wrong_groups": find_planted(rows)[1],
        "n_groups_with_conflict": int(rows["group"][n_labels > 1].nunique()),
        "n_cases": len(order_cases(rows)["review"][0]),
        "accuracy_by_true_labels": float((predicted == rows[TRUE]).mean()),
        "accuracy_by_given_labels": float((predicted == rows["label"]).mean()),
    }


def pool(conditions: Sequence[pd.DataFrame]) -> dict[str, Any]:
    """Score every method on several seeds of one unit and share.

    Returns:
        For each method the `mean` of `score_order`, the average precision of each seed and, except
        for `random` (a mean over SHUFFLES orders), the precision among the first cases of all
        seeds together, with its interval by group.
    """
    planted = [find_planted(rows) for rows in conditions]
    orders = [order_cases(rows) for rows in conditions]
    pooled: dict[str, Any] = {}
    for name in orders[0]:
        scores = [
            pd.DataFrame([score_order(is_planted[order], n_planted) for order in found[name]])
            for found, (is_planted, n_planted) in zip(orders, planted, strict=True)
        ]
        average_precisions = [float(score["average_precision"].mean()) for score in scores]
        pooled[name] = {
            "mean": pd.concat(scores).mean().to_dict(),
            "average_precision_of_seed": average_precisions,
        }
        if name == "random":
            continue
        for key in (*FIRST, "planted"):
            hits, groups = [], []
            for rows, found, (is_planted, n_planted) in zip(
                conditions, orders, planted, strict=True
            ):
                first = found[name][0][: n_planted if isinstance(key, str) else key]
                hits.append(is_planted[first])
                groups.append(rows["group"].to_numpy()[first])
            estimate = estimate_ratio(np.concatenate(hits))
            pooled[name][f"precision_at_{key}"] = describe(estimate, np.concatenate(groups))
    return pooled


def _list_columns(rows: pd.DataFrame) -> list[str]:
    """Return the names of the columns of probabilities, in the order of the classes."""
    return [f"p_{index}" for index in range(rows["label"].nunique())]


def print_table(figures: dict[str, Any]) -> None:
    """Print accuracies and number of cases of each condition, then one row for each method."""
    for name, found in figures["conditions"].items():
        print(
            f"{name}: accuracy {found['accuracy_by_true_labels']:.4f} by the true labels, "
            f"{found['accuracy_by_given_labels']:.4f} by the given ones; "
            f"{found['n_wrong_images']} wrong images of {found['n_wrong_groups']} groups; "
            f"{found['n_cases']} cases of {found['n_groups']} groups"
        )
    keys = [f"precision_at_{key}" for key in (*FIRST, "planted")]
    print(f"| planted | method | {' | '.join(keys)} | recall | average precision |")
    print(f"|{'---|' * (len(keys) + 4)}")
    for name, methods in figures["pooled"].items():
        for method, found in methods.items():
            means = found["mean"]
            cells = [format_estimate(found[key]) if key in found else means[key] for key in keys]
            cells += [means["recall"], means["average_precision"]]
            texts = [cell if isinstance(cell, str) else f"{cell:.3f}" for cell in cells]
            print(f"| {name} | {method} | {' | '.join(texts)} |")


# ---- command line


def list_conditions(seeds: Sequence[int]) -> list[Condition]:
    """List the data as it is, and every share of both units with every seed, seed by seed."""
    planted = itertools.product(seeds, SHARES, UNITS)
    return [
        Condition("slices", 0.0, seeds[0]),
        *(Condition(unit, share, seed) for seed, share, unit in planted),
    ]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train the missing conditions, score every method and print the table."""
    conditions = {each: train(options, each) for each in list_conditions(options.seeds)}
    figures: dict[str, Any] = {
        "data": options.data.name,
        "model": options.model,
        "image_size": options.image_size,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "folds": options.folds,
        "seeds": options.seeds,
        "conditions": {each.name: measure_condition(rows) for each, rows in conditions.items()},
        "pooled": {},
    }
    for unit, share in itertools.product(UNITS, SHARES):
        rows = [conditions[Condition(unit, share, seed)] for seed in options.seeds]
        figures["pooled"][f"{unit}-{share:g}"] = pool(rows)
    print_table(figures)
    return figures


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = cli.build_parser("label_errors", __doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="a prepared folder")
    parser.add_argument("--keep", type=Path, default=Path("results/label_errors"))
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--weights", type=Path, help="ImageNet weights")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each training")
    return cli.run(measure, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
