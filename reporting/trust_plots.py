"""Pictures of how far a run is to be trusted: calibration, referral, stress, single slices."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.calibration import N_BINS, bin_scores, compute_ece, compute_risk_coverage
from reporting.canvas import LINE_STYLES, build_figure, get_palette, save

IntArray = NDArray[np.integer[Any]]
FloatArray = NDArray[np.floating[Any]]


def plot_reliability(
    curves: Mapping[str, FloatArray],
    labels: IntArray,
    path: Path,
    *,
    stamp: str | None = None,
) -> None:
    """How often the likeliest class is right, by confidence.

    Args:
        curves: Probabilities [N, K] by name, such as before and after calibration; one or two.
        labels: [N] class ids.
        path: The PNG to write.
        stamp: A word to lay over the picture, such as PHANTOM.

    Source: Guo et al. 2017, On calibration of modern neural networks.
    """
    figure = build_figure(6.4, 6.4)
    top, bottom = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    colors = get_palette(2)
    edges = np.linspace(0, 1, N_BINS + 1)
    width = 0.42 / N_BINS
    for position, (name, values) in enumerate(curves.items()):
        confidence = values.max(axis=1)
        right = values.argmax(axis=1) == labels
        bins = bin_scores(confidence)
        counts = np.bincount(bins, minlength=N_BINS)
        filled = counts > 0
        means = np.bincount(bins, weights=confidence, minlength=N_BINS)[filled] / counts[filled]
        rates = np.bincount(bins, weights=right, minlength=N_BINS)[filled] / counts[filled]
        label = f"{name}: ECE {compute_ece(confidence, right):.4f}"
        style = {"color": colors[position], "linestyle": LINE_STYLES[position]}
        top.plot(means, rates, marker="os"[position], label=label, **style)
        left = edges[:-1] + (0.06 + position * 0.44) / N_BINS
        bottom.bar(left, counts, width, align="edge", color=colors[position])
    top.plot([0, 1], [0, 1], color="grey", linewidth=0.8, label="as good as its word")
    top.set(ylabel="share that is right", xlim=(0, 1), ylim=(0, 1.02))
    top.legend(frameon=False, fontsize=9)
    bottom.set(xlabel="confidence: probability of the likeliest class", ylabel="images")
    bottom.set_yscale("symlog", linthresh=10)
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    save(figure, path, "Reliability: confidence against what came true", stamp)


def plot_risk_coverage(
    probs: FloatArray, labels: IntArray, path: Path, *, stamp: str | None = None
) -> None:
    """The error among the slices that are kept when those of least confidence are referred.

    Args:
        probs: [N, K].
        labels: [N] class ids.
        path: The PNG to write.
        stamp: A word to lay over the picture, such as PHANTOM.
    """
    kept, errors = compute_risk_coverage(probs, labels)
    figure = build_figure(6.4, 4.4)
    axes = figure.subplots()
    color = get_palette(1)[0]
    axes.step(100 * kept, 100 * errors, where="post", color=color, label="by confidence")
    axes.axhline(100 * errors[-1], color="grey", linewidth=0.8, label="at random")
    axes.set(
        xlabel="slices kept, % (the rest, of least confidence, is referred)",
        ylabel="error among the kept, %",
        xlim=(0, 101),
    )
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    save(figure, path, "Risk and coverage: what referring the unsure ones brings", stamp)


def plot_gallery(
    exhibits: Sequence[tuple[NDArray[np.uint8], FloatArray, str]],
    title: str,
    path: Path,
    *,
    stamp: str | None = None,
) -> None:
    """Slices in pairs: plain, and with the heat map laid over.

    Args:
        exhibits: Pixels uint8 [S, S], heat map [S, S] in 0..1, caption; at least one.
        title: Above the picture.
        path: The PNG to write.
        stamp: A word to lay over the picture, such as PHANTOM.
    """
    n_columns = min(4, len(exhibits))
    n_rows = -(-len(exhibits) // n_columns)
    figure = build_figure(3.4 * n_columns, 2.2 * n_rows + 0.7)
    frames = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axes in frames:
        axes.axis("off")
    for axes, (pixels, heatmap, caption) in zip(frames, exhibits, strict=False):
        side = pixels.shape[0]
        axes.imshow(np.concatenate([pixels, pixels], axis=1), cmap="gray", vmin=0, vmax=255)
        over = np.concatenate([np.zeros_like(heatmap), heatmap], axis=1)
        axes.imshow(over, cmap="inferno", alpha=0.65 * over, vmin=0, vmax=1)
        axes.axvline(side - 0.5, color="white", linewidth=1)
        axes.set_title(caption, fontsize=7)
    save(figure, path, title, stamp)


def plot_stress(stress: Mapping[str, Any], path: Path, *, stamp: str | None = None) -> None:
    """Accuracy by strength of each corruption, and of positions and probes.

    Args:
        stress: `stress` of metrics.json.
        path: The PNG to write.
        stamp: A word to lay over the picture, such as PHANTOM.
    """
    figure = build_figure(11.5, 5.0)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    clean = stress["clean"]["value"]
    kinds = stress["corruptions"]
    markers = "osD^vP*X"
    for index, (name, rows) in enumerate(kinds.items()):
        left.plot(
            [0, *(row["strength"] for row in rows)],
            [clean, *(row["accuracy"]["value"] for row in rows)],
            marker=markers[index % len(markers)],
            color=get_palette(len(kinds))[index],
            linestyle=LINE_STYLES[index % len(LINE_STYLES)],
            label=name,
        )
    left.axhline(stress["majority"], color="grey", linewidth=0.8, label="their commonest class")
    left.set(xlabel="strength (0: as they are)", ylabel="accuracy", ylim=(0, 1.02))
    left.set_xticks(range(6))
    left.grid(alpha=0.3)
    left.legend(frameon=False, fontsize=8, ncols=2, loc="lower left")
    bars = {
        "as they are": stress["clean"],
        **{name: figure for name, figure in stress["positions"].items() if name != "as stored"},
        "brightness matched": stress["probes"]["matched_brightness"]["accuracy"],
        "inside of the head blanked": stress["probes"]["blank_interior"]["accuracy"],
    }
    bars = {name: figure for name, figure in bars.items() if figure["value"] is not None}
    values = np.array([figure["value"] for figure in bars.values()])
    reach = np.array([figure["ci95"] for figure in bars.values()]).T
    rows = np.arange(len(bars))
    right.errorbar(
        values, rows, xerr=np.abs(reach - values), fmt="o", color=get_palette(1)[0], capsize=3
    )
    right.axvline(stress["majority"], color="grey", linewidth=0.8)
    right.set_yticks(rows, list(bars))
    right.invert_yaxis()
    right.set(xlim=(0, 1.02), xlabel="accuracy, 95 % interval")
    right.grid(alpha=0.3)
    save(figure, path, "Stress: degraded, turned, and robbed of what the brain says", stamp)
