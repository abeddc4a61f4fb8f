"""The pipeline: whole epochs of the program's own training."""

from pathlib import Path
from typing import TYPE_CHECKING

import args
import model
from speed.rounds import Figures, Measure, time_run
from speed.task import Task
from trainer import Trainer

if TYPE_CHECKING:
    from dataset import Slices


def build_trainer(task: Task, train: "Slices", run_dir: Path) -> Trainer:
    """The trainer of a run with default options, from scratch.

    Args:
        task: What is measured.
        train: The slices of an epoch, on the device; val, which no epoch looks at, is the same.
        run_dir: Where the run would keep its checkpoints.
    """
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
        ),
    )
    network = task.build_network()
    record = {
        "run": run_dir.name,
        **model.describe_model(options.model, network, task.classes),
        "start": model.describe_start(options.model, pretrained=False, weights=None),
        "config": config.to_dict(),
        "threads": task.threads,
        "precision": task.precision,
    }
    run_dir.mkdir(exist_ok=True)
    return Trainer(network, train, train, config, record, run_dir)


def build_pipeline(task: Task) -> Measure:
    """Images/s of an epoch as training has it: order, augmentation, average, losses, progress."""
    trainer = build_trainer(task, task.take_slices(task.n_steps), task.work / "run")

    def measure() -> Figures:
        return {
            "pipeline_images_per_s": len(task.rows) / time_run(trainer.train_epoch, task.device)
        }

    return measure
