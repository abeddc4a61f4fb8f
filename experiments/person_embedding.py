"""Measure whether slices of one person can be told from slices of other persons.

    python -m experiments.person_embedding SLICES --patients patients.csv --weights WEIGHTS.pth \\
        --json results/benchmarks/person_embedding.json

SLICES holds one folder per class. The table has the columns path (in SLICES), patient and fold, and
optionally scan. For each fold, embeddings are trained on the persons of the other folds by the
supervised contrastive loss: of the slices by a pretrained network, and of hand-made features (shape
of the head, size and place of the head, noise, grey values) by small networks. They are judged by
the pairs of slices of one class in the fold, whose persons were not seen. A person whose scans are
in several folds counts to the last of these. Finished folds are kept in --folder.

Each batch holds P persons of every class with K slices, and a slice is compared with slices of its
class only, so the class does not help. Augmentation (flip, rotation, shift, erased box) leaves size
of the head, grey values, contrast and noise unchanged, because they can identify a person or scan.

Source: Khosla et al. 2020, Supervised contrastive learning.
"""

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from args import AugmentOptions
from common.atomic_files import atomic_path
from duplicates.registration import register_pairs
from duplicates.sift_features import THUMBNAIL_PX, extract_features
from experiments import cli
from experiments.person_features import describe_slice, guess_planes
from experiments.person_pairs import (
    Pairs,
    Ranking,
    Similarities,
    compute_crowding,
    judge,
    list_pairs,
)
from helper import UserError, build_generator, log, seed_everything, set_threads
from imaging.grayscale import resize_grey
from imaging.reader import read_grey
from modeling.forward import predict_logits, to_unit_range
from modeling.weights import build_initial_model
from training.augmentation import Augmentation
from training.optimizer import build_optimizer, compute_lr_factor, set_learning_rate

MODEL = "mobilenet_v2"
EMBEDDING = 128
PERSONS, SLICES = 8, 3  # of each class in a batch
TEMPERATURE = 0.1
LR, BACKBONE_LR_FACTOR, WEIGHT_DECAY, WARMUP = 2e-3, 0.25, 0.05, 0.1
HAND_MADE = ("outline", "field", "noise", "grey")
HAND_MADE_STEPS = 600
AUGMENTATION = AugmentOptions(
    flip=True, quarter_turns=False, rotation=10.0, shift=0.05, zoom=0.0, gamma=0.0, contrast=0.0,
    erase=0.25,
)  # fmt: skip
FROZEN, NETWORK, SIFT, ALL_HAND_MADE = "frozen network", "network", "SIFT score", "hand-made"
BOTH = "network and hand-made"
COLUMNS = ("path", "patient", "fold")

Embeddings = dict[str, NDArray[np.float32]]  # [N, D] of unit length, by method


class Slices(NamedTuple):
    """N slices of known persons.

    Attributes:
        table: Columns path, label, patient, fold, and scan if known.
        pixels: uint8 [N, 1, S, S].
        features: Hand-made features by kind, fp32 [N, D].
        thumbnails: For SIFT, uint8 [THUMBNAIL_PX, THUMBNAIL_PX] each.
    """

    table: pd.DataFrame
    pixels: Tensor
    features: dict[str, Tensor]
    thumbnails: list[NDArray[np.uint8]]


def load_slices(folder: Path, patients: Path, image_size: int) -> Slices:
    """Read the slices that the table names, and their hand-made features.

    Raises:
        UserError: A column or a file is missing, or there are too few persons.
    """
    table = pd.read_csv(patients, dtype=str, encoding="utf-8")
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise UserError(
            f"{patients}: no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}"
        )
    table["label"] = table["path"].str.split("/").str[0]
    table["fold"] = table.groupby("patient")["fold"].transform("max")
    n_persons = table.groupby(["fold", "label"])["patient"].nunique()
    if table["fold"].nunique() < 2 or n_persons.min() < 2:
        raise UserError(f"{patients}: needs two folds, and two persons of each class in each fold")
    pixels, described, thumbnails = [], [], []
    for path in tqdm(table["path"], "slices", unit="slice", disable=None):
        grey = read_grey(folder / path)
        pixels.append(resize_grey(grey, image_size))
        described.append(describe_slice(grey))
        thumbnails.append(resize_grey(grey, THUMBNAIL_PX))
    features = {
        kind: torch.from_numpy(np.stack([values[kind] for values in described])).float()
        for kind in described[0]
    }
    return Slices(table, torch.from_numpy(np.stack(pixels)).unsqueeze(1), features, thumbnails)


