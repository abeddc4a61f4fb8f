"""Measure on phantoms, whose lesions are known, whether heat maps point at the lesion.

    python -m experiments.pointing_game session/RUN/best.pt --json FILE

Each phantom of the run's test split gets a heat map for its true class by every method, from the
trained network and from networks with random weights. The table reports how often the maximum of
the map lies in the lesion, and the share of the map inside it.
"""

import argparse
import hashlib
import sys
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
from evaluation.intervals import compute_interval, estimate_ratio
from experiments import cli
from explanation.heatmaps import (
    choose_method,
    compute_energy_inside,
    compute_heatmaps,
    find_spatial_layer,
    point_hits,
    randomise_weights,
)
from helper import NOTICE, UserError
from imaging.grayscale import resize_grey
from imaging.orientation import apply_orientation, find_orientation
from imaging.reader import read_grey
from loading.image_source import SliceSource
from modeling.forward import to_unit_range
from phantoms.generator import encode_phantom, plan_phantoms, render_phantom

METHODS = ("gradcam", "occlusion")
RANDOM_SEEDS = (0, 1, 2)
AIR = 26  # smoothed grey values below it are outside the head


class Phantoms(NamedTuple):
    """Slices with their lesions, at the input size of the network.

    Attributes:
        images: fp32 [N, 1, S, S] in 0..1.
        lesions: bool [N, S, S].
        heads: bool [N, S, S], everything inside the skin.
        labels: Class indices [N].
        patients: Ids [N].
    """

    images: Tensor
    lesions: Tensor
    heads: Tensor
    labels: Tensor
    patients: NDArray[Any]


def load_phantoms(rows: pd.DataFrame, slices: SliceSource, data_dir: Path) -> Phantoms:
    """Render the phantoms again to obtain their lesion masks.

    Raises:
        UserError: The folder holds no phantoms, or this version renders them differently.
    """
    truth = data_dir / "CSV" / "phantoms.csv"
    if not truth.is_file():
        raise UserError(f"{data_dir} holds no phantoms; give a run that was trained with --phantom")
    table = pd.read_csv(truth, usecols=["seed"])
    planned = plan_phantoms(len(table), int(table["seed"].iloc[0]))
    plans = {f"Images/{plan.label}/{plan.name}": plan for plan in planned}
    pixels = slices.pixels.squeeze(1).numpy()
    lesions = []
    for path, digest in zip(rows["path"], rows["sha256"], strict=True):
        picture, mask = render_phantom(plans[path]) if path in plans else (None, None)
        content = b"" if picture is None else encode_phantom(plans[path], picture)
        if mask is None or hashlib.sha256(content).hexdigest() != digest:
            raise UserError(
                f"{data_dir / path} is not a phantom of this version; run prepare.py again"
            )
        orientation = find_orientation(read_grey(content))
        oriented = apply_orientation(mask.astype(np.uint8) * 255, orientation)
        lesions.append(resize_grey(oriented, pixels.shape[-1]) >= 128)
    return Phantoms(
        images=to_unit_range(slices.pixels),
        lesions=torch.from_numpy(np.stack(lesions)),
        heads=torch.from_numpy(np.stack([find_head(picture) for picture in pixels])),
        labels=slices.labels,
        patients=rows["group"].to_numpy(),
    )


