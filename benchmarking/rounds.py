"""Time measurements in interleaved rounds."""

import time
from collections.abc import Callable, Mapping

import torch

from helper import log, synchronise

Figures = dict[str, float]
Measure = Callable[[], Figures]


def time_run(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds from the call until its work on the device is finished."""
    synchronise(device)
    started_s = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - started_s


def measure_interleaved(measures: Mapping[str, Measure], repeats: int) -> dict[str, list[float]]:
    """Run all measures once per round, so that a change of the machine's speed affects them all.

    Args:
        measures: Functions by name; each returns one or more figures.
        repeats: Counted rounds. One warm-up round precedes them: it compiles, starts workers and
            fills caches.

    Returns:
        The values of each figure, one per counted round.
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
