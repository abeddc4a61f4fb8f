"""How often pictures are called unlike those of training: slices by mistake, strangers by right.

    python -m experiments.ood_rates session/RUN/best.pt --json results/benchmarks/unlike.json

Of a run on phantoms, fresh phantoms of other patients are judged; of any other run its own val
slices, which the threshold was fitted on. The strangers are drawn by experiments.ood_pictures.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import dataset
from common.atomic_files import write_json
from experiments.cli import describe_machine
from experiments.ood_pictures import STRANGERS
from helper import UserError, derive_seed, log, run_verb
from imaging.grayscale import Pixels
from imaging.reader import read_grey
from inference.predictor import SliceClassifier, load_classifier
from phantoms.generator import plan_phantoms, render_phantom

SLICES_AT_ONCE = 50
QUANTILES = {"least": 0.0, "median": 0.5, "greatest": 1.0}


def list_familiar(classifier: SliceClassifier, count: int) -> Iterator[Pixels]:
    """Slices that should be called familiar."""
    kept = classifier.members[0].kept
    if classifier.is_phantom:
        for plan in plan_phantoms(count, derive_seed(0, "fresh") % 2**31):
            yield render_phantom(plan)[0]
        return
    data_dir = Path(kept["data"])
    table = dataset.assign_split(dataset.load_table(data_dir), kept["split"])
    for path in table["path"][table["split"] == "val"]:
        yield read_grey(data_dir / path)


def measure(classifier: SliceClassifier, pictures: Iterator[Pixels]) -> dict[str, Any]:
    """The share that is called unlike, and the distances as shares of the threshold."""
    distances: list[float | None] = []
    while some := [
        classifier.preprocess(pixels) for pixels in itertools.islice(pictures, SLICES_AT_ONCE)
    ]:
        distances += [verdict.distance for verdict in classifier.judge(some)]
    found = np.array(distances, dtype=float)
    return {
        "n": len(found),
        "unlike": float((found > 1).mean()),
        "distance": {name: float(np.quantile(found, share)) for name, share in QUANTILES.items()},
    }


def study(options: argparse.Namespace) -> None:
    """Measure, print a row each, and write the figures where asked to."""
    classifier = load_classifier([options.checkpoint], "cpu")
    if classifier.members[0].reference is None:
        raise UserError(f"{options.checkpoint}: keeps no training slices to compare with")
    rows = {"familiar slices": measure(classifier, list_familiar(classifier, options.count))}
    for name, draw in STRANGERS.items():
        rows[name] = measure(classifier, (draw(seed) for seed in range(options.strangers)))
    for name, row in rows.items():
        log.info(
            "%-16s n %4d  unlike %.3f  distance %.2f [%.2f, %.2f]",
            *(name, row["n"], row["unlike"]),
            *(row["distance"][key] for key in ("median", "least", "greatest")),
        )
    if options.json:
        write_json(options.json, {"rows": rows, "environment": describe_machine()})


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="experiments.ood_rates", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--count", type=int, default=600, help="fresh phantoms")
    parser.add_argument("--strangers", type=int, default=50, help="of each kind")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    return run_verb(study, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
