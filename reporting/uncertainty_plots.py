"""Plots of calibration and of the review of uncertain predictions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from evaluation.calibration import (
    N_BINS,
    bin_scores,
    compute_ece,
    compute_risk_coverage,
    estimate_augrc,
)
from reporting.plots import LINE_STYLES, FloatArray, IntArray, build_figure, get_palette


def plot_reliability(curves: Mapping[str, FloatArray], labels: IntArray) -> Figure:
    """Plot the accuracy of the predicted class by confidence, and the number of images.

    Args:
        curves: One or two arrays of probabilities [N, K] by name, such as before and after
            calibration.
        labels: [N] class ids.

    Source: Guo et al. 2017, On calibration of modern neural networks.
    """
    figure = build_figure("Reliability: accuracy by confidence", 6.4, 6.4)
    top, bottom = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    colors = get_palette(2)
    edges = np.linspace(0, 1, N_BINS + 1)
    for index, (name, probs) in enumerate(curves.items()):
        confidence = probs.max(axis=1)
        correct = probs.argmax(axis=1) == labels
        bins = bin_scores(confidence)
        counts = np.bincount(bins, minlength=N_BINS)
        filled = counts > 0
        means = np.bincount(bins, weights=confidence, minlength=N_BINS)[filled] / counts[filled]
        rates = np.bincount(bins, weights=correct, minlength=N_BINS)[filled] / counts[filled]
        label = f"{name}: ECE {compute_ece(confidence, correct):.4f}"
        style = {"color": colors[index], "linestyle": LINE_STYLES[index]}
        top.plot(means, rates, marker="os"[index], label=label, **style)
        left = edges[:-1] + (0.06 + index * 0.44) / N_BINS
        bottom.bar(left, counts, 0.42 / N_BINS, align="edge", color=colors[index])
    top.plot([0, 1], [0, 1], color="grey", linewidth=0.8, label="perfect calibration")
    top.set(ylabel="share of correct predictions", xlim=(0, 1), ylim=(0, 1.02))
    top.legend(frameon=False, fontsize=9)
    bottom.set(xlabel="confidence: probability of the predicted class", ylabel="images")
    bottom.set_yscale("symlog", linthresh=10)
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    return figure


def plot_risk_coverage(
    probs: FloatArray, labels: IntArray, review: Sequence[Mapping[str, Any]] | None
) -> Figure:
    """Plot the error rate of the slices that remain when the least confident go to review.

    Args:
        probs: [N, K].
        labels: [N] class ids.
        review: `review` of metrics.json: the thresholds set on val, drawn with their intervals.
    """
    coverage, errors = compute_risk_coverage(probs, labels)
    figure = build_figure("Review: error rate of the remaining slices", 6.4, 4.4)
    axes = figure.subplots()
    curve, points = get_palette(2)
    label = f"by confidence: AUGRC {estimate_augrc(probs, labels).value:.4f}"
    axes.step(100 * (1 - coverage), 100 * errors, where="post", color=curve, label=label)
    axes.axhline(100 * errors[-1], color="grey", linewidth=0.8, label="no review")
    rows = [row for row in review or () if row["accuracy_of_the_rest"]["value"] is not None]
    if rows:
        shares = [100 * row["share_for_review"] for row in rows]
        values = 100 * (1 - np.array([row["accuracy_of_the_rest"]["value"] for row in rows]))
        bounds = 100 * (1 - np.array([row["accuracy_of_the_rest"]["ci95"] for row in rows])).T
        label = "thresholds set on val, 95 % interval"
        style = {"fmt": "o", "color": points, "capsize": 3, "markersize": 4}
        axes.errorbar(shares, values, yerr=np.abs(bounds - values), label=label, **style)
    axes.set(xlabel="least confident slices sent for review, %", xlim=(-1, 101))
    axes.set_ylabel("error rate of the remaining slices, %")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    return figure
