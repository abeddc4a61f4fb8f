"""Training speed: whole epochs of the program, and the synthetic step as its upper bound."""

from pathlib import Path

import pandas as pd
import torch
from torch.nn import functional as F

import args
from benchmarking.rounds import Figures, Measure
from benchmarking.task import Task
from helper import time_run
from modeling.forward import to_unit_range
from modeling.precision import autocast
from runs import lifecycle
from trainer import Trainer
from training.optimizer import build_optimizer
from training.replica import Replica

# Too low to memorise the batch: vanishing gradients would be denormal numbers, which are slow.
LR = 1e-5


def build_trainer(task: Task, run_dir: Path) -> Trainer:
    """Build the trainer of a run from scratch with the options of the benchmark."""
    options = task.config
    config = args.TrainConfig(
        data=args.DataOptions(data=task.work),
        model=args.ModelOptions(
            model=options.model, image_size=options.image_size, pretrained=False
        ),
        train=args.TrainOptions(epochs=1, batch_size=options.batch_size),
        augment=args.AugmentOptions(),
        run=args.RunOptions(
            seed=options.seed,
            device=options.device,
            threads=options.threads,
            precision=options.precision,
            compile=options.compile,
        ),
    )
    val = task.rows.head(1).assign(split="val")  # required, but not read in an epoch
    table = pd.concat([task.rows.assign(split="train"), val], ignore_index=True)
    network = task.build_network()
    record = lifecycle.build_record(config, network, table, "benchmark", task.device)
    return lifecycle.build_trainer(config, record, network, table, task.device, run_dir)


def build_pipeline(task: Task) -> Measure:
    """Measure an epoch of training (images/s) and the batch-norm recalibration after it (s).

    The epoch includes order, augmentation, EMA and losses, not validation. Recalibration uses at
    most 512 slices, whatever the length of the epoch.
    """
    trainer = build_trainer(task, task.work / "run")

    def measure() -> Figures:
        epoch_s = time_run(trainer.train_epoch, task.device)
        return {
            "pipeline_images_per_s": len(task.rows) / epoch_s,
            "recalibrate_batch_norm_s": time_run(trainer.recalibrate_batch_norm, task.device),
        }

    return measure


def build_synthetic_step(task: Task) -> Measure:
    """Measure forward, backward and optimizer step on one fixed batch in memory (images/s).

    Without loading, augmentation, clipping, EMA and reading of the loss it is an upper bound for a
    whole epoch.
    """
    batch, network = task.take_slices(n_steps=1), task.build_network()
    images = to_unit_range(batch.pixels)
    network.to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(network, network.head, LR, weight_decay=0.0)
    forward = Replica(network, compiles=task.config.compile == "on")

    def run() -> None:
        for _ in range(task.n_steps):
            with autocast(task.device, task.precision):
                logits = forward(images)
            F.cross_entropy(logits.float(), batch.labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    return lambda: {"synthetic_step_images_per_s": len(task.rows) / time_run(run, task.device)}
