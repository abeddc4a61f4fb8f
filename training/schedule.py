"""Learning rate and slice size of every step of a run, also of one that is extended."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from training.optimizer import LONGEST_WARMUP, compute_lr_factor, decay_lr_factor
from training.progressive_resizing import compute_size

if TYPE_CHECKING:
    from args import TrainOptions


@dataclass(frozen=True)
class Schedule:
    """Schedule of a run.

    When a run is extended, the learning rate goes on from its present value, down to the same end
    over the remaining steps. Slices keep growing as planned, so they never shrink again.

    Attributes:
        n_steps: Steps of the whole run.
        n_warmup: Requested steps of warm-up.
        peak_lr: Highest learning rate.
        first_step: Steps before the last extension; 0 without one.
        first_factor: Learning rate at that step, relative to its peak.
        first_epoch: Finished epochs before the extension; early stopping counts from there.
        growing_steps: Steps that the growth of the slices is planned for; 0: `n_steps`.
    """

    n_steps: int
    n_warmup: float
    peak_lr: float
    first_step: int = 0
    first_factor: float = 1.0
    first_epoch: int = 0
    growing_steps: int = 0

    @classmethod
    def plan(cls, options: "TrainOptions", steps_per_epoch: int, peak_lr: float) -> "Schedule":
        """Return the schedule of a run that was not extended."""
        n_warmup = options.warmup_epochs * steps_per_epoch
        return cls(options.epochs * steps_per_epoch, n_warmup, peak_lr)

    def compute_lr(self, step: int) -> float:
        """Return the learning rate at a step."""
        return self.peak_lr * self._compute_factor(step)

    def _compute_factor(self, step: int) -> float:
        if not self.first_step:
            return compute_lr_factor(step, self.n_steps, self.n_warmup)
        progress = (step - self.first_step) / max(1, self.n_steps - self.first_step)
        return decay_lr_factor(progress, self.first_factor)

    def compute_size(self, step: int, full_px: int, first_share: float) -> int:
        """Return the side of the training slices at a step, px."""
        n_steps = min(self.growing_steps or self.n_steps, self.n_steps)
        return compute_size(step, n_steps, full_px, first_share)

    def extend(self, n_steps: int, step: int, epoch: int) -> "Schedule":
        """Return the schedule of a run that goes on to `n_steps` steps.

        Args:
            n_steps: Steps of the longer (or shorter) run.
            step: Finished steps.
            epoch: Finished epochs.
        """
        longer = replace(self, n_steps=n_steps)
        if step <= min(self.n_warmup, LONGEST_WARMUP * self.n_steps):
            return replace(longer, first_epoch=epoch)  # the learning rate is not yet decaying
        return replace(
            longer,
            first_step=step,
            first_factor=self._compute_factor(step),
            first_epoch=epoch,
            growing_steps=self.growing_steps or self.n_steps,
        )

    def restore(self, record: dict[str, Any] | None) -> "Schedule":
        """Return the schedule of a run whose checkpoint holds a result of `to_record`."""
        return replace(self, **(record or {}))

    def to_record(self) -> dict[str, Any]:
        """Return what the options of the run do not determine, as plain values."""
        names = ("first_step", "first_factor", "first_epoch", "growing_steps")
        return {name: getattr(self, name) for name in names}
