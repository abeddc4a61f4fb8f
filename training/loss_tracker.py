"""Collect the losses of an epoch without making the device wait."""

import torch
from torch import Tensor

from helper import UserError

# Steps between reads; a NaN is reported after at most twice as many steps.
STEPS_PER_READ = 20


class LossTracker:
    """Collects one loss per step and raises an error for a loss that is not finite.

    Each read starts an asynchronous copy of the losses since the last read and returns those that
    the last read copied. So neither the device nor the host waits for the other.

    Args:
        epoch: Number of the epoch from 1, for error messages.
        n_steps: Steps of the epoch.
        before: Losses of the epoch's first steps on the CPU, [0] unless it is resumed.
    """

    def __init__(self, epoch: int, n_steps: int, before: Tensor) -> None:
        self._epoch, self._n_steps = epoch, n_steps
        self._recent: list[Tensor] = []  # on the device
        self._in_transit: tuple[Tensor, torch.cuda.Event | None] | None = None
        self._checked = [before] if len(before) else []  # on the CPU, finite

    def add(self, loss: Tensor) -> None:
        """Append the loss of a step, a scalar on the device."""
        self._recent.append(loss)

    def read_delayed(self) -> float | None:
        """Return the mean of the losses that the last call copied; None at the first call.

        Raises:
            UserError: A loss is NaN or infinite; names the epoch and the step.
        """
        self._receive()
        self._send()
        return float(self._checked[-1].mean()) if self._checked else None

    def read(self) -> Tensor:
        """Wait for the device and return every loss so far, [steps] on the CPU.

        Raises:
            UserError: As `read_delayed`.
        """
        self.read_delayed()
        self._receive()
        return torch.cat(self._checked)

    def _send(self) -> None:
        if not self._recent:
            return
        losses, arrival = torch.stack(self._recent), None
        if losses.is_cuda:
            host = torch.empty(losses.shape, dtype=losses.dtype, pin_memory=True)
            stream = torch.cuda.current_stream(losses.device)
            losses, arrival = host.copy_(losses, non_blocking=True), torch.cuda.Event()
            arrival.record(stream)
        self._recent, self._in_transit = [], (losses, arrival)

    def _receive(self) -> None:
        if self._in_transit is None:
            return
        losses, arrival = self._in_transit
        if arrival is not None:
            arrival.synchronize()
        self._in_transit = None
        losses = losses.cpu()
        finite = losses.isfinite()
        if not finite.all():
            step = sum(map(len, self._checked)) + int((~finite).int().argmax()) + 1
            raise UserError(
                f"loss is not finite in epoch {self._epoch}, step {step} of {self._n_steps}: "
                "lower --lr or try --precision fp32"
            )
        self._checked.append(losses)
