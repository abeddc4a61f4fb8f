"""What `--resume` changes in a run: more epochs, or another place of its data folder."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from args import TrainConfig
from common import run_paths
from common.portable_names import quote
from helper import UserError, log
from trainer import Trainer
from training.history import History
from training.optimizer import FLOOR_LR_FACTOR


@dataclass(frozen=True)
class Changes:
    """Options of `--resume` that change a run.

    Attributes:
        epochs: New number of epochs.
        data: Where the data folder is now.
        is_fold: The run is a fold, whose epochs were checked with those of the others.
    """

    epochs: int | None = None
    data: Path | None = None
    is_fold: bool = False

    def ignore_same(self, data: Path) -> "Changes":
        """Return the changes without a data folder that is the present one."""
        if self.data is None or self.data.resolve() != data.resolve():
            return self
        return dataclasses.replace(self, data=None)

    def change_options(self, config: TrainConfig, run_dir: Path) -> TrainConfig:
        """Return the options to store with the changed run."""
        train, data = config.train, config.data
        if self.epochs is not None:
            train = dataclasses.replace(train, epochs=self.epochs)
        if self.data is not None:
            data = dataclasses.replace(
                data, data=run_paths.store(self.data, run_dir), phantom=False
            )
        return dataclasses.replace(config, train=train, data=data)

    def check_epochs(self, planned: int, done: int, run_dir: Path) -> None:
        """Check that the run has fewer epochs so far.

        Raises:
            UserError: It has as many or more.
        """
        if self.epochs is None or self.is_fold or self.epochs > done:
            return
        raise UserError(
            f"--epochs {self.epochs}: {run_dir} has finished {done} of {planned} epochs; give more "
            "than it has finished, or leave the option out"
        )


def locate_paths(config: TrainConfig, run_dir: Path) -> TrainConfig:
    """Return the options with paths that hold in the current folder."""
    data, weights, train = config.data, config.model.weights, config.train
    found = run_paths.locate(config.data_dir, run_dir)
    if found != config.data_dir:
        data = dataclasses.replace(data, data=found, phantom=False)
    if weights is not None:
        weights = run_paths.locate(weights, run_dir)
    if train.teacher is not None:
        train = dataclasses.replace(train, teacher=run_paths.locate(train.teacher, run_dir))
    model = dataclasses.replace(config.model, weights=weights)
    return dataclasses.replace(config, data=data, train=train, model=model)


def check_data_dir(data_dir: Path, run_dir: Path) -> None:
    """Check that the data folder of a run exists.

    Raises:
        UserError: There is no such folder; names the option for data that moved.
    """
    if not data_dir.is_dir():
        raise UserError(
            f"{data_dir}: no such folder; if the data of this run moved, name their folder: "
            f"python main.py --resume {quote(run_dir)} --data DIR"
        )


def locate_data(last: dict[str, Any], changes: Changes, run_dir: Path) -> None:
    """Set the data folder of a run in its checkpoint; an earlier one is kept in `earlier_data`.

    Raises:
        UserError: There is no such folder.
    """
    check_data_dir(changes.data or Path(last["data"]), run_dir)
    if changes.data is not None:
        earlier = run_paths.store(Path(last["data"]), run_dir).as_posix()
        last["earlier_data"] = [*last.get("earlier_data", []), earlier]
        last["data"] = changes.data.as_posix()
        log.info("%s: its data are now in %s", run_dir, changes.data)


def needs_extension(
    last: dict[str, Any], changes: Changes, config: TrainConfig, planned: int
) -> bool:
    """Return whether a run gets another number of epochs, or goes on after it stopped early.

    Args:
        last: Content of last.pt.
        changes: Options of `--resume`.
        config: Options of the run with these changes.
        planned: Number of epochs before.
    """
    if changes.epochs is None or changes.epochs != planned:
        return changes.epochs is not None
    history = History(Path(), uses_tensorboard=False)
    history.rows, history.best = last["history"], last["best"]
    history.first_epoch = (last.get("schedule") or {}).get("first_epoch", 0)
    return not changes.is_fold and history.is_stale(config.train.patience)


def extend_schedule(trainer: Trainer, last: dict[str, Any], planned: int) -> None:
    """Let the schedule of a resumed run go on to its new number of epochs, and say how.

    Args:
        trainer: Trainer of the run with the new number of epochs.
        last: Content of last.pt; its `schedule` is replaced.
        planned: Number of epochs before.
    """
    per_epoch, n_epochs = trainer.steps_per_epoch, trainer.options.epochs
    before = trainer.schedule.restore(last.get("schedule"))
    before = dataclasses.replace(before, n_steps=planned * per_epoch)
    n_partial = len((last.get("partial_epoch") or {"losses": ()})["losses"])
    step = last["epoch"] * per_epoch + n_partial
    after = before.extend(n_epochs * per_epoch, step, last["epoch"])
    last["schedule"] = after.to_record()
    lr, end_lr = after.compute_lr(step), after.compute_lr(after.n_steps)
    if after.first_factor <= FLOOR_LR_FACTOR:
        rest = (
            f"the learning rate stays at its lowest value, {end_lr:.2g}; for a higher one start a "
            f"new run with --weights {quote(trainer.run_dir / 'best.pt')}"
        )
    else:
        rest = f"the learning rate goes on from {lr:.2g} down to {end_lr:.2g}"
    log.info(
        "%s: %d epochs instead of %d, after epoch %d; %s; early stopping counts from here",
        *(trainer.run_dir, n_epochs, planned, last["epoch"], rest),
    )
