"""Training speed in the GPU check: precisions, compiler, places of the slices, processes."""

import contextlib
import dataclasses
import logging
import os
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import dataset
import helper
from benchmarking import training_speed
from benchmarking.options import BenchmarkConfig, GpuCheckConfig
from benchmarking.rounds import Figures, measure_interleaved
from benchmarking.task import Task, open_task
from helper import UserError, first_line, log, time_run
from modeling import precision
from trainer import Trainer
from training import distributed

Result = dict[str, Any]
BATCH_SIZES = (32, 128)
TRIAL_STEPS = 5  # to estimate the speed, and the fewest steps of a measured epoch
EPOCH_S = 1.5  # duration of a measured epoch
REPEATS = 2


class NotApplicableError(UserError):
    """A part that this machine cannot run; the message is the reason."""


def choose_batch_sizes(config: GpuCheckConfig) -> list[int]:
    """Return the batch sizes to measure, smaller ones if there are few slices."""
    return sorted({min(size, max(4, config.slices // 3)) for size in BATCH_SIZES})


def make_benchmark_config(config: GpuCheckConfig, **values: Any) -> BenchmarkConfig:
    """Return the options of measurements on the sample."""
    same = ("slices", "model", "image_size", "seed", "device", "threads")
    return BenchmarkConfig(**{name: getattr(config, name) for name in same} | values)


def open_short_task(config: GpuCheckConfig, work: Path, **values: Any) -> Task:
    """Open a benchmark task whose epoch takes about EPOCH_S without data loading."""
    task = open_task(make_benchmark_config(config, **values), work / "sample")
    batch_size = task.config.batch_size
    trial = dataclasses.replace(task, rows=task.rows.head(TRIAL_STEPS * batch_size))
    measure = training_speed.build_synthetic_step(trial)
    measure()  # warm-up
    speed = measure()["synthetic_step_images_per_s"]
    n_steps = distributed.broadcast(max(TRIAL_STEPS, round(speed * EPOCH_S / batch_size)))
    return dataclasses.replace(task, rows=task.rows.head(n_steps * batch_size))


def measure_epoch(trainer: Trainer) -> Figures:
    """Train an epoch; return its speed and mean loss. A loss that is not finite is an error."""
    losses: list[float] = []
    epoch_s = time_run(lambda: losses.append(trainer.train_epoch()), trainer.device)
    n_slices = trainer.steps_per_epoch * trainer.batch_size
    return {"images_per_s": n_slices / epoch_s, "train_loss": losses[0]}


@contextlib.contextmanager
def record_log() -> Iterator[list[str]]:
    """Yield a list that gets every line that the program logs."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    try:
        yield lines
    finally:
        log.removeHandler(handler)


# ---- measurements


def measure_speed(config: GpuCheckConfig, work: Path, name: str) -> Result:
    """Measure the pipeline and its upper bound, the synthetic step, in one precision."""
    device = helper.resolve_device(config.device)
    if name == "bf16" and not precision.has_fast_bf16(device):
        raise NotApplicableError("this device emulates bf16")
    return {
        f"batch {size}": guard(partial(measure_pipeline, config, work, name, size))
        for size in choose_batch_sizes(config)
    }


def guard(measure: Callable[[], Result]) -> Result:
    """Return a result, or the reason why there is none."""
    try:
        return measure()
    except (RuntimeError, UserError) as error:
        return {"error": f"{type(error).__name__}: {first_line(error)}"}


def measure_pipeline(config: GpuCheckConfig, work: Path, name: str, size: int) -> Result:
    """Measure training epochs and synthetic steps of one batch size alternately."""
    task = open_short_task(config, work, precision=name, batch_size=size)
    trainer = training_speed.build_trainer(task, work / "speed")
    synthetic_step = training_speed.build_synthetic_step(task)
    measures = {"synthetic step": synthetic_step, "pipeline": lambda: measure_epoch(trainer)}
    rounds = measure_interleaved(measures, REPEATS)
    limits, speeds = rounds["synthetic_step_images_per_s"], rounds["images_per_s"]
    return {
        "pipeline_images_per_s": statistics.median(speeds),
        "synthetic_step_images_per_s": statistics.median(limits),
        "pipeline_over_synthetic_step": statistics.median(
            speed / limit for speed, limit in zip(speeds, limits, strict=True)
        ),
        "final_loss": rounds["train_loss"][-1],
        "skipped_steps": int(trainer.scaler.skipped_steps),
    }


def measure_tiers(config: GpuCheckConfig, work: Path) -> Result:
    """Measure training with slices on the device, on the host and on disk."""
    task = open_short_task(config, work, batch_size=choose_batch_sizes(config)[0])
    trainer = training_speed.build_trainer(task, work / "tiers")

    def open_slices(in_memory: bool) -> Any:
        rows = task.rows.assign(split="train")
        options = ("train", task.work, task.classes, config.image_size)
        return dataset.take_slices(rows, *options, in_memory=in_memory)

    tiers: dict[str, Callable[[], Any]] = {
        "device": lambda: open_slices(True).to(task.device),
        "host": lambda: open_slices(True).keep_on_host(task.device),
        "disk": lambda: open_slices(False).to(task.device),
    }
    if task.device.type == "cpu":
        del tiers["device"]  # the same as the host

    def measure(tier: str) -> Result:
        trainer.train = tiers[tier]()
        measure_epoch(trainer)  # warm-up
        return measure_epoch(trainer)

    return {tier: guard(partial(measure, tier)) for tier in tiers}


def measure_compiler(config: GpuCheckConfig, work: Path) -> Result:
    """Measure training without and with torch.compile, and the time of its first step."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(work / "inductor")  # nothing is compiled before
    size = choose_batch_sizes(config)[0]
    task = open_short_task(config, work, batch_size=size)
    eager = training_speed.build_trainer(task, work / "eager")
    compiled_task = dataclasses.replace(task, config=dataclasses.replace(task.config, compile="on"))
    with record_log() as lines:
        compiled = training_speed.build_trainer(compiled_task, work / "compiled")
        batch = next(compiled.train.shuffle(size, seed=0, epoch=0))
        first_step_s = time_run(lambda: compiled.train_step(batch, 0), task.device)
        measures = {"eager": lambda: rate("eager", eager), "compiled": lambda: rate("on", compiled)}
        rounds = measure_interleaved(measures, REPEATS)
    if not compiled.replica.compiles:
        raise UserError(next(line for line in lines if line.startswith("not compiled")))
    off, on = statistics.median(rounds["eager"]), statistics.median(rounds["on"])
    return {
        "off_images_per_s": off,
        "on_images_per_s": on,
        "on_over_off": on / off,
        "first_step_s": first_step_s,
    }


def rate(key: str, trainer: Trainer) -> Figures:
    """Return the speed of an epoch under another key."""
    return {key: measure_epoch(trainer)["images_per_s"]}


def train_on_second_device(config: GpuCheckConfig, work: Path) -> Result:
    """Train on cuda:1, where streams and events must be those of that device."""
    if torch.cuda.device_count() < 2:
        raise NotApplicableError("there are not two CUDA devices")
    second = dataclasses.replace(config, device="cuda:1")
    task = open_short_task(second, work, batch_size=choose_batch_sizes(config)[0])
    trainer = training_speed.build_trainer(task, work / "second")
    measure_epoch(trainer)  # warm-up
    return {"device": str(trainer.device), **measure_epoch(trainer)}


def measure_processes(config: GpuCheckConfig, work: Path) -> Result:
    """Measure the speed of this number of processes; write the gradients of the first step."""
    device = distributed.init(config.device)
    own = dataclasses.replace(config, device=str(device))
    size = choose_batch_sizes(config)[-1]
    gradients = compute_gradients(own, work, size)
    if distributed.is_main_process():
        torch.save(gradients, work / f"gradients-{distributed.get_world_size()}.pt")
    task = open_short_task(own, work, batch_size=size)
    trainer = training_speed.build_trainer(task, work / "processes")
    measure_epoch(trainer)  # warm-up
    figures = measure_epoch(trainer)
    return {"batch_size": size, **figures}


def compute_gradients(config: GpuCheckConfig, work: Path, size: int) -> Tensor:
    """Return the gradients of the first step in fp32, without TF32 and dropout, [weights].

    On the CPU batch norm is not synchronised, so there it uses its running statistics.
    """
    options = make_benchmark_config(config, precision="fp32", batch_size=size)
    trainer = training_speed.build_trainer(open_task(options, work / "sample"), work / "gradients")
    torch.backends.cudnn.allow_tf32 = False
    trainer.set_mode()
    for part in trainer.network.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if isinstance(part, _BatchNorm) and trainer.device.type == "cpu":
            part.eval()
    rank, n_processes = distributed.get_rank(), distributed.get_world_size()
    batch = next(trainer.train.shuffle(size, config.seed, 0, rank, n_processes))
    trainer.accumulate_gradients(batch, step=0)
    torch.backends.cudnn.allow_tf32 = True
    gradients = [each.grad.flatten() for each in trainer.parameters if each.grad is not None]
    return torch.cat(gradients).cpu()
