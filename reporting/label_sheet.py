"""Contact sheet of the first cases of the label review."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

import dataset
from evaluation.label_review import CONFLICT
from imaging.bit_depth import ValueScaler
from imaging.grayscale import resize_grey
from imaging.reader import read_grey
from reporting.plots import build_figure

SHOWN, COLUMNS, SIDE_PX = 24, 6, 256
NAME_LETTERS = 22


def plot_cases(cases: pd.DataFrame, data_dir: Path) -> Figure:
    """Plot the first SHOWN cases, as stored in their files, with both classes.

    Args:
        cases: At least one, from `find_cases`.
        data_dir: The folder that the paths are relative to.
    """
    shown, ranges = cases.head(SHOWN), dataset.read_ranges(data_dir)
    n_columns = min(COLUMNS, len(shown))
    n_rows = -(-len(shown) // n_columns)
    title = f"Labels to check: {len(shown)} of {len(cases)} cases"
    figure = build_figure(title, max(4.0, 2.3 * n_columns), 2.9 * n_rows + 0.7)
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, (_, case) in zip(panels, shown.iterrows(), strict=False):
        pixels = resize_grey(read_grey(data_dir / case["path"], ValueScaler(ranges)), SIDE_PX)
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
        axes.set_title(describe_case(case), fontsize=7)
    return figure


def describe_case(case: pd.Series) -> str:
    """Return the caption of a case: label, suggestion, extent and file name."""
    name = case["path"].rpartition("/")[2]
    if len(name) > NAME_LETTERS:
        name = f"…{name[-NAME_LETTERS + 1 :]}"
    source = "a copy is" if case["reason"] == CONFLICT else "predicted"
    return (
        f"{case['rank']}. label {case['label']} ({case['p_label']:.2f})\n"
        f"{source} {case['suggested']} ({case['confidence']:.2f})\n"
        f"{case['n_slices_of_group_disagreeing']} of {case['n_slices_of_group']} slices, {name}"
    )
