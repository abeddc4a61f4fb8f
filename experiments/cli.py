"""What the command line of studies that train has in common."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def parse_training_study(
    name: str,
    description: str | None,
    argv: list[str] | None,
    *,
    fewest_seeds: int = 1,
    recipes: Sequence[str] = (),
) -> argparse.Namespace:
    """Options `weights`, `seeds`, `threads` and `json` of a study that trains what is missing.

    Args:
        name: Of the study's module.
        description: For `--help`.
        argv: None: of the process.
        fewest_seeds: Fewer are refused with exit status 2.
        recipes: What `--recipes` may name; empty: there is no such option.
    """
    parser = argparse.ArgumentParser(prog=f"experiments.{name}", description=description)
    parser.add_argument("--weights", type=Path, required=True, help="of mobilenet_v2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1, help="CPU threads a training")
    if recipes:
        parser.add_argument("--recipes", nargs="+", choices=recipes, default=list(recipes))
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(argv)
    if len(set(options.seeds)) < max(fewest_seeds, len(options.seeds)):
        parser.error(f"--seeds: {fewest_seeds} or more are needed, each once")
    return options


def describe_machine() -> dict[str, Any]:
    """The environment record of a study that measures time, with the processor."""
    import torch

    from benchmarking.report import read_cpu_model
    from benchmarking.task import count_cores
    from helper import describe_environment

    machine = {"cpu": read_cpu_model(), "cores": count_cores()}
    return {**describe_environment(torch.device("cpu"), sys.argv), **machine}
