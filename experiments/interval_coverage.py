"""How often the 95 % intervals hold the truth, by simulation, beside the bootstrap of images.

    python -m experiments.interval_coverage --data data --json results/benchmarks/coverage.json

Groups whose verdicts are correlated: the chance to be right is drawn anew for each group from a
Beta distribution about the true accuracy. Groups of 1 to 5 images; and, with --data, of the sizes
that the groups of a prepared folder have, drawn with replacement: few of them hold many images.
"""

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from common.atomic_files import write_json
from dataset import load_table
from evaluation.intervals import Interval, compute_interval, estimate_ratio
from helper import derive_seed

ACCURACIES = (0.9, 0.99)
GROUPS = (60, 250, 1000)
CORRELATIONS = (0.0, 0.3, 0.6, 1.0)
SMALL_GROUPS = np.arange(1, 6)
COLUMNS = (
    *("sizes", "accuracy", "groups", "correlation"),
    *("ours", "bootstrap of images", "mean width of ours"),
)


def draw_verdicts(
    accuracy: float, correlation: float, sizes: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Right or wrong for every image of every group, [sum of sizes].

    Args:
        accuracy: The truth, in (0, 1).
        correlation: Between two images of one group, in [0, 1].
        sizes: [G] images of each group.
        rng: Drawn from.
    """
    n_groups = len(sizes)
    if correlation == 0:
        chances = np.full(n_groups, accuracy)
    elif correlation == 1:
        chances = (rng.random(n_groups) < accuracy).astype(float)
    else:
        strength = (1 - correlation) / correlation
        chances = rng.beta(accuracy * strength, (1 - accuracy) * strength, n_groups)
    return rng.random(int(sizes.sum())) < np.repeat(chances, sizes)


def bootstrap_images(correct: NDArray[np.bool_]) -> Interval:
    """The percentile bootstrap that takes images for independent, with endless resamples."""
    n_images = len(correct)
    low, high = binom.ppf([0.025, 0.975], n_images, correct.mean()) / n_images
    return float(low), float(high)


def simulate(
    accuracy: float,
    n_groups: int,
    correlation: float,
    n_trials: int,
    seed: int = 0,
    sizes_of: NDArray[np.int64] = SMALL_GROUPS,
) -> dict[str, float]:
    """How often both intervals hold the truth, and how wide ours is on average.

    Args:
        accuracy: The truth.
        n_groups: Groups a trial.
        correlation: Between two images of one group.
        n_trials: Trials.
        seed: Of all that is drawn.
        sizes_of: Sizes that groups are drawn from, each as likely as another.
    """
    rng = np.random.default_rng(
        derive_seed(seed, "coverage", str(accuracy), n_groups, str(correlation))
    )
    ours, images, widths = [], [], []
    for _ in range(n_trials):
        sizes = rng.choice(sizes_of, n_groups)
        correct = draw_verdicts(accuracy, correlation, sizes, rng)
        estimate = estimate_ratio(correct)
        assert estimate is not None
        low, high = compute_interval(estimate, np.repeat(np.arange(n_groups), sizes))
        ours.append(low <= accuracy <= high)
        widths.append(high - low)
        low, high = bootstrap_images(correct)
        images.append(low <= accuracy <= high)
    return {
        "ours": float(np.mean(ours)),
        "image_bootstrap": float(np.mean(images)),
        "mean_width": float(np.mean(widths)),
    }


def main(argv: list[str] | None = None) -> int:
    """Print the table, and write the figures where asked to."""
    parser = argparse.ArgumentParser(prog="experiments.interval_coverage", description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--data", type=Path, help="a prepared folder, for the sizes of its groups")
    options = parser.parse_args(argv)
    kinds = {"1 to 5": SMALL_GROUPS}
    if options.data:
        table = load_table(options.data)
        kinds["as in the data"] = table.groupby("group").size().to_numpy()
    rows: list[dict[str, Any]] = []
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for kind, sizes in kinds.items():
        for place in itertools.product(ACCURACIES, GROUPS, CORRELATIONS):
            found = simulate(*place, options.trials, sizes_of=sizes)
            named = dict(zip(("accuracy", "groups", "correlation"), place, strict=True))
            rows.append({"sizes": kind, **named, **found})
            cells = [kind, *place, *(f"{value:.3f}" for value in found.values())]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
    if options.json:
        write_json(options.json, {"trials": options.trials, "seed": 0, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
