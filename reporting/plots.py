"""Plots of classification results as figures, and `save`, which writes one as a PNG file.

Figures are built without pyplot, so no window, backend or global state of matplotlib changes.
"""

import textwrap
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

from common.atomic_files import atomic_path

IntArray = NDArray[np.integer[Any]]
FloatArray = NDArray[np.floating[Any]]

DPI = 120
FOOTER = "research use only · not a medical device"
LINE_STYLES = ("-", "--", "-.", ":")  # lines differ in style as well as in colour
MARKERS = "osD^vP*X"


# ---- shared by all plots


def build_figure(title: str, width_inch: float, height_inch: float) -> Figure:
    """Return a figure with title, footer and constrained layout."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(width_inch, height_inch), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    figure.supxlabel(FOOTER, fontsize=7, color="dimgrey")
    return figure


def save(figure: Figure, path: Path, stamp: str | None = None) -> None:
    """Write the figure as PNG atomically, with `stamp`, such as PHANTOM, as a watermark."""
    if stamp:
        figure.suptitle(f"{figure.get_suptitle()} · {stamp}")
        width_inch, height_inch = figure.get_size_inches()
        # A letter is about 0.7 times its size wide; the stamp spans 0.6 of the diagonal.
        length_inch = 0.6 * np.hypot(width_inch, height_inch)
        size_pt = 72 * min(length_inch / (0.7 * len(stamp)), height_inch / 4)
        figure.text(
            0.5,
            0.5,
            stamp,
            fontsize=size_pt,
            color="red",
            alpha=0.07,
            rotation=np.degrees(np.arctan2(height_inch, width_inch)),
            ha="center",
            va="center",
            weight="bold",
            zorder=10,
            in_layout=False,
        )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def get_palette(n_colors: int) -> Any:
    """Return colours that colour-blind readers can distinguish."""
    return sns.color_palette("colorblind", n_colors)


def wrap(text: str, width: int = 18) -> str:
    """Break text at spaces and underscores into lines of at most `width` characters."""
    lines = textwrap.wrap(text.replace("_", "_ "), width)
    return "\n".join(line.replace("_ ", "_") for line in lines)


# ---- plots


def plot_confusion_matrix(confusion: IntArray, classes: Sequence[str]) -> Figure:
    """Plot counts and shares of each true class side by side.

    Args:
        confusion: [K, K] counts, rows true, columns predicted.
        classes: K names.
    """
    n_classes = len(classes)
    names = [wrap(name) for name in classes]
    matrix_inch = max(3.2, 0.6 * n_classes)
    side_inch = matrix_inch + _compute_width_inch(names) + 0.8
    n_images = int(confusion.sum())
    accuracy = 100 * np.trace(confusion) / max(1, n_images)
    title = f"Confusion matrix: accuracy {accuracy:.1f} % of {n_images} images"
    figure = build_figure(title, 2 * side_inch + 0.2, side_inch + 0.8)
    n_true = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(n_true, 1)
    share_texts = np.where(n_true > 0, np.char.mod("%.1f %%", 100 * shares), "–")
    panels = figure.subplots(1, 2)
    for axes, values, texts, top, title in (
        (panels[0], confusion, confusion.astype(str), None, "images"),
        (panels[1], shares, share_texts, 1.0, "share of the true class"),
    ):
        sns.heatmap(
            values,
            ax=axes,
            annot=texts,
            fmt="",
            cmap="Blues",
            vmin=0,
            vmax=top,
            square=True,
            cbar=False,
            linewidths=0.5,
            linecolor="lightgrey",
            annot_kws={"size": 9 if n_classes <= 6 else 8},
            xticklabels=names,
            yticklabels=names,
        )
        axes.set(title=title, xlabel="predicted", ylabel="true")
        axes.tick_params(axis="y", rotation=0, labelsize=9)
        _label_classes(axes, names, 0.9 * matrix_inch / n_classes)
    return figure


def plot_accuracies(
    accuracies: Mapping[str, Mapping[str, Mapping[str, Any]]], baselines: Mapping[str, float]
) -> Figure:
    """Plot accuracies with their 95 % intervals, and the baselines as vertical lines.

    Args:
        accuracies: For each unit, such as "accuracy per patient", the estimate of each run.
        baselines: Accuracy of each baseline.
    """
    runs = list(next(iter(accuracies.values())))
    n_units = len(accuracies)
    figure = build_figure("Accuracy with 95 % intervals", 9.6, 1.8 + 0.36 * n_units * len(runs))
    axes = figure.subplots()
    beside = axes.get_yaxis_transform()  # x in widths of the axes, y in rows
    for index, (name, estimates) in enumerate(accuracies.items()):
        values = np.array([estimates[run]["value"] for run in runs])
        bounds = np.array([estimates[run]["ci95"] for run in runs]).T
        rows = np.arange(len(runs)) + 0.7 * ((index + 0.5) / n_units - 0.5)
        color, errors = get_palette(n_units)[index], np.abs(bounds - values)
        axes.errorbar(
            values, rows, xerr=errors, fmt=MARKERS[index], color=color, capsize=3, label=name
        )
        for row, value in zip(rows, values, strict=True):
            text = f"{value:.4f}"
            axes.text(1.02, row, text, transform=beside, va="center", fontsize=9, color=color)
    above = axes.get_xaxis_transform()  # x in accuracy, y in heights of the axes
    lowest = min(baselines.values(), default=0.0)
    for name, value in baselines.items():
        axes.axvline(value, color="grey", linestyle="--", linewidth=1)
        side = "right" if value == lowest else "left"  # two names do not overlap
        text = f"{name} baseline"
        axes.text(value, 1.02, text, transform=above, ha=side, fontsize=8, color="dimgrey")
    axes.set_yticks(np.arange(len(runs)), [wrap(run, 24) for run in runs])
    axes.set(xlabel="accuracy", ylim=(len(runs) - 0.5, -0.5))
    axes.set_xlim(right=1.005)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.1, 1.03), frameon=False, fontsize=8)
    return figure


def plot_class_metrics(per_class: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Plot precision, recall and F1 of each class with intervals, a dash where undefined.

    Args:
        per_class: `per_class` of metrics.json.
    """
    names = [f"{wrap(name)}\n({metrics['support']})" for name, metrics in per_class.items()]
    title = "Precision, recall and F1 of each class (images), 95 % intervals"
    figure = build_figure(title, 9.6, 1.6 + 0.9 * len(names))
    axes = figure.subplots()
    beside = axes.get_yaxis_transform()  # x in widths of the axes, y in rows
    columns = (("precision", "precision"), ("recall", "recall"), ("f1", "F1"))
    for index, (key, label) in enumerate(columns):
        color, offset = get_palette(3)[index], 0.26 * (index - 1)
        for row, estimate in enumerate(metrics[key] for metrics in per_class.values()):
            value, text = estimate["value"], f"{label} –"
            if value is not None:
                text = f"{label} {value:.2f}"
                low, high = estimate["ci95"] or (value, value)
                axes.plot([low, high], [row + offset] * 2, color=color, linewidth=1.5)
                axes.plot(value, row + offset, MARKERS[index], color=color, markersize=5)
            place = (1.02, row + offset)
            axes.text(*place, text, transform=beside, va="center", fontsize=8, color=color)
    axes.set_yticks(np.arange(len(names)), names)
    axes.set(ylim=(len(names) - 0.5, -0.5), xlim=(0, 1.01))
    axes.grid(axis="x", alpha=0.3)
    return figure


