"""Compare duplicate searches on planted copies of real slices.

    python -m venv RIVALS && RIVALS/bin/pip install -r experiments/rivals/requirements.txt
    python -m experiments.rivals.compare --data DATA --python RIVALS/bin/python \\
      --weights WEIGHTS.pth --json FILE

The distinct files of DATA and an altered copy of `--count` of them (planted_duplicates.py) are
copied into one folder, under names that say nothing. Each search gets this folder. A search *finds*
a copy if it calls it and its original duplicates. The share of its other pairs that are of one
class is an independent check: of unrelated pairs a third are.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from duplicates.clustering import DUPLICATE_SCORE
from duplicates.finder import find_duplicates
from evaluation.intervals import describe, estimate_ratio
from experiments import cli
from experiments.planted_duplicates import plant_duplicate
from experiments.rivals.search import SEARCHES
from helper import UserError
from imaging.reader import read_grey
from preparation.manifest import collect_thumbnails, load_manifest, measure_images

OWN = "this project"
SAME_CLASS = 0.99


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = cli.build_parser("rivals.compare", __doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="a prepared folder")
    parser.add_argument("--python", type=Path, required=True, help="Python of the other packages")
    parser.add_argument("--weights", type=Path, required=True, help="MobileNetV2 of ImageNet")
    parser.add_argument("--count", type=int, default=1000, help="number of planted copies")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[OWN, *SEARCHES], help="names of searches")
    return cli.run(measure, parser.parse_args(argv))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run each search on the same folder; print and return the table."""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        label_of, original_of = write_images(options, images)
        for name in options.only:
            seconds, pairs = search(name, images, options)
            rows[name] = describe_pairs(pairs, label_of, original_of)
            rows[name]["images_per_s"] = len(label_of) / seconds
            print(name, rows[name], flush=True)
    return {"images": len(label_of), "planted": options.count, "seed": options.seed, "rows": rows}


def write_images(
    options: argparse.Namespace, folder: Path
) -> tuple[dict[str, str], dict[str, str]]:
    """Write slices and copies; return the class of each file, and the original of each copy."""
    frame = load_manifest(options.data)
    frame = frame[frame["width"] > 0].drop_duplicates("sha256").reset_index(drop=True)
    rng = np.random.default_rng(options.seed)
    numbers = iter(rng.permutation(len(frame) + options.count))
    folder.mkdir()
    names, label_of, original_of = [], {}, {}
    for path, label in zip(frame["path"], frame["label"], strict=True):
        names.append(f"{next(numbers):06d}{Path(path).suffix}")
        label_of[names[-1]] = label
        (folder / names[-1]).write_bytes((options.data / path).read_bytes())
    for row in rng.choice(len(frame), options.count, replace=False):
        name = f"{next(numbers):06d}.png"
        picture = plant_duplicate(read_grey(options.data / frame["path"][row]), rng)
        cv2.imwrite(str(folder / name), picture)
        label_of[name], original_of[name] = frame["label"][row], names[row]
    return label_of, original_of


def search(name: str, images: Path, options: argparse.Namespace) -> tuple[float, pd.DataFrame]:
    """Run one search; return the seconds and the pairs: first, second and score."""
    if name == OWN:
        return search_own(images)
    output = images.parent / "pairs.json"
    command = [options.python, Path(__file__).with_name("search.py"), name, images, output]
    done = subprocess.run([*map(str, command), str(options.weights.resolve())], check=False)
    if done.returncode:
        raise UserError(f"{name} failed with status {done.returncode}; see above")
    found = json.loads(output.read_text("utf-8"))
    return found["seconds"], pd.DataFrame(found["pairs"], columns=["first", "second", "score"])


def search_own(images: Path) -> tuple[float, pd.DataFrame]:
    """Read the files and search as prepare.py does."""
    start = time.perf_counter()
    paths = sorted(images.iterdir())
    facts = measure_images(((path.name, path.read_bytes()) for path in paths), len(paths))
    found = find_duplicates(collect_thumbnails(facts))
    seconds = time.perf_counter() - start
    links = found.to_frame({fact.sha256: name for name, fact in facts.items()})
    return seconds, links.loc[links["score"] >= DUPLICATE_SCORE, ["first", "second", "score"]]


def describe_pairs(
    pairs: pd.DataFrame, label_of: Mapping[str, str], original_of: Mapping[str, str]
) -> dict[str, Any]:
    """Return recall and class agreement at the usual threshold, and at a stricter one.

    The stricter threshold is the lowest score at which SAME_CLASS of the pairs are of one class.
    """
    is_planted = pairs["first"].isin(original_of.keys()) | pairs["second"].isin(original_of.keys())
    is_same = pairs["first"].map(label_of) == pairs["second"].map(label_of)
    others = pd.DataFrame({"score": pairs["score"], "same": is_same})[~is_planted]
    shares = others.groupby("score")["same"].agg(["sum", "count"])[::-1].cumsum()
    strict = shares.index[shares["sum"] / shares["count"] >= SAME_CLASS]
    strictest = pairs[pairs["score"] >= strict.min()] if len(strict) else pairs[:0]
    return {
        "recall": measure_recall(pairs, original_of),
        "other_pairs": len(others),
        "other_pairs_of_one_class": float(others["same"].mean()) if len(others) else None,
        f"recall_at_{SAME_CLASS}_of_one_class": measure_recall(strictest, original_of),
    }


def measure_recall(pairs: pd.DataFrame, original_of: Mapping[str, str]) -> dict[str, Any]:
    """Return the share of copies that are paired with their original, with its interval."""
    found = set(map(frozenset, zip(pairs["first"], pairs["second"], strict=True)))
    hits = np.array([frozenset(pair) in found for pair in original_of.items()])
    return describe(estimate_ratio(hits), np.arange(len(hits)))


if __name__ == "__main__":
    sys.exit(main())
