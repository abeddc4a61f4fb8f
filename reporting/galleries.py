"""Galleries of the worst errors and the least certain predictions, each with its heat map."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm

from evaluation.ensembles import Predictions
from explanation import heatmaps
from modeling.forward import to_unit_range
from reporting.plots import build_figure


class GalleryItem(NamedTuple):
    """A slice with its heat map and caption.

    Attributes:
        pixels: uint8 [S, S].
        heatmap: fp32 [S, S] in 0..1, for the predicted class.
        caption: True class, predicted class and file name.
    """

    pixels: NDArray[np.uint8]
    heatmap: NDArray[np.float32]
    caption: str


class Gallery(NamedTuple):
    """Slices chosen by one rule.

    Attributes:
        name: Of the plot.
        title: The rule.
        items: At least one.
    """

    name: str
    title: str
    items: list[GalleryItem]


def select(predictions: Predictions, count: int) -> list[Gallery]:
    """Return the errors of highest and the predictions of lowest confidence, one a distinct slice.

    Args:
        predictions: With the slices of each network.
        count: Number of slices in each gallery; a gallery without slices is left out.
    """
    confidence = predictions.calibrated.probs.max(axis=1)
    most, least = (np.argsort(sign * confidence, kind="stable") for sign in (-1, 1))
    rules = (
        ("errors", "Errors of highest confidence", most[~predictions.correct[most]]),
        ("least_certain", "Predictions of lowest confidence", least),
    )
    galleries = [
        Gallery(name, title, _build_items(predictions, order, count))
        for name, title, order in rules
    ]
    return [gallery for gallery in galleries if gallery.items]


def plot_gallery(items: Sequence[GalleryItem], title: str) -> Figure:
    """Plot slices in pairs: plain, and with the heat map overlaid.

    Args:
        items: At least one.
        title: Title of the plot.
    """
    n_columns = min(4, len(items))
    n_rows = -(-len(items) // n_columns)
    figure = build_figure(title, 3.4 * n_columns, 2.2 * n_rows + 0.7)
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, (pixels, heatmap, caption) in zip(panels, items, strict=False):
        axes.imshow(np.concatenate([pixels, pixels], axis=1), cmap="gray", vmin=0, vmax=255)
        overlay = np.concatenate([np.zeros_like(heatmap), heatmap], axis=1)
        axes.imshow(overlay, cmap="inferno", alpha=0.65 * overlay, vmin=0, vmax=1)
        axes.axvline(pixels.shape[0] - 0.5, color="white", linewidth=1)
        axes.set_title(caption, fontsize=7)
    return figure


def _build_items(
    predictions: Predictions, order: NDArray[np.int64], count: int
) -> list[GalleryItem]:
    distinct = ~predictions.rows["duplicate_set"].iloc[order].duplicated().to_numpy()
    rows = order[distinct][:count]
    return [
        _build_item(predictions, int(row))
        for row in tqdm(rows, "heat maps", unit="slice", leave=False, disable=None)
    ]


def _build_item(predictions: Predictions, row: int) -> GalleryItem:
    starts = np.cumsum([0, *(len(member.slices) for member in predictions.member_slices)])
    index = int(np.searchsorted(starts, row, side="right")) - 1
    member = predictions.member_slices[index]
    pixels = member.slices.take(torch.tensor([row - int(starts[index])]))
    probs = predictions.calibrated.probs[row]
    predicted = int(probs.argmax())
    device = next(member.network.parameters()).device
    images = to_unit_range(pixels.to(device))
    heatmap = heatmaps.compute_heatmaps(member.network, images, torch.tensor([predicted]))[0]
    record = predictions.rows.iloc[row]
    caption = (
        f"true {record['label']}, predicted {predictions.classes[predicted]} "
        f"({probs[predicted]:.2f})\n{record['path'].rpartition('/')[2]}"
    )
    return GalleryItem(pixels[0, 0].cpu().numpy(), heatmap.numpy(), caption)
