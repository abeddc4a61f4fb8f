"""Started by tests with torchrun: `distributed_worker.py TASK FOLDER`."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import main
from loading.image_source import Batch
from tests.support.builders import make_trainer, raise_in_step
from trainer import Trainer
from training import distributed

TASK, FOLDER = sys.argv[1], Path(sys.argv[2])


def train() -> None:
    """Train three epochs without batch norm; save slices, first gradients and weights.

    Gradients are not clipped, which would hide that all are too large or too small by one factor.
    SGD changes weights in proportion to their gradients. AdamW would turn the rounding of a
    gradient near zero, which differs between CPUs, into a step of the full learning rate.
    """
    distributed.init("cpu")
    seen, train_step = [], Trainer.train_step

    def record(self: Trainer, batch: Batch, step: int) -> torch.Tensor:
        seen.append([image.sum().item() for image in batch.pixels.long()])
        return train_step(self, batch, step)

    Trainer.train_step = record  # type: ignore[method-assign]
    trainer = make_trainer(
        FOLDER,
        n_train=26,
        n_val=13,
        batch_size=9,
        dropout=0.0,
        batch_norm=False,
        clip_norm=0.0,
    )
    groups = trainer.optimizer.param_groups
    trainer.optimizer = torch.optim.SGD(
        [{"params": group["params"], "lr_factor": group["lr_factor"]} for group in groups], lr=0.01
    )
    trainer.schedule = replace(trainer.schedule, peak_lr=0.01)
    gradients: list[torch.Tensor] = []

    def keep_gradients(*_: object) -> None:
        if not gradients:
            gradients.extend(each.grad.clone() for each in trainer.parameters)

    trainer.optimizer.register_step_pre_hook(keep_gradients)
    trainer.fit()
    weights, rows = trainer.network.state_dict(), trainer.history.rows
    result = {"seen": seen, "gradients": gradients, "weights": weights, "history": rows}
    torch.save(result, FOLDER / f"rank-{distributed.get_rank()}.pt")
    distributed.destroy()


def kill() -> None:
    """Run main.py and kill the second process in its fourth step."""
    if os.environ["RANK"] == "1":  # torchrun sets it
        raise_in_step(pytest.MonkeyPatch(), 3, signal.SIGKILL)
    sys.exit(main.main(sys.argv[3:]))


if __name__ == "__main__":
    {"train": train, "kill": kill}[TASK]()
