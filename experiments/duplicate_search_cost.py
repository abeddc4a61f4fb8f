"""What finding copies costs with 1, 2, 4 and 8 thousand slices, and how it grows.

    python -m experiments.duplicate_search_cost --data data --json results/benchmarks/copy_cost.json

Slices beyond those of the folder are planted copies of them. Reading the files is not counted.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from common.atomic_files import write_json
from duplicates.finder import find_copies
from duplicates.retrieval import propose_pairs
from duplicates.sift_features import extract_features, load_words
from experiments.planted_duplicates import plant_copies, read_thumbnails
from helper import read_commit
from preparation.manifest import load_manifest

SIZES = (1000, 2000, 4000, 8000)


def run_study(data_dir: Path) -> dict[str, Any]:
    """Seconds of each part at each size, and the exponents of their growth."""
    frame = load_manifest(data_dir)
    frame = frame[frame["width"] > 0].drop_duplicates("sha256").reset_index(drop=True)
    thumbnails = read_thumbnails(frame.head(max(SIZES)), data_dir)
    missing = max(SIZES) - len(thumbnails)
    if missing > 0:
        planted = plant_copies(frame, data_dir, missing, seed=1)
        thumbnails |= {name: thumbnail for name, _, thumbnail in planted}
    names = np.random.default_rng(0).permutation(sorted(thumbnails)).tolist()
    rows = []
    for size in SIZES:
        chosen = {name: thumbnails[name] for name in names[:size]}
        started_s = time.perf_counter()
        features = extract_features(list(chosen.values()))
        described_s = time.perf_counter()
        propose_pairs(features.words, len(load_words()))
        proposed_s = time.perf_counter()
        copies = find_copies(chosen)
        ended_s = time.perf_counter()
        row = {
            "slices": size,
            "features_s": described_s - started_s,
            "candidates_s": proposed_s - described_s,
            "whole_s": ended_s - proposed_s,
            "pairs": len(copies.compared),
        }
        rows.append(row)
        print(row, flush=True)
    exponents = {
        name: float(np.polyfit(np.log(SIZES), np.log([row[name] for row in rows]), 1)[0])
        for name in ("features_s", "candidates_s", "whole_s", "pairs")
    }
    print(f"exponents: {exponents}")
    cores = os.cpu_count()
    return {"rows": rows, "exponents": exponents, "cores": cores, "commit": read_commit()}


def main(argv: list[str] | None = None) -> int:
    """Print the table, and write it where asked to."""
    parser = argparse.ArgumentParser(prog="experiments.duplicate_search_cost", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="a prepared folder")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(argv)
    figures = run_study(options.data)
    if options.json:
        write_json(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
