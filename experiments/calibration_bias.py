"""Compare methods to fit the temperature by simulation, and count how often intervals hold.

    python -m experiments.calibration_bias --json results/benchmarks/calibration_bias.json

A calibrated network is simulated exactly: the features of an image of class k are normal around
`separation` times the k-th unit vector, so `separation` times the features are the logits of the
true probabilities. All images of a group have one class, and their features are correlated. The
logits of the network are these, multiplied by the true temperature. ECE and NLL of a fitted
temperature are those of many independent images and are computed from their true probabilities.
They depend only on the fitted divided by the true temperature.
"""

import argparse
import functools
import itertools
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_softmax
from scipy.stats import norm

from evaluation.calibration import (
    bin_scores,
    describe_ece,
    estimate_augrc,
    fit_temperature,
)
from evaluation.intervals import compute_interval, weigh_by_group
from evaluation.metrics import softmax
from experiments import cli
from helper import derive_seed

Array = NDArray[np.float64]
N_CLASSES = 3
ACCURACIES = (0.8, 0.9, 0.95, 0.99)
GROUPS = (20, 50, 100, 229, 1000)
TEMPERATURES = (0.5, 0.6, 1.0, 2.0, 3.0)
# correlation within groups, share of the groups with a wrong label
SERIES = ((0.5, 0.0), (0.2, 0.0), (0.9, 0.0), (0.5, 0.03))
WIDTHS = (0.3, 0.5, 0.7, 1.0, 2.0)  # standard deviations of the prior on log T
FOLDS = 5
LOG_STEPS = np.linspace(np.log(0.02), np.log(50), 157)  # of fitted by true temperature
LIMITS = np.log([0.05, 20.0])
MAX_SIZE = 60
TEST_IMAGES = 30_000
INTERVAL_GROUPS = (30, 100, 400)
INTERVAL_RATIOS = (0.5, 0.8, 1.0, 1.25, 2.0)  # 1: calibrated; below 1: confidence too high


@dataclass(frozen=True)
class Val:
    """Simulated val slices: `logits` [N, K] of the calibrated network, `labels`, `groups` [N]."""

    logits: Array
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]

    @property
    def has_error(self) -> bool:
        """Whether a slice is predicted wrongly."""
        return bool((self.logits.argmax(axis=1) != self.labels).any())


# ---- simulated networks


def find_separation(accuracy: float) -> float:
    """Return the distance of the class means with which the accuracy is reached."""
    noise = np.linspace(-8, 8, 4001)
    weights = norm.pdf(noise) * (noise[1] - noise[0])

    def compute_excess(separation: float) -> float:
        right = norm.cdf(noise + separation) ** (N_CLASSES - 1)
        return float(weights @ right) - accuracy

    return float(brentq(compute_excess, 0.0, 10.0))


def draw_val(
    separation: float,
    n_groups: int,
    correlation: float,
    label_errors: float,
    rng: np.random.Generator,
) -> Val:
    """Draw groups of 1 to 60 images (mean 5) of one class each, with correlated features.

    Args:
        separation: Of `find_separation`.
        n_groups: Number of groups.
        correlation: Correlation of the features of two images of a group, in [0, 1].
        label_errors: Share of the groups whose label is wrong.
        rng: Random generator.
    """
    sizes = np.minimum(np.ceil(rng.lognormal(1.1, 0.9, n_groups)).astype(int), MAX_SIZE)
    groups = np.repeat(np.arange(n_groups), sizes)
    classes = rng.integers(0, N_CLASSES, n_groups)
    features = np.sqrt(correlation) * rng.normal(size=(n_groups, N_CLASSES))[groups]
    features += np.sqrt(1 - correlation) * rng.normal(size=(len(groups), N_CLASSES))
    features[np.arange(len(groups)), classes[groups]] += separation
    wrong = rng.random(n_groups) < label_errors
    labels = (classes + wrong * rng.integers(1, N_CLASSES, n_groups)) % N_CLASSES
    return Val(separation * features, labels[groups], groups)


