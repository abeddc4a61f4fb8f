"""Dry run: two training steps, one validation batch and one checkpoint, of which nothing is kept.

They are those of the last epoch, which needs most: slices have their full size, and no layer is
frozen any more.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from args import TrainConfig
from common import atomic_files
from common.machine import read_peak_memory_mib
from evaluation.fitted import ENSEMBLE_FILE
from evaluation.training_copies import FEATURES_FILE
from helper import log, time_run
from loading.image_source import MemorySlices, SliceSource
from modeling.forward import predict_logits
from runs import cross_validation, lifecycle, run_folder
from trainer import Trainer
from training import distributed
from training.loss_tracker import LossTracker

STEPS = 2  # the first one allocates memory and chooses algorithms, the second one is timed
MOST_STEPS = 10  # with fp16, whose first steps may be skipped until the loss scale fits
RUN_FILES = ("config.json", "split.csv", "history.csv", "last.pt", "best.pt")
RESULT_FILES = "metrics.json, predictions.csv, label_review.csv, report.html, model_card.md, plots/"


@dataclass(frozen=True)
class Costs:
    """Measured costs of a run.

    Attributes:
        step_s: Time of a training step.
        forward_s: Time of a batch of validation or batch norm recalibration.
        save_s: Time to write last.pt and best.pt.
        file_mib: Size of each checkpoint by name.
    """

    step_s: float
    forward_s: float
    save_s: float
    file_mib: dict[str, float]


def try_run(config: TrainConfig, run_dir: Path, results_dir: Path, device: torch.device) -> None:
    """Train two steps of a run, or of its first fold, and print what the run would use.

    Args:
        config: All options of the run.
        run_dir: Folder that the run would create, session/RUN.
        results_dir: Folder of its evaluation, results/RUN.
        device: Training device.

    Raises:
        UserError: The run could not start, or its first losses are not finite.
    """
    if distributed.is_main_process() and not (run_dir / run_folder.FAILED).exists():
        atomic_files.check_absent(run_dir)
    table = _load_table(config)
    distributed.check_batch_size(table["split"].tolist(), config.train.batch_size)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    # on the disk of the run, so that a lack of space shows
    parent = run_dir.parent if run_dir.parent.is_dir() else Path()
    with tempfile.TemporaryDirectory(dir=parent, prefix=atomic_files.UNFINISHED) as folder:
        trainer = lifecycle.build_new_trainer(config, table, Path(folder), run_dir.name, device)
        try:
            costs = measure_costs(trainer)
        finally:
            trainer.history.close()
    lifecycle.log_notes(trainer)
    log.info(
        "dry run of %s (%s): %d training steps, one validation batch, one checkpoint",
        *(trainer.record["model"], trainer.record["start"], STEPS),
    )
    patients = ", patients.csv" if (table["patient"] != "").any() else ""
    results = f"{results_dir.as_posix()}: {RESULT_FILES}{patients}"
    for label, value in describe_run(trainer, costs, run_dir, results).items():
        log.info("  %-14s %s", label, value)
    log.info(
        "nothing was kept but the data folder's cache and downloaded weights; to train, leave out "
        "--dry-run"
    )
    distributed.barrier()


def _load_table(config: TrainConfig) -> pd.DataFrame:
    if config.data.folds is None:
        return lifecycle.load_table(config)
    log.info("fold 1 of %d", config.data.folds)
    return cross_validation.load_new_tables(config)[0]


def measure_costs(trainer: Trainer) -> Costs:
    """Train, predict and save as the last epoch of the run would."""
    trainer.epoch = trainer.options.epochs - 1
    trainer.set_mode()
    step_s = _measure_steps(trainer)
    rank, n_processes = distributed.get_rank(), distributed.get_world_size()

    def predict() -> None:
        slices = next(trainer.val.iterate(trainer.micro_batch, rank, n_processes))
        predict_logits(trainer.ema, [slices])

    trainer.retry(predict)  # the first time takes longer
    forward_s = time_run(predict, trainer.device)
    save_s = time_run(lambda: trainer.save(improved=True), trainer.device)
    files = sorted(trainer.run_dir.glob("*.pt"), reverse=True)
    sizes_mib = {path.name: path.stat().st_size / 2**20 for path in files}
    return Costs(step_s, forward_s, save_s, sizes_mib)


def _measure_steps(trainer: Trainer) -> float:
    """Train until two steps have changed the weights; return the time of the last one, s."""
    rank, n_processes = distributed.get_rank(), distributed.get_world_size()
    losses = LossTracker(trainer.epoch + 1, trainer.steps_per_epoch, torch.zeros(0))
    n_steps, time_s = 0, 0.0

    def train() -> None:
        losses.add(trainer.train_step(batch, trainer.step + n_steps % trainer.steps_per_epoch))

    while n_steps < MOST_STEPS and n_steps - int(trainer.scaler.skipped_steps) < STEPS:
        batch = next(
            trainer.train.shuffle(
                trainer.options.batch_size, trainer.seed, n_steps, rank, n_processes
            )
        )
        time_s = time_run(train, trainer.device)
        n_steps += 1
    losses.read()
    return time_s


# ---- the report


def describe_run(trainer: Trainer, costs: Costs, run_dir: Path, results: str) -> dict[str, str]:
    """Return what the run would use, by label."""
    config, record = trainer.config, trainer.record
    n_epochs, n_folds = trainer.options.epochs, config.data.folds
    n_processes = distributed.get_world_size()
    per_process = " of each process" if n_processes > 1 else ""
    threads = f"{record['threads']} thread{'s' if record['threads'] > 1 else ''}"
    processes = f", {n_processes} processes" if n_processes > 1 else ""
    n_val_batches = -(-len(trainer.val) // (n_processes * trainer.micro_batch))
    n_batches = n_val_batches + len(trainer.choose_statistics_batches())
    epoch_s = trainer.steps_per_epoch * costs.step_s + n_batches * costs.forward_s + costs.save_s
    total = f"about {format_time(n_epochs * epoch_s * (n_folds or 1))} in all"
    folds = f" for {n_folds} folds" if n_folds else ""
    patience = ", less if it stops early" if 0 < trainer.options.patience < n_epochs else ""
    checkpoints = [f"{name} {format_mib(size)}" for name, size in costs.file_mib.items()]
    tensorboard = ", tensorboard/" if config.run.tensorboard else ""
    features = [] if record["phantom"] else [FEATURES_FILE]
    files = ", ".join([*RUN_FILES, *features])
    if n_folds:
        shared = ", ".join(["config.json", "split.csv", ENSEMBLE_FILE, *features])
        files = f"{shared}, fold_1 … fold_{n_folds}/ with {', '.join(RUN_FILES)}"
    return {
        "device": f"{record['environment']['device']}, {threads}{processes}",
        "precision": record["precision"],
        "torch.compile": "on" if trainer.replica.compiles else "off",
        "slices": describe_slices(trainer),
        "steps": f"{trainer.steps_per_epoch} per epoch, {n_epochs} epochs; "
        + describe_batches(trainer),
        "memory": describe_memory(trainer.device) + per_process,
        "time": f"about {format_time(epoch_s)} an epoch, {total}{folds}{patience}",
        "checkpoints": f"{', '.join(checkpoints)}{' in each fold' if n_folds else ''}",
        "run folder": f"{run_dir.as_posix()}: {files}{tensorboard}",
        "results": results,
    }


def describe_slices(trainer: Trainer) -> str:
    """Return number, size and place of the decoded slices."""
    train, val = trainer.train, trainer.val
    size_mib = (len(train) + len(val)) * trainer.record["preprocess"]["image_size"] ** 2 / 2**20
    place = describe_place(train)
    return f"{len(train)} train, {len(val)} val; {format_mib(size_mib)} {place}"


def describe_place(slices: SliceSource) -> str:
    """Return where the slices are kept during training."""
    if not isinstance(slices, MemorySlices):
        return "on disk, read in every epoch"
    if slices.device.type == "cpu":
        return "in memory"
    return "in the memory of the device" if slices.is_on_device else "in the memory of the host"


def describe_batches(trainer: Trainer) -> str:
    """Return the batch size, and that of micro-batches if memory has run out."""
    batches = f"batches of {trainer.batch_size}"
    if trainer.micro_batch == trainer.batch_size:
        return batches
    return f"{batches} in micro-batches of {trainer.micro_batch}, as memory ran out"


def describe_memory(device: torch.device) -> str:
    """Return the peak memory of this process on the host and on a CUDA device."""
    host_mib = read_peak_memory_mib()
    peaks = [] if host_mib is None else [f"peak of {format_mib(host_mib)}"]
    if device.type == "cuda":
        peak_mib = torch.cuda.max_memory_reserved(device) / 2**20
        total_mib = torch.cuda.get_device_properties(device).total_memory / 2**20
        peaks.append(f"{format_mib(peak_mib)} of {format_mib(total_mib)} on the device")
    return ", ".join(peaks) or "not reported by this system"


def format_time(time_s: float) -> str:
    """Return seconds, minutes or hours with two digits or more."""
    for unit_s, unit in ((3600, "h"), (60, "min")):
        if time_s >= 2 * unit_s:
            return f"{time_s / unit_s:.{time_s < 10 * unit_s:d}f} {unit}"
    return f"{time_s:.{time_s < 10:d}f} s"


def format_mib(size_mib: float) -> str:
    """Return MiB, with one decimal below 10."""
    return f"{size_mib:,.{size_mib < 10:d}f} MiB"
