"""Measure the modes of --intensity: accuracy, brightness baseline, stress, transfer between sets.

    python -m experiments.intensity DATA OTHER --weights WEIGHTS.pth --json FILE

DATA and OTHER are two prepared folders with known patients, such as the Bangladesh set and that of
Cheng et al., which share patients. Patients are divided into folds once for both. The network of a
fold is trained on the other folds' patients of one set, and evaluated on this fold's patients of
both. Finished networks are kept in --state, so that a stopped measurement continues.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

import args
import dataset
import model
from common.atomic_files import atomic_path
from evaluation import baselines, corruptions, intervals
from evaluation.comparison import compare_paired
from experiments import cli
from helper import UserError, log
from imaging.brightness import compute_brightness_statistics
from imaging.grayscale import Pixels
from modeling.forward import predict_logits, to_unit_range
from preparation.splits import split_folds
from runs import lifecycle

MODEL = "mobilenet_v2"
SEED = 0
BATCH_SIZE = 64
ZSCORES = 8.0  # width of the z-scores that are shown as 0 to 255
CLASS_NAMES = {"menin": "meningioma", "tumor": "pituitary"}  # of the Bangladesh set
TEST = args.EvaluateConfig.split
Labels = NDArray[np.int64]


class SliceSet(NamedTuple):
    """One prepared folder: its manifest with common class names, and its decoded slices."""

    data_dir: Path
    table: pd.DataFrame
    pixels: Pixels  # [N, S, S]
    labels: Labels  # [N]

    @property
    def patients(self) -> NDArray[Any]:
        """Patient of each slice, [N]."""
        return self.table["patient"].to_numpy()


def load_set(data_dir: Path, image_size: int) -> SliceSet:
    """Load all slices of a prepared folder.

    Raises:
        UserError: A patient is unknown, or as `dataset.load_table`.
    """
    table = dataset.load_table(data_dir)
    if (table["patient"] == "").any():
        raise UserError(f"{data_dir}: patients are unknown; run prepare.py with --patients")
    names = table["label"].str.lower()
    table["label"] = names.map(CLASS_NAMES).fillna(names)
    classes = dataset.list_classes(table)
    slices = dataset.take_slices(table, "all", data_dir, classes, image_size)
    return SliceSet(data_dir, table, slices.pixels.squeeze(1).numpy(), slices.labels.numpy())


def divide(sets: list[SliceSet], n_folds: int) -> list[list[NDArray[np.str_]]]:
    """Return for each fold and set the split of each slice; a patient has one in both sets."""
    both = pd.concat([each.table for each in sets])
    folds = split_folds(both["label"].to_numpy(), both["patient"].to_numpy(), n_folds, SEED)
    ends = np.cumsum([len(each.table) for each in sets])[:-1]
    return [np.split(splits, ends) for splits in folds]


def train(mode: str, own: SliceSet, splits: NDArray[np.str_], options: Any) -> model.Classifier:
    """Train one network and return its EMA weights after the last epoch."""
    command = ["--model", MODEL, "--weights", str(options.weights), "--intensity", mode]
    command += ["--image-size", str(options.image_size), "--epochs", str(options.epochs)]
    command += ["--patience", "0", "--threads", str(options.threads), "--seed", str(SEED)]
    command += ["--device", "cpu", "--data", str(own.data_dir)]
    config = args.parse_train(command)
    assert isinstance(config, args.TrainConfig)
    table, device = own.table.assign(split=splits), torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        trainer = lifecycle.build_new_trainer(config, table, Path(folder), mode, device)
        trainer.fit()
    return trainer.ema


def predict(network: model.Classifier, pixels: Pixels) -> Labels:
    """Predict class indices [N] of slices [N, S, S]."""
    batches = iter(torch.from_numpy(pixels).unsqueeze(1).split(BATCH_SIZE))
    return predict_logits(network, batches)[0].argmax(dim=1).numpy()


def change(pixels: Pixels) -> dict[str, Pixels]:
    """Return slices with other gamma, contrast and gain, by description."""
    changed = {
        corruptions.describe(name, strength): corruptions.corrupt(pixels, name, strength)
        for name in ("gamma", "contrast")
        for strength in (1, 3, 5)
    }
    return changed | {
        f"gain {gain:.0%}": np.rint(pixels * gain).astype(np.uint8) for gain in (0.7, 0.4)
    }


def run_fold(
    path: Path, mode: str, sets: list[SliceSet], splits: list[NDArray[np.str_]], options: Any
) -> dict[str, Labels]:
    """Return the predictions for a fold by what was predicted, from the file if it exists.

    Args:
        path: File of this network.
        mode: Value of --intensity.
        sets: The set to train on, then the other one.
        splits: Of their slices.
        options: Of the command line.
    """
    if path.exists():
        with np.load(path) as saved:
            return dict(saved)
    log.info("%s", path.stem)
    network = train(mode, sets[0], splits[0], options)
    own, other = (each.pixels[split == TEST] for each, split in zip(sets, splits, strict=True))
    found = {"own": predict(network, own), "other": predict(network, other)}
    found |= {what: predict(network, changed) for what, changed in change(own).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **found)  # type: ignore[arg-type]
    return found


def measure_brightness(mode: str, own: SliceSet) -> dict[str, float] | None:
    """Compute the accuracy of brightness alone after normalisation, in folds over patients."""
    preprocess = model.Preprocess(own.pixels.shape[-1], 0.0, 1.0, mode)
    shown = []
    for pixels in torch.from_numpy(own.pixels).unsqueeze(1).split(BATCH_SIZE):
        grey = model.standardise(to_unit_range(pixels), preprocess).squeeze(1)
        grey = grey / ZSCORES + 0.5 if mode == "zscore" else grey
        shown.append((255 * grey).round().clamp(0, 255).byte().numpy())
    statistics = compute_brightness_statistics(np.concatenate(shown))
    return baselines.cross_validate_brightness(statistics, own.labels, own.patients)


def pool_test(
    own: SliceSet, folds: list[list[NDArray[np.str_]]], side: int
) -> tuple[Labels, NDArray[Any]]:
    """Return labels and patients of a set's slices in the order of the pooled folds."""
    order = np.concatenate([np.flatnonzero(splits[side] == TEST) for splits in folds])
    return own.labels[order], own.patients[order]


