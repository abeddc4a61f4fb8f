"""Measure time and peak memory of each stage as the number of slices grows.

    python -m experiments.scaling --json results/benchmarks/scaling.json

Every stage runs in a process of its own: render phantoms and write their manifest (prepare), load
the manifest (load), decode into the pixel cache (decode), and train the custom CNN for one epoch
with `--memory-mib`, so that slices beyond it are read from disk (train). The duplicates of phantoms
are known, so the duplicate search is not measured here.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from experiments import cli
from helper import PROJECT_DIR, UserError, log

IMAGE_SIZE = 64


def prepare(options: argparse.Namespace) -> int:
    """Render the phantoms and write their manifest."""
    import prepare as command

    if command.main(["--phantom", str(options.count), "--data", str(options.data)]):
        raise UserError("prepare.py failed")
    return int(options.count)


def load(options: argparse.Namespace) -> int:
    """Read the manifest."""
    import dataset

    return len(dataset.load_table(options.data))


def decode(options: argparse.Namespace) -> int:
    """Decode every slice into the pixel cache."""
    import dataset
    from loading.pixel_cache import open_pixels

    table = dataset.load_table(options.data)
    return len(open_pixels(table, options.data, IMAGE_SIZE).pixels)


def train(options: argparse.Namespace) -> int:
    """Train one epoch, including its setup."""
    import args
    import dataset
    import model
    from runs import lifecycle

    size, memory = str(IMAGE_SIZE), str(options.memory_mib)
    command = ["--model", "net", "--image-size", size, "--memory-mib", memory]
    config = args.parse_train([*command, "--data", str(options.data)])
    assert isinstance(config, args.TrainConfig)
    table, device = dataset.load_table(options.data), torch.device("cpu")
    network = model.build_model("net", len(dataset.list_classes(table)), IMAGE_SIZE)
    record = lifecycle.build_record(config, network, table, "scaling", device)
    trainer = lifecycle.build_trainer(config, record, network, table, device, options.data)
    trainer.train_epoch()
    return len(trainer.train)


Stage = Callable[[argparse.Namespace], int]
STAGES: dict[str, Stage] = {"prepare": prepare, "load": load, "decode": decode, "train": train}


def run_stage(options: argparse.Namespace) -> None:
    """Run one stage in this process and print its figures as the last line."""
    from common.machine import read_peak_memory_mib

    started_s = time.perf_counter()
    count = STAGES[options.stage](options)
    time_s = time.perf_counter() - started_s
    print(json.dumps({"n": count, "time_s": time_s, "peak_memory_mib": read_peak_memory_mib()}))


def measure_stage(stage: str, count: int, data: Path, memory_mib: int) -> dict[str, Any]:
    """Run one stage in a new process and return its figures.

    Raises:
        UserError: The process failed.
    """
    command = ["-m", "experiments.scaling", "--stage", stage, "--count", str(count)]
    places = ["--data", str(data), "--memory-mib", str(memory_mib)]
    result = subprocess.run(
        [sys.executable, *command, *places],
        cwd=PROJECT_DIR,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if result.returncode:
        raise UserError(f"stage {stage} of {count} slices ended with status {result.returncode}")
    figures: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    log.info(
        "%7d slices  %-8s %8.1f s  %9.3f ms each  %6.0f MiB",
        *(count, stage, figures["time_s"], 1e3 * figures["time_s"] / figures["n"]),
        figures["peak_memory_mib"] or 0,
    )
    return figures


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every stage at every size; the file of --json is updated after each size."""
    stages: dict[str, dict[str, Any]] = {}
    figures = {"stages": stages, "image_size": IMAGE_SIZE, "memory_mib": options.memory_mib}
    for count in options.counts:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            data = Path(folder) / "phantom"
            stages[str(count)] = {
                stage: measure_stage(stage, count, data, options.memory_mib) for stage in STAGES
            }
        cli.write_figures(figures, options)
    return figures


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = cli.build_parser("scaling", __doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--memory-mib", type=int, default=64, help="memory for training slices")
    parser.add_argument("--folder", type=Path, help="parent folder of the temporary phantoms")
    for name, kind in (("--stage", str), ("--count", int), ("--data", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)  # for the child processes
    options = parser.parse_args(argv)
    if options.stage:
        run_stage(options)
        return 0
    return cli.run(measure, options)


if __name__ == "__main__":
    sys.exit(main())
