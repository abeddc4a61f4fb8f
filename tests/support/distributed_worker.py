"""Started by tests with torchrun: `distributed_worker.py TASK FOLDER`."""

import os
import signal
import sys
from pathlib import Path

import torch

import main
from loading.image_source import Batch
from tests.support.builders import make_trainer
from trainer import Trainer
from training import distributed

TASK, FOLDER = sys.argv[1], Path(sys.argv[2])


def train() -> None:
    """Three epochs of a network without batch norm; keeps the slices of each step, and weights.

    SGD moves weights in proportion to their gradients. AdamW would turn the rounding of a gradient
    near zero, which differs between CPUs, into a step of the full rate.
    """
    distributed.join("cpu")
    seen, train_step = [], Trainer.train_step

    def watch(self: Trainer, batch: Batch, step: int) -> torch.Tensor:
        seen.append([picture.sum().item() for picture in batch.pixels.long()])
        return train_step(self, batch, step)

    Trainer.train_step = watch  # type: ignore[method-assign]
    trainer = make_trainer(FOLDER, n_train=26, n_val=13, dropout=0.0, batch_norm=False)
    groups = trainer.optimizer.param_groups
    trainer.optimizer = torch.optim.SGD(
        [{"params": group["params"], "lr_share": group["lr_share"]} for group in groups], lr=0.01
    )
    trainer.peak_lr = 0.01
    trainer.fit()
    kept = {"seen": seen, "weights": trainer.network.state_dict(), "history": trainer.history}
    torch.save(kept, FOLDER / f"rank-{distributed.get_rank()}.pt")
    distributed.leave()


def kill() -> None:
    """The second process is killed in its fourth step."""
    train_step = Trainer.train_step

    def die(self: Trainer, batch: Batch, step: int) -> torch.Tensor:
        if step == 3 and distributed.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return train_step(self, batch, step)

    Trainer.train_step = die  # type: ignore[method-assign]
    sys.exit(main.main(sys.argv[3:]))


if __name__ == "__main__":
    {"train": train, "kill": kill}[TASK]()
