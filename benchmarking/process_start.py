"""What a training costs that has just been started: seconds to its first step, memory.

    python -m benchmarking.process_start WORK

is the process that is measured: it takes up the task of a folder, prints an empty line after its
first step, and its peaks of memory as JSON after some more.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from args import BenchmarkConfig
from benchmarking.rounds import Figures, Measure, synchronise
from common.atomic_files import write_json
from common.cli import restore_dataclass
from helper import PROJECT_DIR, UserError

CONFIG_FILE = "benchmark.json"
STEPS = 5  # until memory is read; the optimiser's state is there after the first


def build_start(work: Path) -> Measure:
    """A training in a new process, its pixel cache warm, beside one that imports torch alone.

    Seconds to the end of its first step, torch's share and the rest of them, and its peak memory in
    MiB, on the device too where it tells.
    """

    def measure() -> Figures:
        torch_s, _ = time_process(["-c", "import torch; print()"])
        step_s, rest = time_process(["-m", "benchmarking.process_start", str(work)])
        peaks = json.loads(rest)
        return {
            "import_torch_s": torch_s,
            "first_step_s": step_s,
            "first_step_beyond_torch_s": step_s - torch_s,
            **{key: value for key, value in peaks.items() if value is not None},
        }

    return measure


def time_process(arguments: list[str]) -> tuple[float, str]:
    """Seconds from the start of a Python process to its first line, and what it says after that.

    Raises:
        UserError: It failed; with its last words.
    """
    with tempfile.TemporaryFile() as errors:
        started_s = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, *arguments],
            cwd=PROJECT_DIR,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time_s = time.perf_counter() - started_s
            rest = process.stdout.read()
        if process.returncode:
            errors.seek(0)
            words = errors.read().decode(errors="replace").strip().splitlines()
            raise UserError(
                f"python {' '.join(arguments)} ended with status {process.returncode}: "
                f"{words[-1] if words else 'it said nothing'}"
            )
    return time_s, rest


def train(work: Path) -> None:
    """Begin as a run does, its baselines and first checkpoint included, and train a few steps."""
    import torch

    from benchmarking.pipeline import build_config
    from benchmarking.task import open_task
    from runs import lifecycle

    task = open_task(read_config(work), work)
    network, config, run_dir = task.build_network(), build_config(task), work / "fresh"
    table = task.rows.assign(
        split=["val" if row == 0 else "train" for row in range(len(task.rows))]
    )
    run_dir.mkdir(exist_ok=True)
    record = lifecycle.build_record(config, network, table, work, "benchmark", task.device)
    trainer = lifecycle.prepare(config, record, network, table, task.device, run_dir)
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


def write_config(config: BenchmarkConfig, work: Path) -> None:
    """Leave the options for the processes that take the task up."""
    write_json(work / CONFIG_FILE, config.to_dict())


def read_config(work: Path) -> BenchmarkConfig:
    """The options that `write_config` left."""
    return restore_dataclass(BenchmarkConfig, json.loads((work / CONFIG_FILE).read_text("utf-8")))


def read_peak_memory_mib() -> float | None:
    """The most memory that this process has held; None where the system does not tell.

    Linux counts in `getrusage` the memory of the process that started this one, so its own file is
    read there.
    """
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 2**10
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    train(Path(sys.argv[1]))