def plot_roc_curves(probs: FloatArray, labels: IntArray, classes: Sequence[str]) -> Figure:
    """Plot the ROC curve of each class against the rest, with its area in the legend.

    Args:
        probs: [N, K].
        labels: [N] class ids.
        classes: K names; a class with none or all of the images gets no curve and is named.
    """
    figure = build_figure("ROC curves, each class against the rest", 7.6, 5.2)
    axes = figure.subplots()
    for is_class, scores, name, style in _iterate_classes(probs, labels, classes):
        false_rates, true_rates, _ = roc_curve(is_class, scores)
        label = f"{name}\nAUC {auc(false_rates, true_rates):.3f}"
        axes.plot(false_rates, true_rates, label=label, **style)
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, label="chance\nAUC 0.500")
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    _finish_curves(axes, labels, classes)
    return figure


def plot_pr_curves(probs: FloatArray, labels: IntArray, classes: Sequence[str]) -> Figure:
    """Plot the precision-recall curve of each class against the rest, with average precision (AP).

    The thin horizontal line of a class is its prevalence, the precision of a random guess.

    Args:
        probs: [N, K].
        labels: [N] class ids.
        classes: K names; a class with none or all of the images gets no curve and is named.
    """
    figure = build_figure(
        "Precision and recall of each class, horizontal lines: prevalence", 7.6, 5.2
    )
    axes = figure.subplots()
    for is_class, scores, name, style in _iterate_classes(probs, labels, classes):
        precisions, recalls, _ = precision_recall_curve(is_class, scores)
        prevalence = is_class.mean()
        mean_precision = average_precision_score(is_class, scores)
        label = f"{name}\nAP {mean_precision:.3f}, prevalence {prevalence:.2f}"
        axes.step(recalls, precisions, where="post", label=label, **style)
        axes.axhline(prevalence, color=style["color"], linewidth=0.8, alpha=0.6)
    axes.set(xlabel="recall", ylabel="precision")
    _finish_curves(axes, labels, classes)
    return figure


