"""Whether heat maps point at the lesion, on phantoms, whose lesions are known.

    python -m experiments.pointing_game session/RUN/best.pt --json FILE

Every phantom of the run's own test split gets a map for its true class by each method, from the
trained network and from copies of it with random weights, and the table says how often the maximum
of the map lies in the lesion and what share of the map does.
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
from common.atomic_files import write_json
from evaluation import predictions
from evaluation.intervals import compute_interval, estimate_ratio
from explanation.heatmaps import (
    choose_method,
    compute_energy_inside,
    compute_heatmaps,
    count_cells,
    find_spatial_layer,
    point_hits,
    randomise_weights,
)
from helper import NOTICE, UserError, read_commit, run_verb
from imaging.grayscale import resize_grey
from imaging.orientation import find_position, turn
from imaging.reader import read_grey
from loading.image_source import Slices
from model import to_unit_range
from phantoms.generator import encode_phantom, plan_phantoms, render_phantom

METHODS = ("gradcam", "occlusion")
RANDOM_SEEDS = (0, 1, 2)
AIR = 26  # grey values under it, when smoothed, are outside the head


class Phantoms(NamedTuple):
    """Slices with their truth, at the network's size.

    Attributes:
        images: fp32 [N, 1, S, S] in 0..1.
        lesions: bool [N, S, S].
        heads: bool [N, S, S], everything within the skin.
        labels: Class ids [N].
        patients: Ids [N].
    """

    images: Tensor
    lesions: Tensor
    heads: Tensor
    labels: Tensor
    patients: NDArray[Any]


def load_phantoms(rows: pd.DataFrame, slices: Slices, data_dir: Path) -> Phantoms:
    """Render the planned rows again, for their lesions.

    Raises:
        UserError: The folder holds no phantoms, or others than this version would render.
    """
    truth = data_dir / "CSV" / "phantoms.csv"
    if not truth.is_file():
        raise UserError(
            f"{data_dir} holds no phantoms: the place of a lesion is known in them alone"
        )
    table = pd.read_csv(truth, usecols=["seed"])
    planned = plan_phantoms(len(table), int(table["seed"].iloc[0]))
    plans = {f"Images/{plan.label}/{plan.name}": plan for plan in planned}
    pixels = slices.pixels.squeeze(1).numpy()
    lesions = []
    for path, digest in zip(rows["path"], rows["sha256"], strict=True):
        if path not in plans:
            raise UserError(f"{data_dir / path} is no phantom of its folder; run prepare.py anew")
        picture, mask = render_phantom(plans[path])
        content = encode_phantom(plans[path], picture)
        if hashlib.sha256(content).hexdigest() != digest:
            raise UserError(f"{data_dir / path} is rendered otherwise here; run prepare.py anew")
        turned = turn(mask.astype(np.uint8) * 255, find_position(read_grey(content)))
        lesions.append(resize_grey(turned, pixels.shape[-1]) >= 128)
    return Phantoms(
        images=to_unit_range(slices.pixels),
        lesions=torch.from_numpy(np.stack(lesions)),
        heads=torch.from_numpy(np.stack([find_head(picture) for picture in pixels])),
        labels=slices.labels,
        patients=rows["group"].to_numpy(),
    )


def find_head(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The largest piece that is brighter than air, holes filled: bool [S, S]."""
    smooth = ndimage.gaussian_filter(picture.astype(np.float32), len(picture) / 64)
    pieces, n_pieces = ndimage.label(smooth > AIR)
    if not n_pieces:
        return np.zeros(picture.shape, bool)
    largest = 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    return np.asarray(ndimage.binary_fill_holes(pieces == largest), dtype=bool)


def judge_maps(maps: Tensor, phantoms: Phantoms, classes: list[str]) -> dict[str, Any]:
    """Hit rate with its interval over patients, per class, and energy inside; empty maps miss."""
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


def judge_random(
    network: nn.Module, phantoms: Phantoms, classes: list[str], method: str
) -> dict[str, Any]:
    """The same figures, each averaged over networks that have learnt nothing."""
    judged = []
    for seed in RANDOM_SEEDS:
        untrained = randomise_weights(network, seed)
        maps = compute_heatmaps(untrained, phantoms.images, phantoms.labels, method)
        judged.append(judge_maps(maps, phantoms, classes))
    names = ("hit_rate", "energy_inside")
    return {name: float(np.mean([figures[name] for figures in judged])) for name in names}


