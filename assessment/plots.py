"""Pictures of a run's results: arrays and a path in, a PNG out.

The figures are made without pyplot, so that no window, backend or global state is touched.
"""

import textwrap
from collections.abc import Mapping, Sequence
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

from assessment.calibration import N_BINS, bin_scores, compute_ece, compute_risk_coverage
from helper import atomic_path

IntArray = NDArray[np.integer[Any]]
FloatArray = NDArray[np.floating[Any]]

DPI = 120
FOOTER = "research use only · not a medical device"
LINE_STYLES = ("-", "--", "-.", ":")  # a second mark beside the colour


def plot_confusion_matrix(
    confusion: IntArray, classes: Sequence[str], path: Path, *, stamp: str | None = None
) -> None:
    """Counts and shares of each true class, side by side; the diagonal is what was right.

    Args:
        confusion: [K, K] counts, rows true, columns predicted.
        classes: K names.
        path: The PNG to write.
        stamp: A word to lay over the picture, such as PHANTOM.
    """
    n_classes = len(classes)
    names = [_wrap(name) for name in classes]
    matrix_inch = max(3.2, 0.6 * n_classes)
    side_inch = matrix_inch + _compute_width_inch(names) + 0.8
    figure = _build_figure(2 * side_inch + 0.2, side_inch + 0.8)
    n_true = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(n_true, 1)
    share_texts = np.where(n_true > 0, np.char.mod("%.1f %%", 100 * shares), "–")
    accuracy = np.trace(confusion) / max(1, confusion.sum())
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
        _place_names(axes, names, 0.9 * matrix_inch / n_classes)
    n_images = int(confusion.sum())
    _save(
        figure,
        path,
        f"Confusion matrix: accuracy {100 * accuracy:.1f} % of {n_images} images",
        stamp,
    )


def plot_roc_curves(
    probs: FloatArray,
    labels: IntArray,
    classes: Sequence[str],
    path: Path,
    *,
    stamp: str | None = None,
) -> None:
    """Each class against the rest: true positives over false positives, area in the legend.

    Args:
        probs: [N, K].
        labels: [N] class ids.
        classes: K names; those without images on both sides are left out and named.
        path: The PNG to write.
        stamp: A word to lay over the picture, such as PHANTOM.
    """
    figure = _build_figure(7.6, 5.2)
    axes = figure.subplots()
    for index, label, style in _each_class(classes):
        is_class = labels == index
        if is_class.any() and not is_class.all():
            false_rates, true_rates, _ = roc_curve(is_class, probs[:, index])
            area = auc(false_rates, true_rates)
            axes.plot(false_rates, true_rates, label=f"{label}\nAUC {area:.3f}", **style)
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, label="chance\nAUC 0.500")
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    _finish_curves(axes, labels, classes)
    _save(figure, path, "ROC curves, each class against the rest", stamp)


def plot_pr_curves(
    probs: FloatArray,
    labels: IntArray,
    classes: Sequence[str],
    path: Path,
    *,
    stamp: str | None = None,
) -> None:
    """Each class against the rest: precision over recall, with average precision (AP).

    The thin level line of a class is its prevalence: what guessing reaches.

    Args:
        probs: [N, K].
        labels: [N] class ids.
        classes: K names; those without images on both sides are left out and named.
        path: The PNG to write.
        stamp: A word to lay over the picture, such as PHANTOM.
    """
    figure = _build_figure(7.6, 5.2)
    axes = figure.subplots()
    for index, label, style in _each_class(classes):
        is_class = labels == index
        if is_class.any() and not is_class.all():
            precisions, recalls, _ = precision_recall_curve(is_class, probs[:, index])
            mean_precision = average_precision_score(is_class, probs[:, index])
            prevalence = is_class.mean()
            axes.step(
                recalls,
                precisions,
                where="post",
                label=f"{label}\nAP {mean_precision:.3f}, prevalence {prevalence:.2f}",
                **style,
            )
            axes.axhline(prevalence, color=style["color"], linewidth=0.8, alpha=0.6)
    axes.set(xlabel="recall", ylabel="precision")
    _finish_curves(axes, labels, classes)
    _save(figure, path, "Precision and recall of each class, level lines: prevalence", stamp)


def plot_reliability(
    raw_probs: FloatArray,
    probs: FloatArray,
    labels: IntArray,
    path: Path,
    *,
    stamp: str | None = None,
) -> None:
    """How often the likeliest class is right, by confidence, before and after calibration.

    Args:
        raw_probs: [N, K], plain softmax.
        probs: [N, K], calibrated.
        labels: [N] class ids.
        path: The PNG to write.
        stamp: A word to lay over the picture, such as PHANTOM.

    Source: Guo et al. 2017, On calibration of modern neural networks.
    """
    figure = _build_figure(6.4, 6.4)
    top, bottom = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    colors = _palette(2)
    edges = np.linspace(0, 1, N_BINS + 1)
    width = 0.42 / N_BINS
    for position, (name, values) in enumerate((("softmax", raw_probs), ("calibrated", probs))):
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
    _save(figure, path, "Reliability: confidence against what came true", stamp)


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
    figure = _build_figure(6.4, 4.4)
    axes = figure.subplots()
    color = _palette(1)[0]
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
    _save(figure, path, "Risk and coverage: what referring the unsure ones brings", stamp)