def score(
    found: dict[str, Labels],
    raw: dict[str, Labels] | None,
    tests: list[tuple[Labels, NDArray[Any]]],
) -> dict[str, Any]:
    """Return accuracies with intervals by patient, and their differences from `raw`.

    Args:
        found: Predictions of one mode by what was predicted.
        raw: Those of `raw`, if measured.
        tests: Labels and patients of the own set and of the other one.
    """
    figures: dict[str, Any] = {}
    for what, predicted in found.items():
        labels, patients = tests[what == "other"]
        hits = predicted == labels
        figures[what] = intervals.describe(intervals.estimate_ratio(hits), patients)
        if raw is not None and raw is not found:
            difference = compare_paired(hits, raw[what] == labels, patients, patients)
            figures[what]["against_raw"] = difference
    return figures


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train the missing networks, pool the folds of each mode and print the table."""
    names = [options.data.name, options.other.name]
    sets = [load_set(path, options.image_size) for path in (options.data, options.other)]
    if dataset.list_classes(sets[0].table) != dataset.list_classes(sets[1].table):
        raise UserError(f"{options.data} and {options.other} have different classes")
    folds = divide(sets, options.folds)
    figures: dict[str, Any] = {
        "recipe": f"{MODEL} from weights, {options.image_size} px, {options.epochs} epochs",
        "folds": options.folds,
        "sets": {
            name: {"n": len(each.labels), "patients": len(set(each.patients))}
            for name, each in zip(names, sets, strict=True)
        },
        "modes": {},
    }
    pooled: dict[tuple[str, str], dict[str, Labels]] = {}
    for mode in options.modes:
        figures["modes"][mode] = {}
        for index, name in enumerate(names):
            sides = [index, 1 - index]
            pair, parts = [sets[side] for side in sides], []
            for number, splits in enumerate(folds, 1):
                path = options.state / f"{mode}-{name}-{number}.npz"
                own_splits = [splits[side] for side in sides]
                parts.append(run_fold(path, mode, pair, own_splits, options))
            found = {what: np.concatenate([part[what] for part in parts]) for what in parts[0]}
            pooled[mode, name] = found
            tests = [pool_test(each, folds, side) for each, side in zip(pair, sides, strict=True)]
            entry = {"brightness": measure_brightness(mode, pair[0])}
            figures["modes"][mode][name] = entry | score(found, pooled.get(("raw", name)), tests)
            cli.write_figures(figures, options)
    print_table(figures)
    return figures


def print_table(figures: dict[str, Any]) -> None:
    """Print one table for each set: modes in columns."""
    for name in figures["sets"]:
        columns = {mode: parts[name] for mode, parts in figures["modes"].items()}
        print(f"\n| trained on {name} | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
        brightness = (part["brightness"] or {} for part in columns.values())
        cells = [f"{each.get('brightness', float('nan')):.4f}" for each in brightness]
        print(f"| brightness baseline | {' | '.join(cells)} |")
        for what in next(iter(columns.values())):
            if what != "brightness":
                cells = [_format(part[what]) for part in columns.values()]
                print(f"| {what} | {' | '.join(cells)} |")


def _format(entry: dict[str, Any]) -> str:
    """Return an accuracy with its interval and the difference from `raw` with its own."""
    text = "{:.4f} [{:.3f}, {:.3f}]".format(entry["value"], *entry["ci95"])
    if against := entry.get("against_raw"):
        text += "; {:+.4f} [{:+.3f}, {:+.3f}]".format(against["difference"], *against["ci95"])
    return text


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = cli.build_parser("intensity", __doc__)
    parser.add_argument("data", type=Path, help="folder that prepare.py wrote, with patients")
    parser.add_argument("other", type=Path, help="another one, with the same classes")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights")
    parser.add_argument("--state", type=Path, default=Path("session/intensity"))
    parser.add_argument("--modes", nargs="+", default=list(args.INTENSITIES))
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each training")
    return cli.run(measure, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
