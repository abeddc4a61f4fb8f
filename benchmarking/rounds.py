"""Time measurements in interleaved rounds."""

from collections.abc import Callable, Mapping

from helper import log

Figures = dict[str, float]
Measure = Callable[[], Figures]


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