def plot_training_curves(history: pd.DataFrame, best_epoch: int) -> Figure:
    """Plot losses, val scores and learning rate by epoch, and mark the best epoch.

    Args:
        history: Columns epoch, train_loss, val_loss, val_accuracy, val_macro_f1, lr.
        best_epoch: Epoch of the weights in best.pt.
    """
    score = float(history.loc[history["epoch"] == best_epoch, "val_macro_f1"].iloc[0])
    title = f"Training: best val macro F1 {score:.3f} at epoch {best_epoch}"
    figure = build_figure(title, 12.0, 4.0)
    colors = get_palette(4)
    panels = figure.subplots(1, 3)
    curves = (
        ("loss", {"train_loss": "train", "val_loss": "val"}),
        ("val score", {"val_accuracy": "accuracy", "val_macro_f1": "macro F1"}),
        ("learning rate", {"lr": "learning rate"}),
    )
    for axes, (title, columns) in zip(panels, curves, strict=True):
        for (column, label), color, style in zip(
            columns.items(), colors, LINE_STYLES, strict=False
        ):
            marks = {"marker": "o", "markersize": 3, "color": color}
            axes.plot(history["epoch"], history[column], style, label=label, **marks)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    panels[1].axvline(best_epoch, color="grey", linewidth=0.8)
    panels[1].plot(best_epoch, score, "*", color=colors[3], markersize=12, label="best macro F1")
    for axes in panels[:2]:
        axes.legend(frameon=False)
    panels[2].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    return figure


def plot_robustness(stress: Mapping[str, Any]) -> Figure:
    """Plot accuracy by strength of each corruption, and of orientations and probes.

    Args:
        stress: `stress` of metrics.json.
    """
    figure = build_figure(
        "Robustness: corruptions, orientations and probes for shortcuts", 11.5, 5.0
    )
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    corruptions = stress["corruptions"]
    colors = get_palette(len(corruptions))
    for index, (name, rows) in enumerate(corruptions.items()):
        left.plot(
            [0, *(row["strength"] for row in rows)],
            [stress["clean"]["value"], *(row["accuracy"]["value"] for row in rows)],
            marker=MARKERS[index % len(MARKERS)],
            color=colors[index],
            linestyle=LINE_STYLES[index % len(LINE_STYLES)],
            label=name,
        )
    left.axhline(stress["majority"], color="grey", linewidth=0.8, label="most frequent class")
    left.set(xlabel="strength (0: unchanged)", ylabel="accuracy", ylim=(0, 1.02))
    left.set_xticks(range(6))
    left.legend(frameon=False, fontsize=8, ncols=2, loc="lower left")
    changes = {name: row for name, row in stress["orientations"].items() if name != "as stored"}
    points = {
        "unchanged": stress["clean"],
        **changes,
        "brightness matched": stress["probes"]["matched_brightness"]["accuracy"],
        "inside of the head blanked": stress["probes"]["blank_interior"]["accuracy"],
    }
    points = {name: point for name, point in points.items() if point["value"] is not None}
    values = np.array([point["value"] for point in points.values()])
    bounds = np.array([point["ci95"] for point in points.values()]).T
    rows = np.arange(len(points))
    errors = np.abs(bounds - values)
    right.errorbar(values, rows, xerr=errors, fmt="o", color=get_palette(1)[0], capsize=3)
    right.axvline(stress["majority"], color="grey", linewidth=0.8)
    right.set_yticks(rows, list(points))
    right.invert_yaxis()
    right.set(xlim=(0, 1.02), xlabel="accuracy, 95 % interval")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


# ---- parts of plots


def _iterate_classes(
    probs: FloatArray, labels: IntArray, classes: Sequence[str]
) -> Iterator[tuple[NDArray[np.bool_], FloatArray, str, dict[str, Any]]]:
    """Yield membership [N], scores [N], name and line style of each class that has a curve."""
    colors = get_palette(len(classes))
    for index, name in enumerate(classes):
        is_class = labels == index
        if is_class.any() and not is_class.all():
            style = {"color": colors[index], "linestyle": LINE_STYLES[index % len(LINE_STYLES)]}
            yield is_class, probs[:, index], wrap(name), style


def _finish_curves(axes: Axes, labels: IntArray, classes: Sequence[str]) -> None:
    """Set limits and legend, and name the classes that have no curve."""
    counts = np.bincount(labels, minlength=len(classes))
    left_out = [
        name for name, count in zip(classes, counts, strict=True) if count in (0, len(labels))
    ]
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.set_aspect("equal")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, fontsize=8)
    if left_out:
        text = wrap(f"no curve, as class or rest has no images: {', '.join(left_out)}", 56)
        axes.text(0.5, 0.03, text, ha="center", va="bottom", fontsize=8, color="dimgrey")


def _label_classes(axes: Axes, names: Sequence[str], space_inch: float) -> None:
    """Set the class names under the axes, vertical if wider than `space_inch` per class."""
    rotation = 90 if _compute_width_inch(names) > space_inch else 0
    axes.tick_params(axis="x", rotation=rotation, labelsize=9)


def _compute_width_inch(names: Sequence[str]) -> float:
    """Return the width of the longest line of wrapped names, 0.077 inch per 9-point letter.

    Chinese, Japanese and Korean characters have twice this width.
    """
    lines = [line for name in names for line in name.splitlines()]
    wide = [sum(unicodedata.east_asian_width(letter) in "WF" for letter in line) for line in lines]
    return 0.077 * max(len(line) + more for line, more in zip(lines, wide, strict=True))
