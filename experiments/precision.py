"""Which arithmetic trains which backbone faster here: fp32 or bf16.

    python -m experiments.precision --json results/benchmarks/precision.json

Forward, backward and step on one fixed batch, as the limit of benchmark.py, in turns.
"""

import argparse
import sys
from pathlib import Path

import torch

import model
from benchmarking import synthetic_step
from benchmarking.rounds import (
    Figures,
    Measure,
    divide_rounds,
    find_median,
    find_spread,
    measure_in_turn,
    time_run,
)
from common.atomic_files import write_json
from experiments.cli import describe_machine
from helper import log, run_verb
from modeling import precision

MODELS = (
    *("mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "mnasnet1_0", "shufflenet_v2_x1_0"),
    *("convnext_tiny", "regnet_y_400mf", "densenet121", "squeezenet1_1", "resnet18", "net"),
)
BATCH_SIZE = 32
STEPS = 3


def build(name: str, size_px: int, precision: str) -> Measure:
    """Images/s of some steps on noise, whose values ask no less of the arithmetic than slices'."""
    device = torch.device("cpu")
    images, labels = torch.rand(BATCH_SIZE, 1, size_px, size_px), torch.arange(BATCH_SIZE) % 3
    step = synthetic_step.build_step(model.build_model(name, 3, size_px), images, labels, precision)

    def run() -> None:
        for _ in range(STEPS):
            step()

    def measure() -> Figures:
        return {precision: STEPS * BATCH_SIZE / time_run(run, device)}

    return measure


def study(options: argparse.Namespace) -> None:
    """Measure model by model, print a row each, and write the figures where asked to."""
    precision.keep_freed_memory()
    rows: dict[str, dict[str, list[float]]] = {}
    for name in options.models:
        measures = {kind: build(name, options.image_size, kind) for kind in ("fp32", "bf16")}
        rounds = measure_in_turn(measures, options.repeats)
        fp32, bf16 = rounds["fp32"], rounds["bf16"]
        ratios = divide_rounds(bf16, fp32)
        rows[name] = {**rounds, "ratio": ratios}
        log.info(
            "%-20s fp32 %6.1f  bf16 %6.1f images/s  bf16 / fp32 %.2f [%.2f, %.2f]",
            *(name, find_median(fp32), find_median(bf16), find_median(ratios)),
            *find_spread(ratios),
        )
    if options.json:
        figures = {"image_size": options.image_size, "batch_size": BATCH_SIZE, "images_per_s": rows}
        write_json(options.json, {**figures, "environment": describe_machine()})


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="experiments.precision", description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--image-size", type=int, default=160, help="px")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    return run_verb(study, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
