"""What all pictures share: size and layout, title, footer and stamp, colours, wrapped names.

The figures are made without pyplot, so that no window, backend or global state is touched.
"""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from common.atomic_files import atomic_path

DPI = 120
FOOTER = "research use only · not a medical device"
LINE_STYLES = ("-", "--", "-.", ":")  # a second mark beside the colour


def build_figure(width_inch: float, height_inch: float) -> Figure:
    """An empty figure whose parts keep clear of each other."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(width_inch, height_inch), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path, title: str, stamp: str | None) -> None:
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


def get_palette(n_colors: int) -> Any:
    """Colours that colour-blind readers can tell apart."""
    return sns.color_palette("colorblind", n_colors)


def wrap(text: str, width: int = 18) -> str:
    """Text in lines of at most `width` letters, broken at spaces and underscores where it can."""
    lines = textwrap.wrap(text.replace("_", "_ "), width)
    return "\n".join(line.replace("_ ", "_") for line in lines)