def find_head(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the largest component brighter than air, holes filled: bool [S, S]."""
    smooth = ndimage.gaussian_filter(picture.astype(np.float32), len(picture) / 64)
    components, n_components = ndimage.label(smooth > AIR)
    if not n_components:
        return np.zeros(picture.shape, bool)
    largest = 1 + int(np.argmax(np.bincount(components.ravel())[1:]))
    return np.asarray(ndimage.binary_fill_holes(components == largest), dtype=bool)


def score_method(
    network: nn.Module, phantoms: Phantoms, classes: list[str], method: str
) -> dict[str, Any]:
    """Compute hit rate, its interval over patients and energy inside; an empty map is a miss."""
    maps = compute_heatmaps(network, phantoms.images, phantoms.labels, method)
    hits = point_hits(maps, phantoms.lesions)
    estimate = estimate_ratio(hits.numpy())
    assert estimate is not None
    return {
        "hit_rate": estimate.value,
        "ci95": list(compute_interval(estimate, phantoms.patients)),
        "hit_rate_of_class": {
            name: hits[phantoms.labels == index].float().mean().item()
            for index, name in enumerate(classes)
            if (phantoms.labels == index).any()
        },
        "energy_inside": compute_energy_inside(maps, phantoms.lesions).mean().item(),
        "empty": int((maps.amax((1, 2)) == 0).sum()),
    }


def compute_chance(phantoms: Phantoms) -> dict[str, float]:
    """Compute hit rates without a network: random pixel, random head pixel, brightest spot."""
    lesions, heads = phantoms.lesions, phantoms.heads
    areas = (lesions & heads).sum((1, 2)) / heads.sum((1, 2)).clamp(min=1)
    blurred = ndimage.uniform_filter(phantoms.images.numpy(), (0, 0, 9, 9))[:, 0]
    return {
        "chance": lesions.float().mean().item(),
        "chance_in_head": areas.mean().item(),
        "head_share": heads.float().mean().item(),
        "brightest": point_hits(torch.from_numpy(blurred), lesions).float().mean().item(),
    }


def compute_ceiling(lesions: Tensor, n_cells: int) -> float:
    """Compute the share of lesions that cover the centre of a cell of an n x n grid."""
    centres = ((torch.arange(n_cells) + 0.5) * lesions.shape[-1] / n_cells).long()
    return lesions[:, centres][:, :, centres].flatten(1).any(1).float().mean().item()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every method on one checkpoint and print the table."""
    path, split = options.checkpoint, EvaluateConfig.split
    predicted = predictions.predict_run(path, split, None, device="cpu", batch_size=64, threads=0)
    [checkpoint], [part] = predicted.checkpoints, predicted.member_slices
    network, classes = part.network, predicted.classes
    phantoms = load_phantoms(predicted.rows, part.slices, Path(checkpoint["data"]))
    image_size = phantoms.images.shape[-1]
    figures: dict[str, Any] = {
        "stamp": predictions.PHANTOM,
        "model": checkpoint["model"],
        "image_size": image_size,
        "accuracy": float(predicted.correct.mean()),
        "n_images": len(phantoms.labels),
        "n_patients": len(np.unique(phantoms.patients)),
        **compute_chance(phantoms),
        "auto": choose_method(network),
        "methods": {},
    }
    for method in METHODS:
        try:
            entry = score_method(network, phantoms, classes, method)
        except ValueError as error:  # Grad-CAM does not support this network
            print(f"{method}: {error}")
            continue
        scores = [
            score_method(randomise_weights(network, seed), phantoms, classes, method)
            for seed in RANDOM_SEEDS
        ]
        entry["random"] = {
            name: float(np.mean([score[name] for score in scores]))
            for name in ("hit_rate", "energy_inside")
        }
        figures["methods"][method] = entry
    if "gradcam" in figures["methods"]:
        layer, n_cells = find_spatial_layer(network, image_size)
        figures["methods"]["gradcam"] |= {
            "layer": layer,
            "cells": n_cells,
            "ceiling": compute_ceiling(phantoms.lesions, n_cells),
        }
    print_table(figures)
    return figures


def print_table(figures: dict[str, Any]) -> None:
    """Print the warning, the chance levels and one row per method."""
    print(figures["stamp"])
    print(
        "{model} at {image_size} px, accuracy {accuracy:.4f}; {n_images} slices of {n_patients} "
        "patients; `auto` is {auto}\n"
        "chance {chance:.4f}, within the head {chance_in_head:.4f} (which fills {head_share:.2f} "
        "of the picture); the brightest spot {brightest:.4f}".format_map(figures)
    )
    print("| method | hit rate | random weights | energy inside | random weights | empty maps |")
    print("|---|---|---|---|---|---|")
    for method, entry in figures["methods"].items():
        low, high = entry["ci95"]
        print(
            f"| {method} | {entry['hit_rate']:.3f} [{low:.3f}, {high:.3f}] "
            f"| {entry['random']['hit_rate']:.3f} | {entry['energy_inside']:.3f} "
            f"| {entry['random']['energy_inside']:.3f} | {entry['empty']} |"
        )
    if "gradcam" in figures["methods"]:
        text = (
            "Grad-CAM uses {cells} x {cells} cells of {layer}; {ceiling:.3f} of the lesions are hit"
        )
        print(f"{text} by a cell centre".format_map(figures["methods"]["gradcam"]))
    print(NOTICE)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = cli.build_parser("pointing_game", __doc__)
    parser.add_argument("checkpoint", type=Path, help="session/RUN/best.pt of a run with --phantom")
    return cli.run(measure, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
