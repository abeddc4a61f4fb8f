"""Plant altered duplicates among the slices of a prepared folder and measure the duplicate search.

    python -m experiments.planted_duplicates --data data --json planted.json
    python -m experiments.planted_duplicates --data data/phantom --count 300

For phantoms, slices and patients are known, so precision and recall of both ids are also measured.
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

from duplicates.finder import Duplicates, find_duplicates
from duplicates.sift_features import THUMBNAIL_PX
from experiments import cli
from imaging.grayscale import resize_grey
from imaging.reader import read_grey
from preparation.manifest import load_manifest

Bytes = npt.NDArray[np.uint8]


def plant_duplicate(picture: Bytes, rng: np.random.Generator) -> Bytes:
    """Return an altered duplicate of a picture, uint8 [H, W], in the same shape.

    Flipped or not, rotated by any angle, shifted by up to 10 % of the side, zoomed by up to 10 %,
    gamma 0.8 to 1.25, JPEG quality 60 to 95; the border is black or replicated.
    """
    height, width = picture.shape
    start = picture[:, ::-1] if rng.random() < 0.5 else picture
    centre = ((width - 1) / 2, (height - 1) / 2)
    matrix = cv2.getRotationMatrix2D(centre, rng.uniform(0, 360), rng.uniform(0.9, 1.1))
    matrix[:, 2] += rng.uniform(-0.1, 0.1, 2) * np.array([width, height])
    border = cv2.BORDER_REPLICATE if rng.random() < 0.5 else cv2.BORDER_CONSTANT
    moved = cv2.warpAffine(np.ascontiguousarray(start), matrix, (width, height), borderMode=border)
    gamma = np.exp(rng.uniform(np.log(0.8), np.log(1.25)))
    toned = np.rint(255 * (moved / 255) ** gamma).astype(np.uint8)
    quality = int(rng.integers(60, 96))
    content = cv2.imencode(".jpg", toned, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_GRAYSCALE), np.uint8)


def plant_duplicates(
    frame: pd.DataFrame, data_dir: Path, count: int, seed: int
) -> Iterator[tuple[str, str, Bytes]]:
    """Yield name, sha256 of the original and thumbnail of one duplicate of `count` random rows."""
    rng = np.random.default_rng(seed)
    for number, row in enumerate(rng.choice(len(frame), count, replace=False)):
        planted = plant_duplicate(read_grey(data_dir / frame["path"].iloc[row]), rng)
        yield f"planted {number:05d}", frame["sha256"].iloc[row], resize_grey(planted, THUMBNAIL_PX)


def read_thumbnails(frame: pd.DataFrame, data_dir: Path) -> dict[str, Bytes]:
    """Return the thumbnails by sha256."""
    paths = zip(frame["sha256"], frame["path"], strict=True)
    return {digest: resize_grey(read_grey(data_dir / path), THUMBNAIL_PX) for digest, path in paths}


def measure_planted(duplicates: Duplicates, originals: Mapping[str, str]) -> dict[str, float]:
    """Compute the recall of the planted duplicates, in [0, 1], higher is better."""
    duplicate_sets, groups = duplicates.cluster()
    links = duplicates.to_frame().query("kind == 'duplicate'")
    linked = set(map(frozenset, zip(links["first"], links["second"], strict=True)))
    pairs = originals.items()
    found = {
        "link": [frozenset(pair) in linked for pair in pairs],
        "duplicate_set": [duplicate_sets[new] == duplicate_sets[old] for new, old in pairs],
        "group": [groups[new] == groups[old] for new, old in pairs],
    }
    return {f"recall_{name}": float(np.mean(hits)) for name, hits in found.items()}


def measure_classes(duplicates: Duplicates, labels: Mapping[str, str]) -> dict[str, Any]:
    """Count the links within one class: an independent check, as the search uses no labels."""
    links = duplicates.to_frame()
    same = links["first"].map(labels) == links["second"].map(labels)
    is_duplicate = links["kind"] == "duplicate"
    return {
        "duplicate_links": int(is_duplicate.sum()),
        "duplicate_links_same_class": float(same[is_duplicate].mean()),
        "all_links": len(links),
        "all_links_same_class": float(same.mean()),
    }


def measure_ids(found: Mapping[str, int], truth: Mapping[str, str]) -> dict[str, float]:
    """Compute precision and recall of pairs that share an id, in [0, 1], higher is better."""
    table = pd.DataFrame({"found": found, "truth": truth}).dropna()

    def count_pairs(keys: list[str]) -> int:
        sizes = table.groupby(keys).size()
        return int((sizes * (sizes - 1) // 2).sum())

    both = count_pairs(["found", "truth"])
    return {
        "precision": both / max(1, count_pairs(["found"])),
        "recall": both / max(1, count_pairs(["truth"])),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Plant duplicates, search and print the figures."""
    frame = load_manifest(options.data)
    frame = frame[frame["width"] > 0].drop_duplicates("sha256").reset_index(drop=True)
    thumbnails = read_thumbnails(frame, options.data)
    labels = dict(zip(frame["sha256"], frame["label"], strict=True))
    originals: dict[str, str] = {}
    planted = plant_duplicates(frame, options.data, options.count, options.seed)
    for name, digest, thumbnail in planted:
        originals[name], thumbnails[name], labels[name] = digest, thumbnail, labels[digest]
    duplicates = find_duplicates(thumbnails)
    duplicate_sets, groups = duplicates.cluster()
    figures: dict[str, Any] = {
        "slices": len(frame),
        "planted": options.count,
        "seed": options.seed,
        **measure_planted(duplicates, originals),
        **measure_classes(duplicates, labels),
        "largest_duplicate_set": int(pd.Series(duplicate_sets).value_counts().iloc[0]),
        "largest_group": int(pd.Series(groups).value_counts().iloc[0]),
    }
    if (options.data / "CSV" / "phantoms.csv").exists():
        for name, found in (("duplicate_set", duplicate_sets), ("group", groups)):
            truth = dict(zip(frame["sha256"], frame[name], strict=True))
            truth |= {new: truth[digest] for new, digest in originals.items()}
            figures[f"true_{name}"] = measure_ids(found, truth)
        # adjacent slices of one phantom patient that are nearly identical form one duplicate set
        figures["duplicate_sets_of_one_patient"] = measure_ids(duplicate_sets, truth)["precision"]
    for name, value in figures.items():
        print(f"{name}: {value}")
    return figures


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = cli.build_parser("planted_duplicates", __doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="a prepared folder")
    parser.add_argument("--count", type=int, default=1000, help="number of planted duplicates")
    parser.add_argument("--seed", type=int, default=0)
    return cli.run(measure, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