@functools.cache
def compute_true_curves(separation: float, label_errors: float) -> tuple[Array, Array]:
    """Compute ECE and NLL on many images for each step of LOG_STEPS."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(TEST_IMAGES, N_CLASSES))
    logits[np.arange(TEST_IMAGES), np.arange(TEST_IMAGES) % N_CLASSES] += separation
    logits *= separation
    truth = softmax(logits)
    truth = (1 - label_errors) * truth + label_errors * (1 - truth) / (N_CLASSES - 1)
    own = truth[np.arange(TEST_IMAGES), logits.argmax(axis=1)]
    eces, nlls = [], []
    for step in LOG_STEPS:
        log_probs = log_softmax(logits / np.exp(step), axis=1)
        confidence = np.exp(log_probs.max(axis=1))
        gaps = np.bincount(bin_scores(confidence), weights=confidence - own)
        eces.append(np.abs(gaps).sum() / TEST_IMAGES)
        nlls.append(-np.sum(truth * log_probs, axis=1).mean())
    return np.array(eces), np.array(nlls)


# ---- methods


def compute_val_curves(val: Val) -> dict[str, Array]:
    """Compute the mean losses on val for each step of LOG_STEPS.

    Returns:
        `image`: NLL of the images; `uniform`: the same for equal probabilities of the classes as
        targets; `group`: NLL if every group counts once; `folds`: the share of it in each of five
        folds of groups, [steps, folds].
    """
    rows, n_groups = np.arange(len(val.labels)), int(val.groups.max()) + 1
    weights = weigh_by_group(val.groups) / n_groups
    curves: dict[str, list[Any]] = {"image": [], "uniform": [], "folds": []}
    for step in LOG_STEPS:
        log_probs = log_softmax(val.logits / np.exp(step), axis=1)
        own = -log_probs[rows, val.labels]
        curves["image"].append(own.mean())
        curves["uniform"].append(-log_probs.mean())
        curves["folds"].append(np.bincount(val.groups % FOLDS, weights * own, FOLDS))
    arrays = {name: np.array(values) for name, values in curves.items()}
    return {**arrays, "group": arrays["folds"].sum(axis=1)}


def fit_methods(val: Val, curves: dict[str, Array], true: float) -> dict[str, float]:
    """Fit the logarithm of the temperature by every method.

    All methods but `fit_temperature` minimise the sum of a curve and a penalty on the grid.

    Args:
        val: The val slices.
        curves: Of `compute_val_curves`.
        true: The true temperature, with which the logits are multiplied.
    """
    n_groups = int(val.groups.max()) + 1
    smoothing = N_CLASSES / (n_groups + N_CLASSES)
    smoothed = (1 - smoothing) * curves["image"] + smoothing * curves["uniform"]
    log_t = LOG_STEPS + np.log(true)
    prior = log_t**2 / (2 * n_groups)  # standard deviation 1
    left_out = (curves["group"][:, None] - curves["folds"]).T
    fitted = fit_temperature(true * val.logits, val.labels, val.groups)
    return {
        "uncalibrated": 0.0,
        "smoothed targets": _find_least(smoothed, log_t),
        "plain NLL": _find_least(curves["image"], log_t),
        "plain NLL, by group": _find_least(curves["group"], log_t),
        **{
            f"prior {width}": _find_least(curves["group"] + prior / width**2, log_t)
            for width in WIDTHS
        },
        "prior 1.0, by image": _find_least(curves["image"] + prior, log_t),
        "prior 1.0, five folds": float(
            np.mean([_find_least(curve + prior, log_t) for curve in left_out])
        ),
        "fit_temperature": float(np.log(fitted)),
    }


def _find_least(losses: Array, log_t: Array) -> float:
    """Return the log temperature of the least loss within the limits, between grid points."""
    losses = np.where((log_t >= LIMITS[0]) & (log_t <= LIMITS[1]), losses, np.inf)
    best = int(np.argmin(losses))
    if best in (0, len(losses) - 1) or not np.isfinite(losses[[best - 1, best + 1]]).all():
        return float(log_t[best])
    left, middle, right = losses[best - 1 : best + 2]
    bend = left - 2 * middle + right
    shift = (left - right) / (2 * bend) if bend > 0 else 0.0
    return float(log_t[best] + shift * (log_t[1] - log_t[0]))


def simulate(
    accuracy: float, n_groups: int, correlation: float, label_errors: float, n_trials: int
) -> list[dict[str, Any]]:
    """Fit every method to `n_trials` val sets, each for every true temperature.

    Returns:
        For each trial and true temperature: `temperature`, `has_error` (of val), and for each
        method its `ece` and `nll`, and `log_t`: fitted minus true log temperature.
    """
    separation = find_separation(accuracy)
    curves = compute_true_curves(separation, label_errors)
    seed = derive_seed(0, "calibration", str(accuracy), n_groups, str(correlation))
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n_trials):
        val = draw_val(separation, n_groups, correlation, label_errors, rng)
        val_curves = compute_val_curves(val)
        for true in TEMPERATURES:
            fitted = fit_methods(val, val_curves, true)
            shifts = {name: value - np.log(true) for name, value in fitted.items()}
            ece, nll = (
                {name: float(np.interp(value, LOG_STEPS, curve)) for name, value in shifts.items()}
                for curve in curves
            )
            found.append(
                {
                    "temperature": true,
                    "has_error": val.has_error,
                    "ece": ece,
                    "nll": nll,
                    "log_t": shifts,
                }
            )
    return found


def _average(trials: list[dict[str, Any]], *keys: str) -> dict[str, Any]:
    """Return the number of trials and, for each method, the means of `ece`, `nll` and `keys`."""
    means = {
        key: {
            name: round(float(np.mean([trial[key][name] for trial in trials])), 5)
            for name in trials[0][key]
        }
        for key in ("ece", "nll", *keys)
    }
    return {"n": len(trials), **means}


# ---- intervals


def simulate_intervals(
    accuracy: float, n_groups: int, ratio: float, n_trials: int
) -> dict[str, float]:
    """Count how often the intervals of ECE and AUGRC contain the true values.

    Args:
        accuracy: The true accuracy.
        n_groups: Groups per trial.
        ratio: Temperature that the logits are divided by; 1 is calibrated.
        n_trials: Number of trials.
    """
    separation = find_separation(accuracy)
    true_ece = float(np.interp(np.log(ratio), LOG_STEPS, compute_true_curves(separation, 0.0)[0]))
    many = draw_val(separation, 40_000, 0.0, 0.0, np.random.default_rng(2))
    probs = softmax(many.logits / ratio)
    true_augrc = estimate_augrc(probs, many.labels).value
    rng = np.random.default_rng(derive_seed(0, "ece", str(accuracy), n_groups, str(ratio)))
    rows = []
    for _ in range(n_trials):
        val = draw_val(separation, n_groups, 0.6, 0.0, rng)
        probs = softmax(val.logits / ratio)
        confidence, correct = probs.max(axis=1), probs.argmax(axis=1) == val.labels
        found = describe_ece(confidence, correct, val.groups)
        gaps = np.bincount(bin_scores(confidence), weights=confidence - correct)
        low, high = found["ci95"]
        augrc = compute_interval(estimate_augrc(probs, val.labels), val.groups)
        rows.append(
            {
                "ece": np.abs(gaps).sum() / len(correct),
                "ece_debiased": found["value"],
                "ece_coverage": low <= true_ece <= high,
                "ece_width": high - low,
                "augrc_coverage": augrc[0] <= true_augrc <= augrc[1],
                "augrc_width": augrc[1] - augrc[0],
            }
        )
    means = {key: round(float(np.mean([row[key] for row in rows])), 4) for key in rows[0]}
    return {"true_ece": round(true_ece, 4), "true_augrc": round(true_augrc, 5), **means}


# ---- command line


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Simulate every combination and print a line for each."""
    rows: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("means", "val_without_errors", "by_accuracy", "by_temperature")
    }
    for (correlation, label_errors), n_groups in itertools.product(SERIES, GROUPS):
        key = {"correlation": correlation, "label_errors": label_errors, "groups": n_groups}
        by_accuracy = {
            accuracy: simulate(accuracy, n_groups, correlation, label_errors, options.trials)
            for accuracy in ACCURACIES
        }
        trials = list(itertools.chain(*by_accuracy.values()))
        rows["means"].append({**key, **_average(trials)})
        if without := [trial for trial in trials if not trial["has_error"]]:
            rows["val_without_errors"].append({**key, **_average(without)})
        for accuracy, found in by_accuracy.items():
            rows["by_accuracy"].append({**key, "accuracy": accuracy, **_average(found)})
        for true in TEMPERATURES:
            found = [trial for trial in trials if trial["temperature"] == true]
            average = _average(found, "log_t")
            rows["by_temperature"].append({**key, "temperature": true, **average})
        means = rows["means"][-1]
        for name, ece in means["ece"].items():
            figures = f"ECE {ece:.4f}, NLL {means['nll'][name]:.4f}"
            print(
                f"{correlation}, {label_errors}, {n_groups} groups, {name}: {figures}", flush=True
            )
    for name in ("by_accuracy", "by_temperature"):  # of the first series only, for a short file
        rows[name] = [
            row for row in rows[name] if (row["correlation"], row["label_errors"]) == SERIES[0]
        ]
    intervals = []
    for accuracy, n_groups, ratio in itertools.product(
        ACCURACIES, INTERVAL_GROUPS, INTERVAL_RATIOS
    ):
        row: dict[str, Any] = {"accuracy": accuracy, "groups": n_groups, "ratio": ratio}
        intervals.append(row | simulate_intervals(accuracy, n_groups, ratio, options.trials))
        print(", ".join(f"{name} {value}" for name, value in intervals[-1].items()), flush=True)
    return {"trials": options.trials, **rows, "intervals": intervals}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = cli.build_parser("calibration_bias", __doc__)
    parser.add_argument("--trials", type=int, default=200)
    return cli.run(measure, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