def plot_training_curves(
    history: pd.DataFrame, best_epoch: int, path: Path, *, stamp: str | None = None
) -> None:
    """Loss, val scores and learning rate by epoch, the epoch that was kept marked.

    Args:
        history: Columns epoch, train_loss, val_loss, val_accuracy, val_macro_f1, lr.
        best_epoch: Whose weights the checkpoint holds.
        path: The PNG to write.
        stamp: A word to lay over the picture, such as PHANTOM.
    """
    figure = _build_figure(12.0, 4.0)
    colors = sns.color_palette("colorblind")
    panels = figure.subplots(1, 3)
    curves = (
        (panels[0], "loss", (("train_loss", "train"), ("val_loss", "val"))),
        (panels[1], "val score", (("val_accuracy", "accuracy"), ("val_macro_f1", "macro F1"))),
        (panels[2], "learning rate", (("lr", "learning rate"),)),
    )
    for axes, title, columns in curves:
        for (column, label), color, style in zip(columns, colors, LINE_STYLES, strict=False):
            axes.plot(
                history["epoch"],
                history[column],
                style,
                color=color,
                label=label,
                marker="o",
                markersize=3,
            )
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    score = float(history.loc[history["epoch"] == best_epoch, "val_macro_f1"].iloc[0])
    panels[1].axvline(best_epoch, color="grey", linewidth=0.8)
    panels[1].plot(best_epoch, score, "*", color=colors[3], markersize=12, label="best macro F1")
    title = f"Training: best val macro F1 {score:.3f} at epoch {best_epoch}"
    for axes in panels[:2]:
        axes.legend(frameon=False)
    panels[2].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    _save(figure, path, title, stamp)


def plot_class_metrics(
    per_class: Mapping[str, Mapping[str, Any]], path: Path, *, stamp: str | None = None
) -> None:
    """Precision, recall and F1 of each class as bars; a dash where it is undefined.

    Args:
        per_class: `per_class` of metrics.json.
        path: The PNG to write.
        stamp: A word to lay over the picture, such as PHANTOM.
    """
    width_inch = max(6.4, 1.15 * len(per_class) + 2.4)
    figure = _build_figure(width_inch, 4.6)
    axes = figure.subplots()
    keys = ("precision", "recall", "f1")
    positions = np.arange(len(per_class))
    for offset, key, color in zip((-0.27, 0.0, 0.27), keys, _palette(3), strict=True):
        values = [figures[key]["value"] for figures in per_class.values()]
        label = "F1" if key == "f1" else key
        axes.bar(
            positions + offset, [value or 0.0 for value in values], 0.25, color=color, label=label
        )
        for position, value in zip(positions + offset, values, strict=True):
            text = "–" if value is None else f"{value:.2f}"
            axes.text(position, (value or 0) + 0.01, text, ha="center", fontsize=7)
    names = [f"{_wrap(name)}\n({figures['support']})" for name, figures in per_class.items()]
    axes.set_xticks(positions, names)
    _place_names(axes, names, (width_inch - 2.0) / len(names))
    axes.set(ylim=(0, 1.08), ylabel="value", xlabel="class (images)")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9)
    _save(figure, path, "Precision, recall and F1 of each class", stamp)


def _build_figure(width_inch: float, height_inch: float) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(width_inch, height_inch), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path, title: str, stamp: str | None) -> None:
    """Add title, footer and stamp, and write the PNG, complete or not at all."""
    figure.suptitle(f"{title} · {stamp}" if stamp else title)
    figure.supxlabel(FOOTER, fontsize=7, color="dimgrey")
    if stamp:
        width_inch, height_inch = figure.get_size_inches()
        # A letter is about 0.7 of its size wide: the word spans 0.6 of the diagonal, in points.
        size = 72 * min(
            0.6 * np.hypot(width_inch, height_inch) / (0.7 * len(stamp)), height_inch / 4
        )
        figure.text(
            0.5,
            0.5,
            stamp,
            fontsize=size,
            color="red",
            alpha=0.13,
            rotation=np.degrees(np.arctan2(height_inch, width_inch)),
            ha="center",
            va="center",
            weight="bold",
            zorder=10,
            in_layout=False,
        )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def _each_class(classes: Sequence[str]) -> list[tuple[int, str, dict[str, Any]]]:
    """Id, wrapped name and line style of each class."""
    return [
        (
            index,
            _wrap(name),
            {"color": color, "linestyle": LINE_STYLES[index % len(LINE_STYLES)]},
        )
        for index, (name, color) in enumerate(zip(classes, _palette(len(classes)), strict=True))
    ]


def _finish_curves(axes: Axes, labels: IntArray, classes: Sequence[str]) -> None:
    """Limits, legend beside the axes, and the names of the classes that have no curve."""
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
        text = _wrap(f"no curve where one side has no images: {', '.join(left_out)}", 56)
        axes.text(0.5, 0.03, text, ha="center", va="bottom", fontsize=8, color="dimgrey")


def _palette(n_colors: int) -> Any:
    return sns.color_palette("colorblind", n_colors)


def _place_names(axes: Axes, names: Sequence[str], room_inch: float) -> None:
    """Class names under the axes, upright where `room_inch` for each is too little."""
    rotation = 90 if _compute_width_inch(names) > room_inch else 0
    axes.tick_params(axis="x", rotation=rotation, labelsize=9)


def _compute_width_inch(names: Sequence[str]) -> float:
    """Width of the longest line of wrapped names in 9-point letters, 0.077 inch each."""
    return 0.077 * max(len(line) for name in names for line in name.splitlines())


def _wrap(text: str, width: int = 18) -> str:
    """Text in lines of at most `width` letters, broken at spaces and underscores where it can."""
    lines = textwrap.wrap(text.replace("_", "_ "), width)
    return "\n".join(line.replace("_ ", "_") for line in lines)
