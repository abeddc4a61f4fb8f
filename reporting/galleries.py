"""The slices worth a look: the worst errors and the least certain, each with its heat map."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from evaluation.predictions import Verdicts
from explanation import heatmaps
from model import to_unit_range


class Exhibit(NamedTuple):
    """A slice with what the network said of it and what it rested on.

    Attributes:
        pixels: uint8 [S, S].
        heatmap: fp32 [S, S] in 0..1, for the predicted class.
        caption: Truth, verdict and file.
    """

    pixels: NDArray[np.uint8]
    heatmap: NDArray[np.float32]
    caption: str


def show_errors(verdicts: Verdicts, count: int) -> list[Exhibit]:
    """The wrong verdicts of highest confidence, one a distinct slice."""
    confidence = verdicts.calibrated.probs.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    return _exhibit(verdicts, order[~verdicts.correct[order]], count)


def show_least_certain(verdicts: Verdicts, count: int) -> list[Exhibit]:
    """The verdicts of lowest confidence, right or wrong, one a distinct slice."""
    confidence = verdicts.calibrated.probs.max(axis=1)
    return _exhibit(verdicts, np.argsort(confidence, kind="stable"), count)


def describe_method(verdicts: Verdicts) -> str:
    """How the heat maps were made."""
    method = heatmaps.choose_method(verdicts.parts[0].network)
    return {"gradcam": "Grad-CAM", "occlusion": "occlusion"}[method]


def _exhibit(verdicts: Verdicts, order: NDArray[np.int64], count: int) -> list[Exhibit]:
    distinct = ~verdicts.rows["slice"].iloc[order].duplicated().to_numpy()
    rows = order[distinct][:count]
    return [
        _explain(verdicts, int(row))
        for row in tqdm(rows, "heat maps", unit="slice", leave=False, disable=None)
    ]


def _explain(verdicts: Verdicts, row: int) -> Exhibit:
    starts = np.cumsum([0, *(len(part.slices) for part in verdicts.parts)])
    position = int(np.searchsorted(starts, row, side="right")) - 1
    part = verdicts.parts[position]
    pixels = part.slices.take(torch.tensor([row - int(starts[position])]))
    probs = verdicts.calibrated.probs[row]
    predicted = int(probs.argmax())
    device = next(part.network.parameters()).device
    heatmap = heatmaps.compute_heatmaps(
        part.network, to_unit_range(pixels.to(device)), torch.tensor([predicted])
    )[0]
    record = verdicts.rows.iloc[row]
    caption = (
        f"{record['label']}, called {verdicts.classes[predicted]} ({probs[predicted]:.2f})\n"
        f"{record['path'].rpartition('/')[2]}"
    )
    return Exhibit(pixels[0, 0].cpu().numpy(), heatmap.numpy(), caption)
