"""Compare training recipes by paired cross-validation, and stop the losers early.

    python -m experiments.recipe_study DATA --weights mobilenet_v2=WEIGHTS.pth --log FILE

DATA is a prepared folder. Its test split takes no part: the train and val slices are divided into
FOLDS folds by group, and every recipe is trained on the same folds with the same seed. A fold is
predicted by the EMA weights after the last epoch, with a temperature that is fitted to the val
slices of the fold. Recipes take turns, fold by fold. A recipe whose NLL is worse than that of the
reference by two standard errors after MIN_FOLDS folds is stopped.

`--reference` gives the options of the reference, which each recipe changes in one point. Each line
of the log is one trained fold: NLL and hits, summed for each group, and of each epoch the training
time in s and the loss and macro-F1 of val. Lines of the same slices, weights and options that are
in the log already are not trained again, so the study can continue at another time or on another
machine, or in several processes.

The standard error of a difference is that of a sum over groups, for these trained networks: chance
of training (one seed) is not in it, and with many recipes some differ by two errors by chance.

Source of the early stop: after Maron and Moore 1993, Hoeffding races.
"""

import argparse
import contextlib
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

import args
import dataset
import net
from common.machine import read_cpu_model
from evaluation.calibration import average_softmax, fit_temperature
from experiments import cli
from helper import UserError, log, read_commit
from loading.image_source import SliceSource
from model import CUSTOM_NET, Classifier
from modeling.forward import predict_logits
from preparation.splits import split_folds
from runs import lifecycle

