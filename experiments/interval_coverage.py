"""Measure by simulation how often the 95 % intervals contain the true accuracy.

    python -m experiments.interval_coverage --data data --json results/benchmarks/coverage.json

The bootstrap of single images is measured for comparison. Predictions of one group are correlated:
each group draws its probability of a correct prediction from a Beta distribution around the true
accuracy. Groups hold 1 to 5 images. With --data, a second series draws the sizes of the groups of a
prepared folder with replacement; a few of these groups hold many images.
"""

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from dataset import load_table
from evaluation.intervals import compute_interval, estimate_ratio
from experiments import cli
from helper import derive_seed

ACCURACIES = (0.9, 0.99)
GROUPS = (60, 250, 1000)
CORRELATIONS = (0.0, 0.3, 0.6, 1.0)
SMALL_GROUPS = np.arange(1, 6)


def draw_correct(
    accuracy: float, correlation: float, sizes: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Draw for every image of every group whether its prediction is correct, [sum of sizes].

    Args:
        accuracy: The true accuracy, in (0, 1).
        correlation: Correlation between two images of one group, in [0, 1].
        sizes: [G] images per group.
        rng: Random generator.
    """
    n_groups = len(sizes)
    if correlation == 0:
        probabilities = np.full(n_groups, accuracy)
    elif correlation == 1:
        probabilities = (rng.random(n_groups) < accuracy).astype(float)
    else:
        strength = (1 - correlation) / correlation
        probabilities = rng.beta(accuracy * strength, (1 - accuracy) * strength, n_groups)
    return rng.random(int(sizes.sum())) < np.repeat(probabilities, sizes)


def simulate(
    accuracy: float,
    n_groups: int,
    correlation: float,
    n_trials: int,
    sizes_of: NDArray[np.int64] = SMALL_GROUPS,
) -> dict[str, float]:
    """Compute the coverage of both intervals and the mean width of the group interval.

    Args:
        accuracy: The true accuracy.
        n_groups: Groups per trial.
        correlation: Correlation between two images of one group.
        n_trials: Number of trials.
        sizes_of: Group sizes to draw from with equal probability.
    """
    seed = derive_seed(0, "coverage", str(accuracy), n_groups, str(correlation))
    rng = np.random.default_rng(seed)
    by_group, by_image, widths = [], [], []
    for _ in range(n_trials):
        sizes = rng.choice(sizes_of, n_groups)
        correct = draw_correct(accuracy, correlation, sizes, rng)
        estimate = estimate_ratio(correct)
        assert estimate is not None
        low, high = compute_interval(estimate, np.repeat(np.arange(n_groups), sizes))
        by_group.append(low <= accuracy <= high)
        widths.append(high - low)
        # percentile bootstrap of independent images, for infinitely many resamples
        low, high = binom.ppf([0.025, 0.975], len(correct), correct.mean()) / len(correct)
        by_image.append(low <= accuracy <= high)
    return {
        "coverage": float(np.mean(by_group)),
        "image_bootstrap": float(np.mean(by_image)),
        "mean_width": float(np.mean(widths)),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Simulate every combination and print a line for each."""
    series = {"1 to 5": SMALL_GROUPS}
    if options.data:
        series["as in the data"] = load_table(options.data).groupby("group").size().to_numpy()
    rows: list[dict[str, Any]] = []
    names = ("accuracy", "groups", "correlation")
    for name, sizes in series.items():
        for combination in itertools.product(ACCURACIES, GROUPS, CORRELATIONS):
            found = simulate(*combination, options.trials, sizes)
            rows.append({"sizes": name, **dict(zip(names, combination, strict=True)), **found})
            print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return {"trials": options.trials, "rows": rows}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = cli.build_parser("interval_coverage", __doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--data", type=Path, help="a prepared folder, for the sizes of its groups")
    return cli.run(measure, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
