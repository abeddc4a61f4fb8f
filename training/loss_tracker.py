"""The losses of an epoch, read from the device without holding up the steps that follow."""

import torch
from torch import Tensor

from helper import UserError

# Steps between looks: a NaN is told within twice as many.
STEPS_PER_LOOK = 20


class LossWatch:
    """Collects one loss a step and refuses those that are no numbers.

    A look sends the losses since the last look on their way to the host and reads those that the
    look before had sent, which have long arrived: the device never waits for the host, nor the
    host for the step that is running.

    Args:
        epoch: Of the steps, counted from 1; named when a loss is not finite.
        n_steps: Steps of the epoch.
        before: Losses of its first steps, where it was begun earlier, [steps] on the CPU.
    """

    def __init__(self, epoch: int, n_steps: int, before: Tensor | None = None) -> None:
        self._epoch, self._n_steps = epoch, n_steps
        self._recent: list[Tensor] = []  # on the device, not yet sent
        self._sent: tuple[Tensor, torch.cuda.Event | None] | None = None
        # on the CPU, known to be finite
        self._read: list[Tensor] = [] if before is None else [before]

    def add(self, loss: Tensor) -> None:
        """Take the loss of the next step, a scalar on the device."""
        self._recent.append(loss)

    def look(self) -> float | None:
        """The mean of the losses sent at the look before; None at the first look.

        Raises:
            UserError: One of them is NaN or infinite; names the epoch and the step.
        """
        self._receive()
        self._send()
        return float(self._read[-1].mean()) if self._read else None

    def read(self) -> Tensor:
        """Every loss so far, [steps] on the CPU; the device is waited for.

        Raises:
            UserError: As `look`.
        """
        self._receive()
        self._send()
        self._receive()
        return torch.cat(self._read)

    def _send(self) -> None:
        if not self._recent:
            return
        losses, arrival = torch.stack(self._recent), None
        if losses.is_cuda:
            host = torch.empty(losses.shape, dtype=losses.dtype, pin_memory=True)
            losses, arrival = host.copy_(losses, non_blocking=True), torch.cuda.Event()
            arrival.record()
        self._recent, self._sent = [], (losses, arrival)

    def _receive(self) -> None:
        if self._sent is None:
            return
        losses, arrival = self._sent
        if arrival is not None:
            arrival.synchronize()
        self._sent = None
        losses = losses.cpu()
        finite = losses.isfinite()
        if not finite.all():
            step = sum(map(len, self._read)) + int((~finite).int().argmax()) + 1
            raise UserError(
                f"loss is not finite in epoch {self._epoch}, step {step} of {self._n_steps}: "
                "lower --lr or try --precision fp32"
            )
        self._read.append(losses)