def compute_contrastive_loss(embeddings: Tensor, n_slices: int, temperature: float) -> Tensor:
    """Compute the supervised contrastive loss within each block.

    Args:
        embeddings: [C, P * K, D] of unit length: C blocks, K slices of each of P persons in turn.
        n_slices: K, at least 2.
        temperature: Divides the cosines.

    Source: Khosla et al. 2020, Supervised contrastive learning, equation 2.
    """
    n_rows = embeddings.shape[1]
    itself = torch.eye(n_rows, dtype=torch.bool, device=embeddings.device)
    persons = torch.arange(n_rows, device=embeddings.device) // n_slices
    is_positive = (persons.view(-1, 1) == persons) & ~itself
    logits = (embeddings @ embeddings.mT / temperature).masked_fill(itself, -torch.inf)
    log_shares = logits.log_softmax(dim=2).masked_fill(~is_positive, 0.0)
    return -log_shares.sum(dim=2).mean() / (n_slices - 1)


def draw_batches(table: pd.DataFrame, n_steps: int, generator: torch.Generator) -> list[Tensor]:
    """Draw the rows of each step, [C * P * K]: P persons of each class, K slices of each.

    A person with fewer than K slices gives some of them twice; they are augmented differently.
    """
    by_class: dict[str, list[Tensor]] = {}
    for (label, _), rows in table.groupby(["label", "patient"]).indices.items():
        by_class.setdefault(label, []).append(torch.from_numpy(rows))
    n_persons = min(PERSONS, *(len(persons) for persons in by_class.values()))

    def draw_slices(rows: Tensor) -> Tensor:
        order = torch.randperm(len(rows), generator=generator)
        return rows[order.repeat(-(-SLICES // len(rows)))[:SLICES]]

    return [
        torch.cat([
            draw_slices(persons[index])
            for persons in by_class.values()
            for index in torch.randperm(len(persons), generator=generator)[:n_persons].tolist()
        ])
        for _ in range(n_steps)
    ]  # fmt: skip


def train_embedding(
    network: nn.Module,
    head: nn.Module,
    encode: Callable[[Tensor], Tensor],
    batches: list[Tensor],
    n_classes: int,
) -> float:
    """Train an embedding and return its mean loss in the last tenth of the steps.

    Args:
        network: Its parameters are changed.
        head: The part of the network that learns at the full rate.
        encode: Returns the embeddings [B, D] of the rows [B] of a batch.
        batches: Rows of each step, from `draw_batches`.
        n_classes: Classes of a batch.
    """
    optimizer = build_optimizer(network, head, LR, WEIGHT_DECAY, BACKBONE_LR_FACTOR)
    network.train()
    losses = []
    for step, rows in enumerate(tqdm(batches, "training", unit="step", disable=None)):
        factor = compute_lr_factor(step, len(batches), WARMUP * len(batches))
        set_learning_rate(optimizer, LR * factor)
        embeddings = F.normalize(encode(rows)).view(n_classes, -1, EMBEDDING)
        loss = compute_contrastive_loss(embeddings, SLICES, TEMPERATURE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    network.eval()
    return float(np.mean(losses[-max(1, len(losses) // 10) :]))


def embed_slices(
    slices: Slices, is_train: NDArray[np.bool_], batches: list[Tensor], weights: Path, seed: int
) -> NDArray[np.float32]:
    """Train a network on some slices and return the embeddings of all, [N, EMBEDDING]."""
    pixels = slices.pixels[torch.from_numpy(is_train)]
    network = build_initial_model(MODEL, EMBEDDING, pixels.shape[-1], weights=weights)
    augmentation, generator = Augmentation(AUGMENTATION), build_generator(seed, "augment")

    def encode(rows: Tensor) -> Tensor:
        draws = augmentation.draw(len(rows), generator)
        return network(augmentation.augment(to_unit_range(pixels[rows]), draws))

    loss = train_embedding(network, network.head, encode, batches, _count_classes(slices))
    log.info("loss %.3f", loss)
    return F.normalize(predict_logits(network, slices.pixels.split(64))[0]).numpy()


def embed_features(
    slices: Slices, kinds: tuple[str, ...], is_train: NDArray[np.bool_], batches: list[Tensor]
) -> NDArray[np.float32]:
    """Train a small network on hand-made features; return the embeddings of all slices."""
    features = torch.cat([slices.features[kind] for kind in kinds], dim=1)
    known = features[torch.from_numpy(is_train)]
    features = ((features - known.mean(0)) / known.std(0).clamp(min=1e-6)).clamp(-4, 4)
    known = features[torch.from_numpy(is_train)]
    network = nn.Sequential(
        nn.Linear(features.shape[1], EMBEDDING), nn.ReLU(), nn.Linear(EMBEDDING, EMBEDDING)
    )
    train_embedding(
        network, network, lambda rows: network(known[rows]), batches, _count_classes(slices)
    )
    with torch.no_grad():
        return F.normalize(network(features)).numpy()


def _count_classes(slices: Slices) -> int:
    return int(slices.table["label"].nunique())


def embed_fold(slices: Slices, fold: str, options: argparse.Namespace) -> Embeddings:
    """Train every embedding without a fold, or read the embeddings of a finished fold."""
    name = f"fold{fold}-{options.image_size}px-{options.steps}steps-seed{options.seed}.npz"
    path, paths = options.folder / name, slices.table["path"].to_numpy(str)
    if path.is_file():
        with np.load(path) as kept:
            if np.array_equal(kept["paths"], paths):
                return {kind: kept[kind] for kind in kept.files if kind != "paths"}
    is_train = (slices.table["fold"] != fold).to_numpy(copy=True)
    train_table = slices.table[is_train].reset_index(drop=True)
    draw = functools.partial(draw_batches, train_table)
    embeddings: Embeddings = {}
    for kinds in (*((kind,) for kind in HAND_MADE), HAND_MADE):
        kind = kinds[0] if len(kinds) == 1 else ALL_HAND_MADE
        seed_everything(options.seed, kind, fold)
        batches = draw(HAND_MADE_STEPS, build_generator(options.seed, kind, fold))
        embeddings[kind] = embed_features(slices, kinds, is_train, batches)
    seed_everything(options.seed, NETWORK, fold)
    batches = draw(options.steps, build_generator(options.seed, NETWORK, fold))
    started_s = time.process_time()
    embeddings[NETWORK] = embed_slices(slices, is_train, batches, options.weights, options.seed)
    log.info("fold %s: %.0f s of CPU time", fold, time.process_time() - started_s)
    with atomic_path(path) as unfinished, unfinished.open("wb") as stream:
        np.savez(stream, paths=paths, **embeddings)  # type: ignore[arg-type]
    return embeddings


def compare_pairs(embeddings: Embeddings, pairs: Pairs) -> Similarities:
    """Return the cosine of each pair [M] by every embedding, and the mean of two of them."""
    cosines = {
        kind: np.einsum("md,md->m", values[pairs.first], values[pairs.second])
        for kind, values in embeddings.items()
    }
    return cosines | {BOTH: (cosines[NETWORK] + cosines[ALL_HAND_MADE]) / 2}


def match_pairs(slices: Slices, pairs: Pairs) -> NDArray[np.float32]:
    """Return the score [M] of the duplicate search for each pair, of upright slices."""
    rows, codes = np.unique(np.concatenate([pairs.first, pairs.second]), return_inverse=True)
    first, second = codes.reshape(2, -1)
    features = extract_features(dict(enumerate(slices.thumbnails)), list(rows))
    upright = np.zeros_like(first)  # a person's slices are not mirrored
    found = register_pairs(features, np.stack([first, second, upright], axis=1))
    return found.scores.astype(np.float32)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train and judge the embeddings of every fold; print the table."""
    set_threads(options.threads)
    slices = load_slices(options.slices, options.patients, options.image_size)
    table = slices.table
    folds = options.folds or sorted(table["fold"].unique())
    if unknown := set(folds) - set(table["fold"]):
        raise UserError(f"--folds {' '.join(sorted(unknown))}: no such fold in {options.patients}")
    options.folder.mkdir(parents=True, exist_ok=True)
    network = build_initial_model(MODEL, EMBEDDING, options.image_size, weights=options.weights)
    frozen = F.normalize(predict_logits(network, slices.pixels.split(64))[1]).numpy()
    table["plane"] = guess_planes(slices.features["plane"].numpy(), frozen)
    every = list_pairs(table["label"].to_numpy(), table["patient"].to_numpy())
    share = float(every.is_same.mean())
    parts: list[tuple[Pairs, Similarities]] = []
    by_fold: dict[str, Any] = {}
    for fold in folds:
        embeddings = embed_fold(slices, fold, options) | {FROZEN: frozen}
        is_fold = (table["fold"] == fold).to_numpy()
        unseen = every.take(is_fold[every.first] & is_fold[every.second])
        crowding = compute_crowding(unseen.is_same, share)
        similarities = compare_pairs(embeddings, unseen) | {SIFT: match_pairs(slices, unseen)}
        parts.append((unseen, similarities))
        seen = every.take(~is_fold[every.first] & ~is_fold[every.second])
        auc_of_seen = {
            method: Ranking(values, seen.is_same).score()["auc"]
            for method, values in compare_pairs(embeddings, seen).items()
        }
        by_fold[fold] = {
            "n_persons": int(table["patient"][is_fold].nunique()),
            "share_of_same_person": float(unseen.is_same.mean()),
            "methods": {
                method: {
                    "unseen": Ranking(values, unseen.is_same, crowding).score(),
                    "auc_of_training_persons": auc_of_seen.get(method),
                }
                for method, values in similarities.items()
            },
        }
    pairs = Pairs(*map(np.concatenate, zip(*(part for part, _ in parts), strict=True)))
    pooled = {
        method: np.concatenate([similarities[method] for _, similarities in parts])
        for method in parts[0][1]
    }
    crowding = compute_crowding(pairs.is_same, share)
    judged = table[table["fold"].isin(folds)]
    figures = {
        "model": MODEL,
        "image_size": options.image_size,
        "steps": options.steps,
        "batch": {"classes": _count_classes(slices), "persons": PERSONS, "slices": SLICES},
        "augmentation": dataclasses.asdict(AUGMENTATION),
        "seed": options.seed,
        "n_images": len(judged),
        "n_persons": int(judged["patient"].nunique()),
        "planes": judged["plane"].value_counts().to_dict(),
        "share_of_same_person": float(pairs.is_same.mean()),
        "share_of_same_person_among_all": share,
        "pooled": judge(pairs, pooled, table, crowding, options.replicates),
        "by_fold": by_fold,
    }
    print_table(figures)
    return figures


def print_table(figures: dict[str, Any]) -> None:
    """Print one row per method and kind of pairs."""
    print(
        "{n_images} slices of {n_persons} persons that the embedding has not seen. Share of pairs "
        "within a class that show one person: {share_of_same_person:.3f} within the folds, "
        "{share_of_same_person_among_all:.3f} among all persons.".format_map(figures)
    )
    for number, (method, subsets) in enumerate(figures["pooled"].items()):
        for subset, entry in subsets.items():
            if entry is None:  # no pairs of one person, or of two
                continue
            scores = {name: score for name, score in entry.items() if isinstance(score, dict)}
            if number == 0 and subset == "all":
                print("| method | pairs | " + " | ".join(scores).replace("_", " ") + " |")
                print("|---" * (2 + len(scores)) + "|")
            cells = [
                "{:.3f} [{:.3f}, {:.3f}]".format(score["value"], *score["ci95"])
                for score in scores.values()
            ]
            print(f"| {method} | {subset.replace('_', ' ')} | " + " | ".join(cells) + " |")


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = cli.build_parser("person_embedding", __doc__)
    parser.add_argument("slices", type=Path, help="folder with one folder of slices per class")
    parser.add_argument("--patients", type=Path, required=True, help="table: path,patient,fold")
    parser.add_argument("--weights", type=Path, required=True, help=f"ImageNet weights of {MODEL}")
    parser.add_argument("--image-size", type=int, default=96, metavar="PX")
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="of the network")
    parser.add_argument("--folds", nargs="+", metavar="FOLD", help="judge these only")
    parser.add_argument("--folder", type=Path, default=Path("session/person_embedding"))
    parser.add_argument("--replicates", type=int, default=500, help="bootstrap samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    return cli.run(measure, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
