"""What each stage costs as the number of slices grows: seconds, and the most memory held.

    python -m experiments.scaling --json results/benchmarks/scaling.json

Makes phantoms, and takes each stage in a process of its own: rendering and listing them (prepare),
loading the manifest, decoding into the pixel cache, and an epoch of the custom CNN with
`--memory-mib`, so that slices beyond it are read from disk. Phantoms know their copies: the search
for copies is not among the stages (docs/copies.md tells its cost).
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

from common.atomic_files import write_json
from experiments.cli import describe_machine
from helper import PROJECT_DIR, UserError, log, run_verb

IMAGE_SIZE = 64


def prepare(options: argparse.Namespace) -> int:
    """Render the phantoms and write their manifest."""
    import prepare as verb

    if verb.main(["--phantom", str(options.count), "--data", str(options.data)]):
        raise UserError("prepare.py failed")
    return int(options.count)


def load(options: argparse.Namespace) -> int:
    """Read the manifest."""
    import dataset

    return len(dataset.load_table(options.data))


def decode(options: argparse.Namespace) -> int:
    """Decode every slice into the pixel cache."""
    import dataset

    table = dataset.load_table(options.data)
    return len(dataset.open_pixels(table, options.data, IMAGE_SIZE)[0])


def train(options: argparse.Namespace) -> int:
    """One epoch, its preparation included."""
    import args
    import dataset
    import model
    from runs import lifecycle

    size, memory = str(IMAGE_SIZE), str(options.memory_mib)
    config = args.parse_train(["--model", "net", "--image-size", size, "--memory-mib", memory])
    assert isinstance(config, args.TrainConfig)
    table, device = dataset.load_table(options.data), torch.device("cpu")
    network = model.build_model("net", len(dataset.list_classes(table)), IMAGE_SIZE)
    record = lifecycle.build_record(config, network, table, options.data, "scaling", device)
    trainer = lifecycle.prepare(config, record, network, table, device, options.data)
    trainer.train_epoch()
    return len(trainer.train)


STAGES: dict[str, Callable[[argparse.Namespace], int]] = {
    "prepare": prepare,
    "load": load,
    "decode": decode,
    "train": train,
}


def run_stage(options: argparse.Namespace) -> None:
    """One stage in this process; its figures as the last line."""
    from benchmarking.process_start import read_peak_memory_mib

    started_s = time.perf_counter()
    count = STAGES[options.stage](options)
    time_s = time.perf_counter() - started_s
    print(json.dumps({"n": count, "time_s": time_s, "peak_memory_mib": read_peak_memory_mib()}))


def measure(stage: str, count: int, data: Path, memory_mib: int) -> dict[str, Any]:
    """One stage in a new process.

    Raises:
        UserError: It failed.
    """
    command = ["-m", "experiments.scaling", "--stage", stage, "--count", str(count)]
    where = ["--data", str(data), "--memory-mib", str(memory_mib)]
    result = subprocess.run(
        [sys.executable, *command, *where],
        cwd=PROJECT_DIR,
        stdout=subprocess.PIPE,
        text=True,
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


def study(options: argparse.Namespace) -> None:
    """Every stage at every size, and the figures where asked to."""
    if options.stage:
        run_stage(options)
        return
    table: dict[str, dict[str, Any]] = {}
    for count in options.counts:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            data = Path(folder) / "phantom"
            table[str(count)] = {
                stage: measure(stage, count, data, options.memory_mib) for stage in STAGES
            }
        if options.json:  # after every size, for they are long
            conditions = {
                "image_size": IMAGE_SIZE,
                "memory_mib": options.memory_mib,
                "environment": describe_machine(),
            }
            write_json(options.json, {"stages": table, **conditions})


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="experiments.scaling", description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--memory-mib", type=int, default=64, help="for slices in training")
    parser.add_argument("--folder", type=Path, help="for the phantoms (default: temporary files)")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    for hidden in ("--stage", "--count", "--data"):  # of the processes that it starts
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.data:
        options.data = Path(options.data)
    return run_verb(study, options)


if __name__ == "__main__":
    sys.exit(main())
