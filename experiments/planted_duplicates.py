"""Plant copies among the slices of a data folder and see what the finder makes of them.

    python -m experiments.planted_duplicates --data data --json planted_copies.json
    python -m experiments.planted_duplicates --data data/phantom --copies 300

Of phantoms slice and patient are known, so precision and recall of both ids are told as well.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from common.atomic_files import write_json
from duplicates.finder import Copies, find_copies
from duplicates.sift_features import THUMBNAIL_PX
from helper import read_commit
from imaging.grayscale import resize_grey
from imaging.reader import read_grey
from preparation.manifest import load_manifest

Bytes = npt.NDArray[np.uint8]


def plant_copy(picture: Bytes, rng: np.random.Generator) -> Bytes:
    """A copy as such data sets hold them: uint8 [H, W] to the same shape.

    Flipped or not, turned by any angle, shifted by up to 10 % of the side, zoomed by up to 10 %,
    gamma 0.8 to 1.25, saved as JPEG of quality 60 to 95; what was outside is black or streaked.
    """
    height, width = picture.shape
    start = picture[:, ::-1] if rng.random() < 0.5 else picture
    middle = ((width - 1) / 2, (height - 1) / 2)
    matrix = cv2.getRotationMatrix2D(middle, rng.uniform(0, 360), rng.uniform(0.9, 1.1))
    matrix[:, 2] += rng.uniform(-0.1, 0.1, 2) * np.array([width, height])
    border = cv2.BORDER_REPLICATE if rng.random() < 0.5 else cv2.BORDER_CONSTANT
    moved = cv2.warpAffine(np.ascontiguousarray(start), matrix, (width, height), borderMode=border)
    gamma = np.exp(rng.uniform(np.log(0.8), np.log(1.25)))
    toned = np.rint(255 * (moved / 255) ** gamma).astype(np.uint8)
    quality = int(rng.integers(60, 96))
    content = cv2.imencode(".jpg", toned, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_GRAYSCALE), np.uint8)


def plant_copies(
    frame: pd.DataFrame, data_dir: Path, n_copies: int, seed: int
) -> Iterator[tuple[str, str, Bytes]]:
    """Name, original's sha256 and thumbnail of copies of as many slices, chosen at random."""
    rng = np.random.default_rng(seed)
    for number, row in enumerate(rng.choice(len(frame), n_copies, replace=False)):
        copy = plant_copy(read_grey(data_dir / frame["path"].iloc[row]), rng)
        yield f"planted {number:05d}", frame["sha256"].iloc[row], resize_grey(copy, THUMBNAIL_PX)


def read_thumbnails(frame: pd.DataFrame, data_dir: Path) -> dict[str, Bytes]:
    """Thumbnails by sha256."""
    paths = zip(frame["sha256"], frame["path"], strict=True)
    return {digest: resize_grey(read_grey(data_dir / path), THUMBNAIL_PX) for digest, path in paths}


def measure_planted(copies: Copies, originals: Mapping[str, str]) -> dict[str, float]:
    """Shares in [0, 1] of planted copies that were found, higher is better."""
    slices, groups = copies.number()
    links = copies.tabulate()
    linked = {
        frozenset(ends)
        for ends in links.loc[links["kind"] == "slice", ["first", "second"]].itertuples(index=False)
    }
    found = pd.DataFrame(
        {
            "link": [frozenset(pair) in linked for pair in originals.items()],
            "slice": [slices[copy] == slices[digest] for copy, digest in originals.items()],
            "group": [groups[copy] == groups[digest] for copy, digest in originals.items()],
        }
    )
    return {f"recall_{name}": float(found[name].mean()) for name in found}


def measure_classes(copies: Copies, labels: Mapping[str, str]) -> dict[str, Any]:
    """How many links join slices of one class: a check, for the finder never sees a class."""
    links = copies.tabulate()
    same = links["first"].map(labels) == links["second"].map(labels)
    kept = links["kind"] == "slice"
    return {
        "slice_links": int(kept.sum()),
        "slice_links_same_class": float(same[kept].mean()),
        "group_links": len(links),
        "group_links_same_class": float(same.mean()),
        "by_score": {
            str(band): {"links": int(rows.size), "same_class": float(rows.mean())}
            for band, rows in same.groupby(
                pd.cut(links["score"], [11, 12, 14, 17, 20, 25, 30, 50, 200]), observed=True
            )
        },
    }


def measure_ids(found: Mapping[str, int], truth: Mapping[str, str]) -> dict[str, float]:
    """Precision and recall of pairs that share an id, each in [0, 1], higher is better."""
    table = pd.DataFrame({"found": found, "truth": truth}).dropna()

    def count_pairs(keys: list[str]) -> int:
        sizes = table.groupby(keys).size()
        return int((sizes * (sizes - 1) // 2).sum())

    both = count_pairs(["found", "truth"])
    return {
        "precision": both / max(1, count_pairs(["found"])),
        "recall": both / max(1, count_pairs(["truth"])),
    }


def run_study(data_dir: Path, n_copies: int, seed: int) -> dict[str, Any]:
    """Plant, find, measure."""
    frame = load_manifest(data_dir)
    frame = frame[frame["width"] > 0].drop_duplicates("sha256").reset_index(drop=True)
    thumbnails = read_thumbnails(frame, data_dir)
    labels = dict(zip(frame["sha256"], frame["label"], strict=True))
    originals: dict[str, str] = {}
    for copy, digest, thumbnail in plant_copies(frame, data_dir, n_copies, seed):
        originals[copy], thumbnails[copy], labels[copy] = digest, thumbnail, labels[digest]
    copies = find_copies(thumbnails)
    slices, groups = copies.number()
    figures: dict[str, Any] = {
        "slices": len(frame),
        "planted": n_copies,
        "seed": seed,
        "commit": read_commit(),
        **measure_planted(copies, originals),
        **measure_classes(copies, labels),
        "largest_slice": int(pd.Series(slices).value_counts().iloc[0]),
        "largest_group": int(pd.Series(groups).value_counts().iloc[0]),
    }
    if (data_dir / "CSV" / "phantoms.csv").exists():
        for name, found in (("slice", slices), ("group", groups)):
            truth = dict(zip(frame["sha256"], frame[name], strict=True))
            truth |= {copy: truth[digest] for copy, digest in originals.items()}
            figures[f"true_{name}"] = measure_ids(found, truth)
        # neighbours of one phantom patient that look alike to the pixel count as one slice
        figures["slices_of_one_patient"] = measure_ids(slices, truth)["precision"]
    return figures


def main(argv: list[str] | None = None) -> int:
    """Print the figures, and write them where asked to."""
    parser = argparse.ArgumentParser(prog="experiments.planted_duplicates", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="a prepared folder")
    parser.add_argument("--copies", type=int, default=1000, help="how many are planted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(argv)
    figures = run_study(options.data, options.copies, options.seed)
    for name, value in figures.items():
        print(f"{name}: {value}")
    if options.json:
        write_json(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
