"""Measure whether heat maps point at the lesion, on slices whose lesions are known.

    python -m experiments.pointing_game session/RUN --outlines lesions.csv --json FILE
    python -m experiments.pointing_game session/RUN/best.pt --json FILE         (phantoms)

Each slice that a network was not trained on gets a heat map of its predicted class by every method,
from the trained network and from networks with random weights. The table reports how often the
maximum of the map is in the lesion, and the share of the map inside it, beside the brightest point
of the slice, the centre of the head and a random place in the head.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from args import EvaluateConfig
from evaluation import predictions
from evaluation.comparison import compare_paired
from evaluation.intervals import describe, estimate_ratio
from evaluation.predictions import Predictions
from experiments import cli, lesions
from explanation import heatmaps
from explanation.localisation import compute_energy_inside, point_hits, randomise_weights
from explanation.spatial_layer import find_spatial_layer
from helper import NOTICE
from modeling.forward import to_unit_range

Scores = tuple[NDArray[Any], NDArray[Any]]  # hits [N] and energies inside [N], 0..1


class Part(NamedTuple):
    """A network and slices that it was not trained on.

    Attributes:
        network: The trained network.
        images: fp32 [N, 1, S, S] in 0..1.
        predicted: Predicted class indices [N].
        lesions: bool [N, S, S].
        heads: bool [N, S, S].
    """

    network: nn.Module
    images: Tensor
    predicted: Tensor
    lesions: Tensor
    heads: Tensor


class Slices(NamedTuple):
    """What is known of all slices, in the order of the parts.

    Attributes:
        labels: Class indices [N].
        correct: [N] whether the prediction is right.
        patients: Ids [N].
        sets: Duplicate sets [N].
    """

    labels: NDArray[Any]
    correct: NDArray[Any]
    patients: NDArray[Any]
    sets: NDArray[Any]


def load(predicted: Predictions, options: argparse.Namespace) -> tuple[list[Part], Slices]:
    """Select at most `--per-patient` slices of each patient and load them with their lesions.

    Raises:
        UserError: The lesions of a slice are not known.
    """
    rows = predicted.rows
    patients = rows["patient"].where(rows["patient"] != "", rows["group"]).to_numpy()
    chosen = choose_slices(patients, options.per_patient)
    starts = np.cumsum([0, *(len(member.slices) for member in predicted.member_slices)])
    classes = predicted.calibrated.probs.argmax(axis=1)
    parts, kept = [], []
    for member, first, last in zip(predicted.member_slices, starts, starts[1:], strict=False):
        own = chosen[(chosen >= first) & (chosen < last)]
        if not len(own):
            continue
        pixels = member.slices.take(torch.from_numpy(own - first)).cpu()
        masks = load_lesions(rows.iloc[own], predicted, pixels.shape[-1], options.outlines)
        heads = [lesions.find_head(picture) for picture in pixels[:, 0].numpy()]
        images, targets = to_unit_range(pixels), torch.from_numpy(classes[own])
        known = (torch.stack(masks), torch.from_numpy(np.stack(heads)))
        parts.append(Part(member.network, images, targets, *known))
        kept.append(own)
    order = np.concatenate(kept)
    labels, sets = predicted.labels[order], rows["duplicate_set"].to_numpy()[order]
    return parts, Slices(labels, predicted.correct[order], patients[order], sets)


def choose_slices(patients: NDArray[Any], n_most: int) -> NDArray[np.int64]:
    """Return the positions of at most `n_most` slices of each patient, evenly spread; 0: of all."""
    if not n_most:
        return np.arange(len(patients))
    chosen = []
    for patient in np.unique(patients):
        own = np.flatnonzero(patients == patient)
        n_taken = min(n_most, len(own))
        chosen.append(own[((np.arange(n_taken) + 0.5) * len(own) / n_taken).astype(int)])
    return np.sort(np.concatenate(chosen))


def load_lesions(
    rows: pd.DataFrame, predicted: Predictions, size_px: int, outlines: Path | None
) -> list[Tensor]:
    """Return the lesions of slices at the input of the network, bool [S, S] each."""
    data_dir = Path(predicted.checkpoints[0]["data"])
    if outlines is None:
        return lesions.load_phantom_lesions(rows, data_dir, size_px)
    return lesions.load_outlined_lesions(rows, data_dir, outlines, size_px)


def score_baselines(parts: list[Part]) -> dict[str, Scores]:
    """Score points that need no network; a random place in the head is scored by its chance."""
    brightest, centre, chance = [], [], []
    for part in parts:
        side_px = 2 * (part.images.shape[-1] // 20) + 1  # a tenth of the side
        blurred = ndimage.uniform_filter(part.images.numpy(), (0, 0, side_px, side_px))[:, 0]
        brightest.append(score_maps(torch.from_numpy(blurred * part.heads.numpy()), part.lesions))
        centres = [ndimage.center_of_mass(head) for head in part.heads.numpy()]
        hits = [
            bool(lesion[round(row), round(column)])
            for lesion, (row, column) in zip(part.lesions, centres, strict=True)
        ]
        centre.append((np.array(hits), np.array(hits)))
        shares = compute_energy_inside(part.heads.float(), part.lesions).numpy()
        chance.append((shares, shares))
    found = {"brightest point": brightest, "centre of the head": centre, "random place": chance}
    return {name: join(scores) for name, scores in found.items()}


def score_maps(maps: Tensor, masks: Tensor) -> Scores:
    """Return hits [N] and energies inside [N] of maps [N, S, S]."""
    return point_hits(maps, masks).numpy(), compute_energy_inside(maps, masks).numpy()


def join(scores: list[Scores]) -> Scores:
    """Concatenate the scores of parts."""
    hits, energies = zip(*scores, strict=True)
    return np.concatenate(hits), np.concatenate(energies)


def score_method(parts: list[Part], method: str, seed: int | None = None) -> tuple[Scores, float]:
    """Score the maps of a method, of random networks if a seed is given; and CPU s per map."""
    scores, time_s = [], 0.0
    for position, part in enumerate(parts):
        network = part.network
        if seed is not None:
            network = randomise_weights(network, seed * len(parts) + position)
        started = time.process_time()
        maps = heatmaps.compute_heatmaps(network, part.images, part.predicted, method)
        time_s += time.process_time() - started
        scores.append(score_maps(maps, part.lesions))
    joined = join(scores)
    return joined, time_s / len(joined[0])


def summarise(scores: Scores, slices: Slices, classes: list[str]) -> dict[str, Any]:
    """Return hit rate and energy with intervals by patient, of all and of some slices."""

    def summarise_some(chosen: NDArray[Any]) -> dict[str, Any]:
        return {
            name: describe(estimate_ratio(values[chosen]), slices.patients[chosen])
            for name, values in zip(("hit_rate", "energy_inside"), scores, strict=True)
            if chosen.any()
        }

    return {
        **summarise_some(np.ones(len(slices.labels), bool)),
        "of_correct": summarise_some(slices.correct),
        "of_class": {
            name: summarise_some(slices.labels == index) for index, name in enumerate(classes)
        },
    }


def compare_by_class(
    hits: NDArray[Any], others: NDArray[Any], slices: Slices, classes: list[str]
) -> dict[str, Any]:
    """Return the difference of two hit rates with its interval by patient, of all and by class."""
    chosen = {"all": np.ones(len(hits), bool)}
    chosen |= {name: slices.labels == index for index, name in enumerate(classes)}
    compared = {
        name: compare_paired(hits[own], others[own], slices.sets[own], slices.patients[own])
        for name, own in chosen.items()
        if own.any()
    }
    return {
        name: {"difference": each["difference"], "ci95": each["ci95"]}
        for name, each in compared.items()
    }


def describe_layer(parts: list[Part], method: str) -> dict[str, Any]:
    """Return layer, cells per side and the lesions that a cell's centre hits; else nothing."""
    if method not in heatmaps.MIN_CELLS:
        return {}
    network, size_px = parts[0].network, parts[0].images.shape[-1]
    name, n_cells = find_spatial_layer(network, size_px, heatmaps.MIN_CELLS[method])
    masks = torch.cat([part.lesions for part in parts])
    return {"layer": name, "cells": n_cells, "ceiling": compute_ceiling(masks, n_cells)}


