"""Time to the first training step and peak memory of a new process.

`python -m benchmarking.process_start WORK CONFIG` is the measured process: it trains on the task
in the folder WORK with the BenchmarkConfig CONFIG (JSON), prints an empty line after its first
step, and its peak memory as JSON after a few more steps.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarking.options import BenchmarkConfig
from benchmarking.rounds import Figures, Measure
from benchmarking.task import Task, open_task
from benchmarking.training_speed import build_trainer
from common.cli import restore_dataclass
from common.machine import read_peak_memory_mib
from helper import PROJECT_DIR, UserError, synchronise

STEPS = 5  # before memory is read; the optimizer state exists after the first


def build_start(task: Task) -> Measure:
    """Measure a new training process with a warm pixel cache, and one that only imports torch.

    The figures are seconds to the end of the first step, seconds to import torch, their
    difference, and peak memory in MiB on the host and on the device.
    """
    config = json.dumps(task.config.to_dict())
    command = ["-m", "benchmarking.process_start", str(task.work), config]

    def measure() -> Figures:
        torch_s, _ = time_process(["-c", "import torch; print()"])
        step_s, rest = time_process(command)
        peaks = json.loads(rest)
        return {
            "import_torch_s": torch_s,
            "first_step_s": step_s,
            "first_step_beyond_torch_s": step_s - torch_s,
            **{key: value for key, value in peaks.items() if value is not None},
        }

    return measure


def time_process(arguments: list[str]) -> tuple[float, str]:
    """Return the seconds from the start of a Python process to its first line, and later output.

    Raises:
        UserError: The process failed; gives the last line of its error output.
    """
    with tempfile.TemporaryFile() as errors:
        started_s = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, *arguments],
            cwd=PROJECT_DIR,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            errors="replace",
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time_s = time.perf_counter() - started_s
            rest = process.stdout.read()
        if process.returncode:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines()
            raise UserError(
                f"python {' '.join(arguments[:2])} ended with status {process.returncode}: "
                f"{lines[-1] if lines else 'no error output'}"
            )
    return time_s, rest


def train(task: Task) -> None:
    """Start like a run, with baselines and first checkpoint, and train for a few steps."""
    run_dir = task.work / "fresh"
    run_dir.mkdir(exist_ok=True)
    trainer = build_trainer(task, run_dir)
    trainer.save(improved=False)
    batches = trainer.train.shuffle(task.config.batch_size, seed=0, epoch=0)
    for step, batch in zip(range(STEPS), batches, strict=False):
        trainer.train_step(batch, step)
        if step == 0:
            synchronise(task.device)
            print(flush=True)
    on_cuda = task.device.type == "cuda"
    peaks = {
        "peak_memory_mib": read_peak_memory_mib(),
        "peak_device_memory_mib": torch.cuda.max_memory_allocated() / 2**20 if on_cuda else None,
    }
    print(json.dumps(peaks))


if __name__ == "__main__":
    options = restore_dataclass(BenchmarkConfig, json.loads(sys.argv[2]))
    train(open_task(options, Path(sys.argv[1])))