T = TypeVar("T")
FOLDS, MIN_FOLDS = 5, 2
MIN_ERRORS = 2.0  # standard errors by which a recipe is worse when it is stopped
BATCH_SIZE = 64
TEST = args.EvaluateConfig.split
REFERENCE = "reference"
REFERENCE_OPTIONS = "--model mobilenet_v2 --image-size 96 --epochs 6"
# options besides those of the reference, which they override
RECIPES = {
    REFERENCE: "",
    "in-domain pretraining": "",  # --weights "in-domain pretraining=FILE"
    "EfficientNet-Lite2": "--model timm/tf_efficientnet_lite2",
    "EfficientNet-Lite2, 128 px": "--model timm/tf_efficientnet_lite2 --image-size 128",
    "96 px": "--image-size 96",
    "128 px": "--image-size 128",
    "160 px": "--image-size 160",
    "192 px": "--image-size 192",
    "224 px": "--image-size 224 --epochs 10",
    "224 px, 30 epochs": "--image-size 224 --epochs 30",
    "224 px, progressive size": "--image-size 224 --epochs 10 --first-size 0.5",
    "12 epochs": "--epochs 12",
    "20 epochs": "--epochs 20",
    "40 epochs": "--epochs 40",
    "60 epochs": "--epochs 60",
    "progressive size": "--first-size 0.5",
    "whole rate": "--backbone-lr-factor 1.0",
    "low body rate": "--backbone-lr-factor 0.1",
    "layer decay": "--backbone-lr-factor 1.0 --layer-decay 0.1",
    "lr x 2": "--lr 0.002",
    "lr x 4": "--lr 0.004",
    "lr / 2": "--lr 0.0005",
    "frozen first": "--freeze-epochs 1",
    "mixup": "--mixup 0.2",
    "cutmix": "--cutmix 1.0",
    "percentile": "--intensity percentile",
    "no turns": "--no-quarter-turns --no-flip",
    "wide geometry": "--rotation 20 --zoom 0.2 --shift 0.1",
    "wide grey": "--gamma 0.4 --contrast 0.4",
    "bias field": "--bias-field 0.4",
    "ghosting": "--ghosting 0.4",
    "noise": "--noise 0.05",
    "artefacts": "--bias-field 0.4 --ghosting 0.4 --noise 0.05",
    "no smoothing": "--label-smoothing 0",
    "smoothing 0.1": "--label-smoothing 0.1",
    "erase": "--erase 0.3",
    "ema 0.99": "--ema-decay 0.99",
    "batch 16": "--batch-size 16",
    "batch 64": "--batch-size 64",
    "decay 0.2": "--weight-decay 0.2",
    # as many steps as the reference, on fewer patients
    "half of the patients": "--epochs 12",
    "a quarter of the patients": "--epochs 24",
    # of the custom CNN, with --reference "--model net ..."
    **dict.fromkeys(("stem of stride 2", "wider", "deeper"), ""),
}
SHARES = {"half of the patients": 0.5, "a quarter of the patients": 0.25}
# constants of net.py; all have at most 1.5 million weights
NETS: dict[str, dict[str, Any]] = {
    "stem of stride 2": {"STEM_STRIDE": 2},
    "wider": {"WIDTHS": [28, 56, 112, 164]},
    "deeper": {"WIDTHS": [24, 48, 88, 128], "BLOCKS_PER_STAGE": 3},
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = cli.build_parser("recipe_study", __doc__)
    parser.add_argument("data", type=Path, help="prepared folder")
    parser.add_argument(
        "--weights",
        nargs="+",
        type=read_weights,
        default=[],
        metavar="NAME=FILE",
        help="initial weights of a model, or of a recipe; without them main.py chooses",
    )
    parser.add_argument("--log", type=Path, required=True, help="file that lines are added to")
    parser.add_argument(
        "--reference",
        default=REFERENCE_OPTIONS,
        metavar="OPTIONS",
        help="options of main.py that the recipes change (default: %(default)s)",
    )
    usual = [name for name in RECIPES if name not in NETS]
    parser.add_argument("--recipes", nargs="+", default=usual, choices=RECIPES)
    parser.add_argument(
        "--folds", type=int, default=FOLDS, choices=range(1, FOLDS + 1), help="folds to train"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of training")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return cli.run(measure, parser.parse_args(argv))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train what the log lacks, fold by fold, and compare each recipe with the reference."""
    for name in options.recipes:
        if name in NETS and build_config(options, name).model.model != CUSTOM_NET:
            raise UserError(f'{name}: a variant of net; give --reference "--model net …"')
    tables = divide(options.data)
    names = [REFERENCE, *(name for name in options.recipes if name != REFERENCE)]
    stopped: set[str] = set()
    options.study, options.digests = identify(tables), {}
    for name, path in options.weights:
        options.digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    for fold, table in enumerate(tables[: options.folds], 1):
        for name in names:
            if name in stopped or find_lines(options, name, fold):
                continue
            line = train_fold(options, name, fold, table)
            with options.log.open("a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(line) + "\n")
            log.info("%s, fold %d: %s", name, fold, describe(line))
        if fold >= MIN_FOLDS:
            stopped |= {name for name in names[1:] if is_worse(compare(options, name))}
    rows = {name: compare(options, name) for name in names}
    for name, row in rows.items():
        log.info("%s", format_row(name, row))
    return {
        **{"data": options.data.name, "seed": options.seed},
        **{"reference": options.reference, "recipes": rows},
    }


def divide(data_dir: Path) -> list[pd.DataFrame]:
    """Return the train and val slices of a folder once for each fold, with the splits of it."""
    table = dataset.load_table(data_dir)
    table = table[table["split"] != TEST].reset_index(drop=True)
    folds = split_folds(table["label"].to_numpy(), table["group"].to_numpy(), FOLDS, 0)
    return [table.assign(split=splits) for splits in folds]


def read_weights(text: str) -> tuple[str, Path]:
    """Parse NAME=FILE."""
    name, equals, path = text.partition("=")
    if not equals or not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"{text}: write NAME=FILE, with a file that exists")
    return name, Path(path)


def identify(tables: list[pd.DataFrame]) -> str:
    """Return an id of the slices and folds that the lines of a study share."""
    parts = [dataset.compute_fingerprint(table) for table in tables]
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def identify_recipe(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Return what the lines of one recipe share."""
    return {
        **{"study": options.study, "seed": options.seed, "recipe": name},
        **{"options": RECIPES[name], "reference": options.reference},
        **({"net": NETS[name]} if name in NETS else {}),
        "weights": choose_weights(options, name, options.digests),
    }


def join_options(options: argparse.Namespace, name: str) -> list[str]:
    """Return the options of the reference, then those of a recipe, which override them."""
    return f"{options.reference} {RECIPES[name]}".split()


def choose_weights(options: argparse.Namespace, name: str, found: dict[str, T]) -> T | None:
    """Return what is given for a recipe, or else for its model: the last that is named."""
    command = join_options(options, name)
    model = command[len(command) - command[::-1].index("--model")]
    return found.get(name, found.get(model))


def build_config(options: argparse.Namespace, name: str) -> args.TrainConfig:
    """Return the options of a recipe."""
    command = join_options(options, name)
    command += ["--patience", "0", "--threads", str(options.threads), "--seed", str(options.seed)]
    command += ["--device", "cpu", "--data", str(options.data)]
    weights = choose_weights(options, name, dict(options.weights))
    if weights is not None:
        command += ["--weights", str(weights)]
    config = args.parse_train(command)
    assert isinstance(config, args.TrainConfig)
    return config


def train_fold(
    options: argparse.Namespace, name: str, fold: int, table: pd.DataFrame
) -> dict[str, Any]:
    """Train a recipe on one fold and return its line of the log."""
    table = keep_share(table, SHARES.get(name, 1.0))
    started_s = time.perf_counter()
    config, device = build_config(options, name), torch.device("cpu")
    with vary_net(NETS.get(name, {})), tempfile.TemporaryDirectory() as folder:
        trainer = lifecycle.build_new_trainer(config, table, Path(folder), name, device)
        trainer.fit()
    trained_s = time.perf_counter() - started_s
    classes, size = dataset.list_classes(table), config.model.image_size
    ranges = dataset.read_ranges(options.data)
    val, held_out = dataset.load_slices(
        table, ["val", TEST], options.data, classes, size, device, ranges=ranges
    )
    rows = {split: table[table["split"] == split] for split in ("val", TEST)}
    temperature = fit_temperature(*predict(trainer.ema, val), rows["val"]["group"].to_numpy())
    logits, labels = predict(trainer.ema, held_out)
    probs = average_softmax(logits, temperature)
    own = np.maximum(probs[np.arange(len(labels)), labels], 1e-15)
    scores = pd.DataFrame(
        {
            "group": rows[TEST]["group"].to_numpy(),
            "nll": -np.log(own),
            "hits": probs.argmax(axis=1) == labels,
        }
    )
    sums = scores.groupby("group").agg(n=("nll", "size"), nll=("nll", "sum"), hits=("hits", "sum"))
    return {
        **{"data": options.data.name, "fold": fold, **identify_recipe(options, name)},
        **{"time_s": round(trained_s, 1), "threads": options.threads},
        **{"cpu": read_cpu_model(), "commit": read_commit(), "temperature": round(temperature, 4)},
        "epochs": [
            [round(row["time_s"], 1), round(row["val_loss"], 4), round(row["val_macro_f1"], 4)]
            for row in trainer.history.rows
        ],
        "groups": {
            group: [int(row.n), round(float(row.nll), 5), int(row.hits)]
            for group, row in zip(sums.index, sums.itertuples(), strict=True)
        },
    }


@contextlib.contextmanager
def vary_net(constants: dict[str, Any]) -> Iterator[None]:
    """Build the custom CNN with other constants of net.py."""
    usual = {key: getattr(net, key) for key in constants}
    vars(net).update(constants)
    try:
        yield
    finally:
        vars(net).update(usual)


def keep_share(table: pd.DataFrame, share: float) -> pd.DataFrame:
    """Take the training slices of some groups of each class, chosen at random, out of the table."""
    train = table[table["split"] == "train"]
    kept: set[str] = set()
    for _, part in train.groupby("label"):
        groups = np.random.default_rng(0).permutation(np.unique(part["group"].to_numpy(dtype=str)))
        kept.update(groups[: round(share * len(groups))])
    return table[(table["split"] != "train") | table["group"].isin(kept)].reset_index(drop=True)


def predict(network: Classifier, slices: SliceSource) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return logits [N, K] and labels [N] of slices."""
    logits = predict_logits(network, slices.iterate(BATCH_SIZE))[0].numpy()
    return logits, slices.labels.numpy()


# ---- comparison


def find_lines(options: argparse.Namespace, name: str, fold: int = 0) -> list[dict[str, Any]]:
    """Return the lines of the log of a recipe, of one fold or of all.

    Raises:
        UserError: A line is damaged.
    """
    if not options.log.exists():
        return []
    try:
        lines = [json.loads(text) for text in options.log.read_text("utf-8").splitlines()]
    except ValueError as error:
        raise UserError(f"{options.log}: a line is cut off ({error}); delete that line") from error
    wanted = identify_recipe(options, name)
    found = [line for line in lines if wanted.items() <= line.items()]
    return [line for line in found if fold in {0, line["fold"]}]


def compare(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Return NLL and accuracy of a recipe, and its differences from the reference.

    Only the folds of both are compared. `nll_error` and `accuracy_error` are standard errors.
    """
    own = {line["fold"]: line for line in find_lines(options, name)}
    other = {line["fold"]: line for line in find_lines(options, REFERENCE)}
    folds = sorted(set(own) & set(other))
    if not folds:
        return {"folds": []}
    sums = np.array(
        [
            [*values, *other[fold]["groups"][group][1:]]
            for fold in folds
            for group, values in own[fold]["groups"].items()
        ],
        dtype=float,
    )  # [groups, 5]: n, NLL and hits of the recipe, NLL and hits of the reference
    n_slices = sums[:, 0].sum()
    row: dict[str, Any] = {"folds": folds, "n_groups": len(sums), "n": int(n_slices)}
    for key, column in (("nll", 1), ("accuracy", 2)):
        row[key] = sums[:, column].sum() / n_slices
        ahead = sums[:, column] - sums[:, column + 2]
        difference = ahead.sum() / n_slices
        residuals = ahead - difference * sums[:, 0]
        scale = np.sqrt(len(sums) / max(1, len(sums) - 1)) / n_slices
        row[f"{key}_difference"] = difference
        row[f"{key}_error"] = float(np.sqrt((residuals**2).sum()) * scale)
    row["time_s"] = sum(own[fold]["time_s"] for fold in folds)
    row["relative_time"] = row["time_s"] / sum(other[fold]["time_s"] for fold in folds)
    return row


def is_worse(row: dict[str, Any]) -> bool:
    """Return whether a recipe is worse than the reference by MIN_ERRORS standard errors."""
    return bool(row["folds"]) and row["nll_difference"] > MIN_ERRORS * row["nll_error"] > 0


def describe(line: dict[str, Any]) -> str:
    """Return NLL and accuracy of one line of the log."""
    n, nll, hits = np.array(list(line["groups"].values())).sum(axis=0)
    return f"NLL {nll / n:.4f}, accuracy {hits / n:.4f}, {line['time_s']:.0f} s"


def format_row(name: str, row: dict[str, Any]) -> str:
    """Return a row of a Markdown table."""
    if not row["folds"]:
        return f"| {name} | `{RECIPES[name]}` | 0 | | | | | |"
    pairs = (
        f"{row[f'{key}_difference']:+.4f} ± {row[f'{key}_error']:.4f}"
        for key in ("nll", "accuracy")
    )
    return (
        f"| {name} | `{RECIPES[name]}` | {len(row['folds'])} | {row['nll']:.4f} | "
        f"{row['accuracy']:.4f} | {' | '.join(pairs)} | {row['relative_time']:.2f} |"
    )


if __name__ == "__main__":
    sys.exit(main())