def compute_ceiling(masks: Tensor, n_cells: int) -> float:
    """Compute the share of lesions that cover the centre of a cell of an n x n grid."""
    centres = ((torch.arange(n_cells) + 0.5) * masks.shape[-1] / n_cells).long()
    return masks[:, centres][:, :, centres].flatten(1).any(1).float().mean().item()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every method on one run and print the table."""
    path, split = options.run, EvaluateConfig.split
    predicted = predictions.predict_run(path, split, None, device="cpu", batch_size=64, threads=0)
    classes = predicted.classes
    parts, slices = load(predicted, options)
    baselines = score_baselines(parts)
    figures: dict[str, Any] = {
        "notes": predicted.warnings,
        "source": options.source,
        "model": predicted.checkpoints[0]["model"],
        "image_size": parts[0].images.shape[-1],
        "n_networks": len(parts),
        "threads": torch.get_num_threads(),
        "accuracy": float(predicted.correct.mean()),
        "n_images": len(slices.labels),
        "n_correct": int(slices.correct.sum()),
        "n_patients": len(np.unique(slices.patients)),
        "default": heatmaps.DEFAULT,
        "baselines": {name: summarise(each, slices, classes) for name, each in baselines.items()},
        "methods": {},
    }
    print_head(figures)
    for method in options.methods:
        try:
            layer = describe_layer(parts, method)
        except ValueError as error:  # the network has no layer for the method
            print(f"{method}: {error}", flush=True)
            continue
        scores, time_s = score_method(parts, method)
        random = [score_method(parts, method, seed)[0] for seed in range(options.random_networks)]
        figures["methods"][method] = {
            **summarise(scores, slices, classes),
            "cpu_s": time_s,
            **layer,
            "against_brightest": compare_by_class(
                scores[0], baselines["brightest point"][0], slices, classes
            ),
            "random": {
                "hit_rate": float(np.mean([each[0].mean() for each in random])),
                "energy_inside": float(np.mean([each[1].mean() for each in random])),
            },
        }
        print_method(heatmaps.METHODS[method], figures["methods"][method])
    print(NOTICE)
    return figures


def print_head(figures: dict[str, Any]) -> None:
    """Print the warnings, the slices and the rows of the baselines."""
    for note in figures["notes"]:
        print(note)
    print(
        "{model} at {image_size} px, accuracy {accuracy:.4f}; {n_images} slices of {n_patients} "
        "patients, {n_correct} of them predicted correctly".format_map(figures)
    )
    print("| method | hit rate | random weights | energy inside | random weights | CPU s |")
    print("|---|---|---|---|---|---|")
    for name, entry in figures["baselines"].items():
        print(f"| {name} | {write(entry['hit_rate'])} | | {write(entry['energy_inside'])} | | |")


def print_method(name: str, entry: dict[str, Any]) -> None:
    """Print the row of a method."""
    cells = f" ({entry['cells']} x {entry['cells']} cells)" if "cells" in entry else ""
    print(
        f"| {name}{cells} | {write(entry['hit_rate'])} | {entry['random']['hit_rate']:.3f} "
        f"| {write(entry['energy_inside'])} | {entry['random']['energy_inside']:.3f} "
        f"| {entry['cpu_s']:.2f} |",
        flush=True,
    )


def write(figure: dict[str, Any]) -> str:
    """Return a value with its interval."""
    low, high = figure["ci95"]
    return f"{figure['value']:.3f} [{low:.3f}, {high:.3f}]"


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = cli.build_parser("pointing_game", __doc__)
    parser.add_argument("run", type=Path, help="session/RUN of --folds, or best.pt")
    parser.add_argument(
        "--outlines", type=Path, help="CSV with the columns path,outline; default: phantoms"
    )
    parser.add_argument("--source", default="", help="the name of the data, for the figures")
    parser.add_argument(
        "--per-patient", type=int, default=0, metavar="N", help="slices of a patient; 0: all"
    )
    parser.add_argument(
        "--methods", nargs="+", default=list(heatmaps.METHODS), choices=list(heatmaps.METHODS)
    )
    parser.add_argument(
        "--random-networks", type=int, default=1, metavar="N", help="random weights, for each fold"
    )
    return cli.run(measure, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
