"""Measure how often brain slices and other pictures are flagged as out of distribution.

    python -m experiments.ood_rates session/RUN/best.pt --json results/benchmarks/ood.json

For a run on phantoms the brain slices are new phantoms of other patients; for any other run they
are its own val slices, on which the threshold was fitted. The other pictures are drawn by
experiments.ood_pictures.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import dataset
from experiments import cli
from experiments.ood_pictures import OOD_PICTURES
from helper import UserError, derive_seed, log
from imaging.grayscale import Pixels
from imaging.reader import read_grey
from inference.predictor import SlicePredictor, load_predictor
from phantoms.generator import plan_phantoms, render_phantom

CHUNK_SIZE = 50
QUANTILES = {"least": 0.0, "median": 0.5, "greatest": 1.0}


def read_brain_slices(predictor: SlicePredictor, count: int) -> Iterator[Pixels]:
    """Yield slices that should not be flagged."""
    if predictor.is_phantom:
        for plan in plan_phantoms(count, derive_seed(0, "fresh") % 2**31):
            yield render_phantom(plan)[0]
        return
    checkpoint = predictor.members[0].checkpoint
    data_dir = Path(checkpoint["data"])
    table = dataset.assign_split(dataset.load_table(data_dir), checkpoint["split"])
    for path in table["path"][table["split"] == "val"]:
        yield read_grey(data_dir / path)


def measure_kind(predictor: SlicePredictor, pictures: Iterator[Pixels]) -> dict[str, Any]:
    """Compute the flagged share and quantiles of the distance in multiples of the threshold."""
    distances: list[float | None] = []
    while chunk := [
        predictor.preprocess(pixels) for pixels in itertools.islice(pictures, CHUNK_SIZE)
    ]:
        distances += [prediction.distance for prediction in predictor.predict(chunk)]
    found = np.array(distances, dtype=float)
    return {
        "n": len(found),
        "out_of_distribution": float((found > 1).mean()),
        "distance": {name: float(np.quantile(found, share)) for name, share in QUANTILES.items()},
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every kind of picture and print one row for each."""
    predictor = load_predictor([options.checkpoint], "cpu")
    if predictor.members[0].reference is None:
        raise UserError(f"{options.checkpoint} holds no training reference for OOD detection")
    rows = {"brain slices": measure_kind(predictor, read_brain_slices(predictor, options.count))}
    for name, draw in OOD_PICTURES.items():
        rows[name] = measure_kind(predictor, (draw(seed) for seed in range(options.per_kind)))
    for name, row in rows.items():
        log.info(
            "%-16s n %4d  out of distribution %.3f  distance %.2f [%.2f, %.2f]",
            *(name, row["n"], row["out_of_distribution"]),
            *(row["distance"][key] for key in ("median", "least", "greatest")),
        )
    return {"rows": rows}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = cli.build_parser("ood_rates", __doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--count", type=int, default=600, help="new phantoms")
    parser.add_argument("--per-kind", type=int, default=50, help="drawn pictures of each kind")
    return cli.run(measure, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
