"""Build two data sets of which the second holds altered copies of slices of the first."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.planted_duplicates import plant_duplicate
from phantoms.generator import plan_phantoms, render_phantom

N_PATIENTS = 30
SIDE_PX = 256


def render_slices() -> list[np.ndarray]:
    """Return one slice of each of N_PATIENTS generated patients, uint8 [SIDE_PX, SIDE_PX]."""
    plans = {plan.patient: plan for plan in plan_phantoms(100, seed=9)}
    size = (SIDE_PX, SIDE_PX)
    return [
        np.asarray(Image.fromarray(render_phantom(plan)[0]).resize(size))
        for plan in list(plans.values())[:N_PATIENTS]
    ]


def alter(pixels: np.ndarray, number: int) -> np.ndarray:
    """Return a flipped, rotated, shifted and recompressed copy of a slice."""
    return plant_duplicate(pixels, np.random.default_rng(number))


def write_slices(folder: Path, slices: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write slices as PNG by their path below a folder."""
    for name, pixels in slices:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
