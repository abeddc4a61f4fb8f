"""Fair timing: what is compared takes turns, after a round that is left out."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from helper import log

Figures = dict[str, float]
Measure = Callable[[], Figures]


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was told; the CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def time_run(run: Callable[[], object], device: torch.device) -> float:
    """Seconds from the call until its work on the device is done."""
    synchronise(device)
    started_s = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - started_s


def measure_in_turn(measures: Mapping[str, Measure], repeats: int) -> dict[str, list[float]]:
    """Measure one after the other, round by round: a machine that slows down slows all of them.

    Args:
        measures: By name; each gives one or more figures.
        repeats: Rounds that count. One more comes before them and is left out: it compiles, starts
            workers and fills caches.

    Returns:
        Each figure of every round, in their order.
    """
    rounds: dict[str, list[float]] = {}
    for number in range(repeats + 1):
        title = f"round {number} of {repeats}" if number else "warm-up"
        for name, measure in measures.items():
            log.info("%s: %s", title, name)
            figures = measure()
            if number:
                for key, value in figures.items():
                    rounds.setdefault(key, []).append(value)
    return rounds


def divide_rounds(above: list[float], below: list[float]) -> list[float]:
    """The ratio of two figures in each round."""
    return [first / second for first, second in zip(above, below, strict=True)]


def find_median(values: list[float]) -> float:
    """The median over the rounds."""
    return float(statistics.median(values))


def find_spread(values: list[float]) -> list[float]:
    """The least and the greatest of the rounds."""
    return [min(values), max(values)]