def describe_chance(phantoms: Phantoms) -> dict[str, float]:
    """What pointing without a network reaches: anywhere, anywhere in the head, at the brightest."""
    lesions, heads = phantoms.lesions, phantoms.heads
    areas = (lesions & heads).sum((1, 2)) / heads.sum((1, 2)).clamp(min=1)
    blurred = ndimage.uniform_filter(phantoms.images.numpy(), (0, 0, 9, 9))[:, 0]
    return {
        "chance": lesions.float().mean().item(),
        "chance_in_head": areas.mean().item(),
        "head_share": heads.float().mean().item(),
        "brightest": point_hits(torch.from_numpy(blurred), lesions).float().mean().item(),
    }


def find_ceiling(lesions: Tensor, n_cells: int) -> float:
    """How often a grid of cells could hit at all: the lesion covers the centre of one of them."""
    centres = ((torch.arange(n_cells) + 0.5) * lesions.shape[-1] / n_cells).long()
    return lesions[:, centres][:, :, centres].flatten(1).any(1).float().mean().item()


def run_study(path: Path) -> dict[str, Any]:
    """All figures of one checkpoint."""
    config = EvaluateConfig((path,), device="cpu")
    judged = predictions.judge(
        path, config.split, None, device="cpu", batch_size=config.batch_size, threads=0
    )
    [kept], [part] = judged.checkpoints, judged.parts
    network, labels, classes = part.network, part.slices.labels, judged.classes
    phantoms = load_phantoms(judged.rows, part.slices, Path(kept["data"]))
    size_px = phantoms.images.shape[-1]
    figures: dict[str, Any] = {
        "stamp": predictions.PHANTOM,
        "model": kept["model"],
        "image_size": size_px,
        "accuracy": float(judged.correct.mean()),
        "n_images": len(labels),
        "n_patients": len(np.unique(phantoms.patients)),
        **describe_chance(phantoms),
        "auto": choose_method(network),
        "methods": {},
        "commit": read_commit(),
    }
    for method in METHODS:
        try:
            maps = compute_heatmaps(network, phantoms.images, labels, method)
        except ValueError as error:  # Grad-CAM where it cannot be right
            print(f"{method}: {error}")
            continue
        entry = judge_maps(maps, phantoms, classes)
        entry["random"] = judge_random(network, phantoms, classes, method)
        figures["methods"][method] = entry
    if "gradcam" in figures["methods"]:
        name = find_spatial_layer(network, size_px)
        n_cells = count_cells(network, size_px)
        grid = {"layer": name, "cells": n_cells, "ceiling": find_ceiling(phantoms.lesions, n_cells)}
        figures["methods"]["gradcam"] |= grid
    return figures


def print_table(figures: dict[str, Any]) -> None:
    """The stamp, what knowing nothing reaches, and a row a method."""
    print(figures["stamp"])
    print(
        f"{figures['model']} at {figures['image_size']} px, accuracy {figures['accuracy']:.4f}; "
        f"{figures['n_images']} slices of {figures['n_patients']} patients; "
        f"`auto` is {figures['auto']}"
    )
    print(
        f"chance {figures['chance']:.4f}, within the head {figures['chance_in_head']:.4f} "
        f"(it fills {figures['head_share']:.2f} of the picture); "
        f"the brightest place {figures['brightest']:.4f}"
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
    for method, entry in figures["methods"].items():
        rates = ", ".join(f"{name} {rate:.3f}" for name, rate in entry["hit_rate_of_class"].items())
        print(f"{method}, hit rate of each class: {rates}")
        if "layer" in entry:
            print(
                f"{method} looks at {entry['layer']}, {entry['cells']} x {entry['cells']} cells: "
                f"{entry['ceiling']:.3f} of the lesions cover the centre of one"
            )
    print(NOTICE)


def study(options: argparse.Namespace) -> None:
    """Measure, print, and write where asked to."""
    figures = run_study(options.checkpoint)
    print_table(figures)
    if options.json:
        write_json(options.json, figures)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="experiments.pointing_game", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="session/RUN/best.pt of a run with --phantom")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    return run_verb(study, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
