"""Say what the wrongly classified slices have in common, and draw them on a contact sheet.

    python -m experiments.error_kinds results/RUN [results/RUN ...] --data DATA \\
      --outlines lesions.csv --sheet errors.png --json FILE

Each results/RUN has the predictions of a run with --folds on the same slices; a slice counts by the
share of runs that are wrong. Slices are divided into thirds by size of the lesion, contrast of the
lesion to its surroundings and brightness, and by class. The sheet shows the slices that most runs
have wrong, each with its outline, its label and what was predicted. It shows slices of patients, so
keep it out of a repository.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from common.fonts import draw_text
from evaluation.intervals import describe, estimate_ratio
from experiments import cli, lesions
from helper import UserError
from imaging.grayscale import Pixels
from preparation.contact_sheets import save_sheet

THIRDS = ("lowest third", "middle third", "highest third")
RING_SHARE = 0.03  # of the side: how far around the lesion its surroundings reach
TILE_PX, TITLE_PX = 220, 34
MOST_WRONG = 5  # patients that are named


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = cli.build_parser("error_kinds", __doc__)
    parser.add_argument("results", type=Path, nargs="+", help="results/RUN of runs with --folds")
    parser.add_argument("--data", type=Path, required=True, help="prepared folder of these runs")
    parser.add_argument("--outlines", type=Path, required=True, help="table path,outline")
    parser.add_argument("--sheet", type=Path, help="picture to write")
    parser.add_argument("--shown", type=int, default=60, help="slices on the sheet")
    return cli.run(measure, parser.parse_args(argv))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Divide the slices, print the error rates and draw the sheet."""
    slices = load_slices(options.results)
    pictures = list(lesions.read_outlined(slices.index, options.data, options.outlines))
    slices = slices.assign(**describe_lesions(pictures))
    kinds = divide(slices)
    for name, row in kinds.items():
        print(
            "| {} | {n} | {n_patients} | {value:.3f} [{ci95[0]:.3f}, {ci95[1]:.3f}] |".format(
                name, **row
            )
        )
    patients = count_patients(slices)
    print(
        "{n_errors:.0f} errors, mean of the runs, of {n_with_errors} patients; half of them of "
        "{n_with_half}; {n_always_wrong} slices of {n_patients_always_wrong} patients are wrong in "
        "every run".format(**patients)
    )
    if options.sheet:
        draw_sheet(slices, pictures, options.sheet, options.shown)
    return {
        **{"data": options.data.name, "runs": [path.name for path in options.results]},
        **patients,
        "kinds": kinds,
    }


def count_patients(slices: pd.DataFrame) -> dict[str, Any]:
    """Return how many patients the errors are of; the most wrong ones with their errors."""
    errors = slices.groupby("patient")["wrong"].sum().sort_values(ascending=False, kind="stable")
    always = slices[slices["wrong"] == 1]
    return {
        "n_errors": float(errors.sum()),
        "n_with_errors": int((errors > 0).sum()),
        "n_with_half": int((errors.cumsum() < errors.sum() / 2).sum()) + 1,
        "n_always_wrong": len(always),
        "n_patients_always_wrong": int(always["patient"].nunique()),
        "most_errors": errors.head(MOST_WRONG).round(2).to_dict(),
    }


def load_slices(results: Sequence[Path]) -> pd.DataFrame:
    """Load the predictions of all runs; `wrong` is the share of runs that are wrong.

    Raises:
        UserError: The runs predicted different slices.
    """
    tables = [pd.read_csv(path / "predictions.csv").set_index("path") for path in results]
    first = tables[0]
    for path, table in zip(results, tables, strict=True):
        if set(table.index) != set(first.index):
            raise UserError(
                f"{path}: its slices are not those of {results[0]}; give runs of one set"
            )
    columns = [name for name in first if name.startswith("p_")]
    probs = np.mean([table.loc[first.index, columns] for table in tables], axis=0)
    classes = np.array([name.removeprefix("p_") for name in columns])
    wrong = [table.loc[first.index, "predicted"] != first["label"] for table in tables]
    return first[["label", "patient", "group"]].assign(
        wrong=np.mean(wrong, axis=0),
        predicted=classes[probs.argmax(axis=1)],
        confidence=probs.max(axis=1),
    )


def describe_lesions(
    pictures: Sequence[tuple[Pixels, NDArray[np.bool_]]],
) -> dict[str, NDArray[np.float64]]:
    """Return size of the lesion (share of the head), its contrast, and brightness of the head.

    The contrast is the mean grey value of the lesion minus that of a ring around it, the brightness
    the mean of the head, both in 0..1.
    """
    rows = []
    for pixels, lesion in pictures:
        head = lesions.find_head(pixels) | lesion
        ring = ndimage.binary_dilation(lesion, iterations=round(RING_SHARE * len(pixels)))
        around = ring & head & ~lesion
        grey = pixels / 255
        contrast = grey[lesion].mean() - grey[around].mean() if around.any() else 0.0
        rows.append((lesion.sum() / head.sum(), contrast, grey[head].mean()))
    return dict(
        zip(("size of the lesion", "contrast", "brightness"), np.array(rows).T, strict=True)
    )


def divide(slices: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return the error rate of all slices, of each class and of each third, by patient."""
    parts = {"all": slices}
    for label, part in slices.groupby("label"):
        parts[f"class {label}"] = part
    for (label, predicted), part in slices[slices["wrong"] > 0].groupby(["label", "predicted"]):
        if label != predicted:
            parts[f"{label}, called {predicted}"] = part
    for name in ("size of the lesion", "contrast", "brightness"):
        third = pd.qcut(slices[name], len(THIRDS), labels=THIRDS)
        for label in THIRDS:
            parts[f"{name}: {label}"] = slices[third == label]
    return {
        name: {
            **{"n": len(part), "n_patients": int(part["patient"].nunique())},
            **describe(estimate_ratio(part["wrong"].to_numpy()), part["group"].to_numpy()),
        }
        for name, part in parts.items()
    }


def draw_sheet(
    slices: pd.DataFrame,
    pictures: Sequence[tuple[Pixels, NDArray[np.bool_]]],
    path: Path,
    n_shown: int,
) -> None:
    """Draw the slices that most runs have wrong, those of the highest confidence first."""
    order = np.lexsort([-slices["confidence"], -slices["wrong"]])
    wrong = [place for place in order if slices["wrong"].iloc[place] > 0.5][:n_shown]
    save_sheet(path, [draw_tile(slices.iloc[place], *pictures[place]) for place in wrong], 6)


def draw_tile(row: pd.Series, pixels: Pixels, lesion: NDArray[np.bool_]) -> Image.Image:
    """Draw a slice with the edge of its lesion below its label and prediction."""
    edge = lesion & ~ndimage.binary_erosion(lesion, iterations=2)
    colour = np.repeat(pixels[..., None], 3, axis=2)
    colour[edge] = (255, 200, 0)
    tile = Image.new("RGB", (TILE_PX, TILE_PX + TITLE_PX), "white")
    tile.paste(Image.fromarray(colour).resize((TILE_PX, TILE_PX)), (0, TITLE_PX))
    draw = ImageDraw.Draw(tile)
    draw_text(draw, (2, 1), f"{row['label']}, {row['patient']}", 11, "black")
    draw_text(draw, (2, 16), f"called {row['predicted']} {row['confidence']:.2f}", 11, "black")
    return tile


if __name__ == "__main__":
    sys.exit(main())
