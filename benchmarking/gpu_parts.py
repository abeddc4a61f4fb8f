"""Measurements of the GPU check; each runs in a process of its own.

`python -m benchmarking.gpu_parts PART WORK CONFIG ARGUMENTS` measures PART in the folder WORK with
the GpuCheckConfig CONFIG and further ARGUMENTS (both JSON); its last line of output is the result
as JSON. The folder holds prepared phantoms in `data` and a sample of them in `sample`.
"""

import gc
import json
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import args
import helper
from benchmarking import gpu_speed
from benchmarking.gpu_speed import NotApplicableError, Result, choose_batch_sizes, record_log
from benchmarking.options import GpuCheckConfig
from common.cli import restore_dataclass
from common.machine import count_cores, read_cpu_model
from helper import UserError
from loading.memory_budget import measure_free_mib
from modeling import checkpoint, precision
from runs import lifecycle
from trainer import Trainer
from training import distributed

MEMORY_BATCH = 256  # of the run whose memory is limited
MEMORY_SHARE = 0.4  # of the activations that fit in the limited memory


def make_train_config(
    config: GpuCheckConfig, work: Path, epochs: int, batch_size: int, deterministic: bool
) -> args.TrainConfig:
    """Return the options of a run from scratch on the sample."""
    return args.TrainConfig(
        data=args.DataOptions(data=work / "sample"),
        model=args.ModelOptions(model=config.model, image_size=config.image_size, pretrained=False),
        train=args.TrainOptions(epochs=epochs, batch_size=batch_size, patience=0),
        augment=args.AugmentOptions(),
        run=args.RunOptions(
            seed=config.seed,
            device=config.device,
            threads=config.threads,
            deterministic=deterministic,
        ),
    )


def describe_machine(config: GpuCheckConfig, work: Path) -> Result:
    """Return hardware, driver, versions and the precision that `auto` chooses."""
    device = helper.resolve_device(config.device)
    environment = helper.describe_environment(device, [])
    del environment["command"]
    return {
        **environment,
        "precision": precision.resolve_precision("auto", device, config.model),
        "system": platform.platform(),
        "cpu": read_cpu_model(),
        "cores": count_cores(),
        "free_memory_mib": measure_free_mib(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": read_driver(),
        "gpus": [describe_gpu(index) for index in range(torch.cuda.device_count())],
    }


def describe_gpu(index: int) -> Result:
    """Return name, memory and compute capability of a CUDA device."""
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "memory_mib": properties.total_memory / 2**20,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
    }


def read_driver() -> str | None:
    """Return the version of NVIDIA's driver; None if nvidia-smi is absent or fails."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        ended = subprocess.run(
            command, capture_output=True, encoding="utf-8", timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return ended.stdout.strip().partition("\n")[0] or None


def train(config: GpuCheckConfig, work: Path, name: str, stop_epoch: int | None) -> Result:
    """Train two epochs with --deterministic; interrupt it in the middle of `stop_epoch`."""
    options = make_train_config(config, work, 2, choose_batch_sizes(config)[0], deterministic=True)
    device = helper.resolve_device(config.device)
    if stop_epoch is not None:
        interrupt(stop_epoch)
    table = lifecycle.load_table(options)
    try:
        lifecycle.start_run(options, table, work / name, name, device)
    except KeyboardInterrupt as error:
        return {"stopped": str(error)}
    return {"stopped": None}


def interrupt(epoch: int) -> None:
    """Send an interrupt to this process after the middle step of an epoch, from 0."""
    train_step = Trainer.train_step

    def run(self: Trainer, batch: Any, step: int) -> Tensor:
        if step == self.steps_per_epoch * epoch + self.steps_per_epoch // 2:
            signal.raise_signal(signal.SIGINT)
        return train_step(self, batch, step)

    Trainer.train_step = run  # type: ignore[method-assign]


def resume(config: GpuCheckConfig, work: Path, name: str) -> Result:
    """Continue an interrupted run."""
    lifecycle.resume_run(work / name, helper.resolve_device(config.device))
    return {}


def recover_memory(config: GpuCheckConfig, work: Path) -> Result:
    """Train with less memory than a large batch needs: slices move, then the batch is divided."""
    device = helper.resolve_device(config.device)
    if device.type != "cuda":
        raise NotApplicableError("the memory of CUDA devices alone can be limited")
    batch_size = min(MEMORY_BATCH, config.slices // 2)
    options = make_train_config(config, work, 1, batch_size, deterministic=False)
    table = lifecycle.load_table(options)
    held, peak = measure_memory(options, table, work / "probe", device)
    limit = held + MEMORY_SHARE * (peak - held)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(limit / total, device)
    with record_log() as lines:
        lifecycle.start_run(options, table, work / "limited", "limited", device)
    last = checkpoint.load_checkpoint(work / "limited" / "last.pt")
    events = [line for line in lines if line.startswith("out of memory")]
    if len(events) < 2 or "host" not in events[0] or last["micro_batch"] >= batch_size:
        raise UserError(f"slices must move to the host, then the batch be divided; was: {events}")
    return {
        "needed_mib": peak / 2**20,
        "limit_mib": limit / 2**20,
        "batch_size": batch_size,
        "micro_batch": last["micro_batch"],
        "train_loss": last["history"][-1]["train_loss"],
        "events": events,
    }


def measure_memory(
    options: args.TrainConfig, table: Any, run_dir: Path, device: torch.device
) -> tuple[int, int]:
    """Return the bytes that a training step holds before it starts, and their peak in it."""
    trainer = lifecycle.build_new_trainer(options, table, run_dir, "probe", device)
    batch = next(trainer.train.shuffle(options.train.batch_size, seed=0, epoch=0))
    trainer.train_step(batch, 0)  # allocates the state of the optimizer
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    trainer.train_step(batch, 0)
    peak = torch.cuda.max_memory_allocated(device)
    del trainer, batch
    gc.collect()
    torch.cuda.empty_cache()
    return held, peak


PARTS: dict[str, Callable[..., Result]] = {
    "machine": describe_machine,
    "speed": gpu_speed.measure_speed,
    "tiers": gpu_speed.measure_tiers,
    "compiler": gpu_speed.measure_compiler,
    "train": train,
    "resume": resume,
    "memory": recover_memory,
    "second device": gpu_speed.train_on_second_device,
    "processes": gpu_speed.measure_processes,
}


def main(name: str, work: Path, config: GpuCheckConfig, arguments: list[Any]) -> None:
    """Measure a part and print its result."""
    helper.set_threads(config.threads)
    try:
        result = {"status": "done", **PARTS[name](config, work, *arguments)}
        groups = (each for each in result.values() if isinstance(each, dict))
        if errors := [each["error"] for each in groups if "error" in each]:
            result |= {"status": "failed", "reason": "; ".join(errors)}
    except NotApplicableError as error:
        result = {"status": "skipped", "reason": str(error)}
    if distributed.is_main_process():
        print(json.dumps(result, allow_nan=False))
    distributed.barrier()
    distributed.destroy()


if __name__ == "__main__":
    part, folder, options, rest = sys.argv[1:]
    check = restore_dataclass(GpuCheckConfig, json.loads(options))
    sys.exit(
        helper.run_command(
            lambda config: main(part, Path(folder), config, json.loads(rest)), check, check.debug
        )
    )
