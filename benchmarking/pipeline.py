"""The pipeline: whole epochs of the program's own training."""

import args
from benchmarking.rounds import Figures, Measure, time_run
from benchmarking.task import Task
from runs import lifecycle
from trainer import Trainer


def build_config(task: Task) -> args.TrainConfig:
    """The default options of a run, from scratch, with those of the benchmark."""
    options = task.config
    return args.TrainConfig(
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


def build_pipeline(task: Task) -> Measure:
    """Images/s of an epoch as training has it: order, augmentation, average, losses.

    And the seconds in which batch norm's statistics are taken anew after it, from 512 slices at
    most: a cost that an epoch has however long it is. Val is not looked at.
    """
    network, slices = task.build_network(), task.take_slices(task.n_steps)
    config = build_config(task)
    record = lifecycle.build_record(config, network, task.rows, task.work, "benchmark", task.device)
    # val, which no epoch looks at, is the same slices
    trainer = Trainer(network, slices, slices, config, record, task.work / "run")

    def measure() -> Figures:
        return {
            "pipeline_images_per_s": len(task.rows) / time_run(trainer.train_epoch, task.device),
            "statistics_s": time_run(trainer.estimate_statistics, task.device),
        }

    return measure
