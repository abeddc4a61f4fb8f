"""Paired comparison of two classifiers on the same images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from evaluation.intervals import Z_95, BoolArray, FloatArray
from evaluation.patients import PatientPredictions

EXACT_GROUPS, SIGN_DRAWS = 14, 20_000


def compare_paired(
    first_correct: BoolArray | FloatArray,
    second_correct: BoolArray | FloatArray,
    duplicate_sets: NDArray[Any],
    groups: NDArray[Any],
) -> dict[str, Any]:
    """Compare the accuracy of two classifiers on the same images.

    Larger groups have more weight in the interval and in the permutation test alike.

    Args:
        first_correct: [N] whether the first is right, or the share of several networks that are.
        second_correct: [N], likewise.
        duplicate_sets: [N] ids; duplicates of one slice have one vote together in McNemar's test.
        groups: [N] ids; the unit of the interval and of the permutation test.

    Returns:
        `difference`: accuracy of the first minus that of the second, in [-1, 1]; `ci95`: its
        interval; `n_first`, `n_second`: groups in which the first or the second is right about
        more images; `p_value`: sign-flip permutation test over groups; `p_value_slices`: McNemar's
        exact test with one vote per duplicate set, too small if errors within groups correlate.

    Raises:
        ValueError: There are no images.

    Source: after Bonett and Price 2012, Adjusted Wald confidence interval for a difference of
    binomial proportions based on paired data (one disagreement each way is added to the variance,
    here that of a group of mean size; same centre); Ernst 2004, Permutation methods: a basis
    for exact inference (signs of the sums of groups); McNemar 1947, Note on the sampling error of
    the difference between correlated proportions or percentages.
    """
    if not len(first_correct):
        raise ValueError("there are no images to compare")
    ahead = first_correct.astype(np.float64) - second_correct  # [N] in -1..1
    difference = float(ahead.mean())
    codes = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(codes)
    squares = np.bincount(codes, weights=ahead - difference) ** 2
    variance = (float(squares.sum()) + 2 * float(np.mean(sizes)) ** 2) / len(ahead) ** 2
    half = Z_95 * float(np.sqrt(variance))
    by_group = np.bincount(codes, weights=ahead)
    set_codes = np.unique(duplicate_sets, return_inverse=True)[1]
    return {
        "difference": difference,
        "ci95": [max(-1.0, difference - half), min(1.0, difference + half)],
        "n_first": int((by_group > 0).sum()),
        "n_second": int((by_group < 0).sum()),
        "p_value": _test_sign_flips(by_group),
        "p_value_slices": _test_signs(np.bincount(set_codes, weights=ahead)),
    }


def compare_patients(
    first: PatientPredictions, second: PatientPredictions
) -> dict[str, Any] | None:
    """Compare the accuracy per patient of two classifiers on the same P patients.

    Returns:
        As `compare_paired`, with patients in place of images; None without patients.
    """
    if not len(first.patients):
        return None
    units = np.arange(len(first.patients))
    return compare_paired(first.correct, second.correct, units, first.groups)


def compute_spread(accuracies: Sequence[float | None]) -> dict[str, float] | None:
    """Return mean, standard deviation and range over two or more runs; None if undefined."""
    if None in accuracies:
        return None
    values = np.array(accuracies, dtype=np.float64)
    return {
        "mean": float(values.mean()),
        "standard_deviation": float(values.std(ddof=1)),
        "least": float(values.min()),
        "greatest": float(values.max()),
    }


def _test_sign_flips(sums: NDArray[Any]) -> float:
    """Return the two-sided p-value of a sum if the sign of each group is random; 1 if all are 0.

    All sign patterns of up to 14 groups are enumerated; more groups take 20,000 random patterns.
    """
    sums = sums[sums != 0]
    if len(sums) <= EXACT_GROUPS:
        codes = np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))
        signs = 1.0 - 2.0 * (codes & 1)
        n_observed = 0
    else:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (SIGN_DRAWS, len(sums)))
        n_observed = 1  # the observed pattern counts as one draw
    n_extreme = int((np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9).sum())
    return (n_extreme + n_observed) / (len(signs) + n_observed)


def _test_signs(votes: NDArray[Any]) -> float:
    """Return the p-value of the exact two-sided sign test; 1 if all votes are 0."""
    n_first, n_cast = int((votes > 0).sum()), int((votes != 0).sum())
    return float(binomtest(n_first, n_cast).pvalue) if n_cast else 1.0
