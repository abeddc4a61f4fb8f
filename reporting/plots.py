"""Pictures of a run's results: arrays and a path in, a PNG out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

from reporting.canvas import LINE_STYLES, build_figure, get_palette, save, wrap

IntArray = NDArray[np.integer[Any]]
FloatArray = NDArray[np.floating[Any]]


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
    names = [wrap(name) for name in classes]
    matrix_inch = max(3.2, 0.6 * n_classes)
    side_inch = matrix_inch + _compute_width_inch(names) + 0.8
    figure = build_figure(2 * side_inch + 0.2, side_inch + 0.8)
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
    save(
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
    figure = build_figure(7.6, 5.2)
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
    save(figure, path, "ROC curves, each class against the rest", stamp)


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
    figure = build_figure(7.6, 5.2)
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
    save(figure, path, "Precision and recall of each class, level lines: prevalence", stamp)


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
    figure = build_figure(12.0, 4.0)
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
    save(figure, path, title, stamp)


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
    figure = build_figure(width_inch, 4.6)
    axes = figure.subplots()
    keys = ("precision", "recall", "f1")
    positions = np.arange(len(per_class))
    for offset, key, color in zip((-0.27, 0.0, 0.27), keys, get_palette(3), strict=True):
        values = [figures[key]["value"] for figures in per_class.values()]
        label = "F1" if key == "f1" else key
        axes.bar(
            positions + offset, [value or 0.0 for value in values], 0.25, color=color, label=label
        )
        for position, value in zip(positions + offset, values, strict=True):
            text = "–" if value is None else f"{value:.2f}"
            axes.text(position, (value or 0) + 0.01, text, ha="center", fontsize=7)
    names = [f"{wrap(name)}\n({figures['support']})" for name, figures in per_class.items()]
    axes.set_xticks(positions, names)
    _place_names(axes, names, (width_inch - 2.0) / len(names))
    axes.set(ylim=(0, 1.08), ylabel="value", xlabel="class (images)")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9)
    save(figure, path, "Precision, recall and F1 of each class", stamp)


def _each_class(classes: Sequence[str]) -> list[tuple[int, str, dict[str, Any]]]:
    """Id, wrapped name and line style of each class."""
    return [
        (
            index,
            wrap(name),
            {"color": color, "linestyle": LINE_STYLES[index % len(LINE_STYLES)]},
        )
        for index, (name, color) in enumerate(zip(classes, get_palette(len(classes)), strict=True))
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
        text = wrap(f"no curve where one side has no images: {', '.join(left_out)}", 56)
        axes.text(0.5, 0.03, text, ha="center", va="bottom", fontsize=8, color="dimgrey")


def _place_names(axes: Axes, names: Sequence[str], room_inch: float) -> None:
    """Class names under the axes, upright where `room_inch` for each is too little."""
    rotation = 90 if _compute_width_inch(names) > room_inch else 0
    axes.tick_params(axis="x", rotation=rotation, labelsize=9)


def _compute_width_inch(names: Sequence[str]) -> float:
    """Width of the longest line of wrapped names in 9-point letters, 0.077 inch each."""
    return 0.077 * max(len(line) for name in names for line in name.splitlines())
