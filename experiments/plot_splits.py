"""Plot the figures of experiments.known_patients for several data sets side by side.

python -m experiments.plot_splits bangladesh.json cheng.json --out splits.png
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from common.atomic_files import atomic_path
from helper import run_command
from reporting.plots import build_figure

LABELS = {
    "image": "random split\nof images",
    "duplicate": "duplicates\ntogether",
    "strong": "strong links\ntogether",
    "picture": "groups found\nin pictures",
    "patient": "whole\npatients",
}
SERIES = {"accuracy": ("per slice", -0.1, "o"), "accuracy_per_patient": ("per patient", 0.1, "s")}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="experiments.plot_splits", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="JSON files of known_patients")
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    return run_command(plot_files, parser.parse_args(argv))


def plot_files(options: argparse.Namespace) -> None:
    """Draw one panel for each file."""
    figure = build_figure("Accuracy by kind of split", 4.6 * len(options.files), 3.8)
    panels = figure.subplots(1, len(options.files), sharey=True, squeeze=False)[0]
    for axes, path in zip(panels, options.files, strict=True):
        plot_panel(axes, json.loads(path.read_text("utf-8")), options.model)
    panels[0].set_ylabel("accuracy, 95 % interval by patient")
    panels[-1].legend(loc="lower left", fontsize=8)
    with atomic_path(options.out) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def plot_panel(axes: Axes, figures: dict[str, Any], model: str) -> None:
    """Draw accuracies with intervals, and the brightness baseline, by kind of split."""
    rows = figures["models"][model]["splits"]
    places = range(len(rows))
    for key, (label, shift, marker) in SERIES.items():
        values = [row[key]["value"] for row in rows.values()]
        lows, highs = zip(*(row[key]["ci95"] for row in rows.values()), strict=True)
        errors = [
            [value - low for value, low in zip(values, lows, strict=True)],
            [high - value for value, high in zip(values, highs, strict=True)],
        ]
        axes.errorbar(
            *([place + shift for place in places], values, errors),
            fmt=marker,
            capsize=3,
            label=label,
        )
    baseline = [row["baselines"]["brightness"] for row in rows.values()]
    axes.plot(places, baseline, "k_", markersize=18, label="brightness baseline")
    axes.set_xticks(list(places), [LABELS[name] for name in rows], fontsize=8)
    axes.set_ylim(0.6, 1.0)
    axes.set_title(
        f"{figures['data']}: {figures['n_images']:,} slices of {figures['n_patients']} patients",
        fontsize=9,
    )


if __name__ == "__main__":
    sys.exit(main())
