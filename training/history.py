"""History of a run: one row per epoch, the best epoch, history.csv and TensorBoard curves."""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from common.atomic_files import atomic_path
from helper import UserError, log


class History:
    """The finished epochs of a run.

    Args:
        run_dir: Folder of the run, session/RUN.
        uses_tensorboard: Also write curves to session/RUN/tensorboard.

    Attributes:
        rows: One row per epoch, with the keys of history.csv.
        best: Row of the epoch with the highest val macro-F1; a tie goes to the lowest val loss.
            Empty before the first epoch.
        first_epoch: Epochs before the run was extended, which do not count for early stopping.
    """

    def __init__(self, run_dir: Path, uses_tensorboard: bool) -> None:
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, float] = {}
        self.first_epoch = 0
        self._run_dir = run_dir
        self._tensorboard = _open_tensorboard(run_dir) if uses_tensorboard else None

    def add(self, row: dict[str, float]) -> bool:
        """Append the row of an epoch and return whether it is the best so far."""
        self.rows.append(row)
        if self._tensorboard is not None:
            for name, value in row.items():
                self._tensorboard.add_scalar(name, value, row["epoch"])
            self._tensorboard.flush()
        improved = not self.best or _score(row) > _score(self.best)
        if improved:
            self.best = row
        return improved

    def close(self) -> None:
        """Close the files of TensorBoard."""
        if self._tensorboard is not None:
            self._tensorboard.close()

    def is_stale(self, patience: int) -> bool:
        """Return whether the best epoch is `patience` epochs old; False if `patience` is 0."""
        if not (patience and self.rows and self.best):
            return False
        return self.rows[-1]["epoch"] - max(self.best["epoch"], self.first_epoch) >= patience

    def log_epoch(self, n_epochs: int, epoch_time_s: float) -> None:
        """Log one line about the last epoch.

        Args:
            n_epochs: Epochs of the whole run.
            epoch_time_s: Duration of the epoch with validation, s.
        """
        row = self.rows[-1]
        remaining_s = epoch_time_s * (n_epochs - row["epoch"])
        log.info(
            f"epoch {row['epoch']:3.0f}/{n_epochs}  train loss {row['train_loss']:.4f}  "
            f"val loss {row['val_loss']:.4f}  val accuracy {row['val_accuracy']:.4f}  "
            f"val macro-F1 {row['val_macro_f1']:.4f}  {row['images_per_s']:.0f} images/s  "
            f"{tqdm.format_interval(remaining_s)} left{'  * best' if row is self.best else ''}"
        )

    def write_csv(self) -> None:
        """Write history.csv, if an epoch is finished."""
        if self.rows:
            with atomic_path(self._run_dir / "history.csv") as temporary:
                pd.DataFrame(self.rows).to_csv(temporary, index=False, lineterminator="\n")


def _score(row: dict[str, float]) -> tuple[float, float]:
    return row["val_macro_f1"], -row["val_loss"]


def _open_tensorboard(run_dir: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "--tensorboard: not installed; "
            f"{Path(sys.executable).name} -m pip install -r requirements-tensorboard.txt"
        ) from error
    return SummaryWriter(run_dir / "tensorboard")
