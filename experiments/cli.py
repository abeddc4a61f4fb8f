"""Shared command line of the experiments: options, error handling and JSON output."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.atomic_files import write_json
from helper import describe_environment, run_command


def build_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of `python -m experiments.NAME`, with the option --json."""
    parser = argparse.ArgumentParser(prog=f"experiments.{name}", description=description)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser


def run(
    measure: Callable[[argparse.Namespace], dict[str, Any]], options: argparse.Namespace
) -> int:
    """Run an experiment, write its figures and return the exit status."""
    return run_command(lambda parsed: write_figures(measure(parsed), parsed), options)


def write_figures(figures: dict[str, Any], options: argparse.Namespace) -> None:
    """Write the figures and the environment record to the file given by --json, if any."""
    if not options.json:
        return
    import torch

    from common.machine import count_cores, read_cpu_model

    environment = describe_environment(torch.device("cpu"), sys.argv)
    environment |= {"cpu": read_cpu_model(), "cores": count_cores()}
    write_json(options.json, {**figures, "environment": environment})
