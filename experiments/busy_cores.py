"""Measure speed while other programs compute.

    python -m experiments.busy_cores CHECKPOINT IMAGES --json FILE

For no, one and two programs beside that compute without end, each with the number of spins of GNU
OpenMP that the program sets and with the library's own, it measures in a new process (images/s):
training steps and evaluation of the checkpoint's network on slices in memory, and prediction of the
files of a folder. All conditions are measured once per round.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import helper
from experiments import cli
from helper import PROJECT_DIR, UserError, log
from inference.image_stream import find_files
from inference.pipeline import predict_batches
from inference.predictor import load_predictor
from modeling import precision
from modeling.forward import predict_logits, to_unit_range
from training.optimizer import build_optimizer

SPINS = {"GNU OpenMP's own": "300000", "this project's": "3000"}
N_BUSY = (0, 1, 2)
BATCH_SIZE = 32
N_FILES = 64
SHORTEST_S = 4.0  # of a measurement
LR = 1e-5


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = cli.build_parser("busy_cores", __doc__)
    parser.add_argument("checkpoint", type=Path, help="best.pt of a run")
    parser.add_argument("images", type=Path, help="folder with images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        return helper.run_command(print_speeds, options)
    return cli.run(measure, options)


def print_speeds(options: argparse.Namespace) -> None:
    """Measure in this process and print the images/s as JSON."""
    print(json.dumps(measure_here(options.checkpoint, options.images)))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the images/s of every condition and round, print and return their medians."""
    rounds: dict[str, dict[str, list[float]]] = {}
    for number in range(options.rounds):
        for n_busy, (setting, spins) in itertools.product(N_BUSY, SPINS.items()):
            log.info("round %d of %d: %d beside, %s", number + 1, options.rounds, n_busy, setting)
            with keep_busy(n_busy):
                found = measure_in_process(options.checkpoint, options.images, spins)
            series = rounds.setdefault(f"{n_busy} beside, {setting}", {})
            for name, speed in found.items():
                series.setdefault(name, []).append(speed)
    medians = {
        condition: {name: statistics.median(speeds) for name, speeds in series.items()}
        for condition, series in rounds.items()
    }
    for condition, speeds in medians.items():
        text = ", ".join(f"{name} {speed:.1f}" for name, speed in speeds.items())
        log.info("%-28s %s images/s", condition, text)
    return {"spins": SPINS, "medians": medians, "rounds": rounds}


@contextlib.contextmanager
def keep_busy(n_programs: int) -> Iterator[None]:
    """Run programs that compute without end."""
    command = [sys.executable, "-c", "while True: pass"]
    programs = [subprocess.Popen(command) for _ in range(n_programs)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def measure_in_process(checkpoint: Path, images: Path, spins: str) -> dict[str, float]:
    """Return what `measure_here` returns in a new process with a number of spins.

    Raises:
        UserError: The process failed; gives the last line of its errors.
    """
    command = [sys.executable, "-m", "experiments.busy_cores", str(checkpoint.resolve())]
    done = subprocess.run(
        [*command, str(images.resolve()), "--worker"],
        cwd=PROJECT_DIR,
        env={**os.environ, "GOMP_SPINCOUNT": spins},
        capture_output=True,
        encoding="utf-8",
    )
    if done.returncode:
        line = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(line.removeprefix("error: "))
    return json.loads(done.stdout.splitlines()[-1])


def measure_here(checkpoint: Path, images: Path) -> dict[str, float]:
    """Return the images/s of training, evaluation and prediction of files in this process."""
    precision.keep_freed_memory()
    helper.set_threads(0)
    predictor = load_predictor([checkpoint], "cpu")
    files = list(itertools.islice(find_files([images]), N_FILES))
    network = predictor.members[0].network
    size_px = network.preprocess.image_size
    slices = torch.randint(256, (BATCH_SIZE, 1, size_px, size_px), dtype=torch.uint8)
    labels = torch.arange(BATCH_SIZE) % len(predictor.classes)

    def evaluate() -> int:
        return len(predict_logits(network, [slices])[0])

    def predict() -> int:
        pairs = itertools.chain.from_iterable(predict_batches(predictor, files))
        return sum(prediction is not None for _, prediction in pairs)

    found = {"evaluation": time_images(evaluate), "files": time_images(predict)}
    network.requires_grad_(True).train()  # last, as it changes the network
    optimizer = build_optimizer(network, network.head, LR, weight_decay=0.0)

    def train() -> int:
        optimizer.zero_grad()
        F.cross_entropy(network(to_unit_range(slices)), labels).backward()
        optimizer.step()
        return len(slices)

    return {"training": time_images(train), **found}


def time_images(run: Callable[[], int]) -> float:
    """Return the images/s of a function that returns how many it has processed."""
    run()  # warm-up
    n_images, started_s = 0, time.perf_counter()
    while (time_s := time.perf_counter() - started_s) < SHORTEST_S:
        n_images += run()
    return n_images / time_s


if __name__ == "__main__":
    sys.exit(main())
