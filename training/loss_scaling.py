"""Loss scaling for fp16, gradient clipping, and steps that are skipped because of overflow."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from helper import UserError, log


class LossScaler:
    """Scales losses so that small fp16 gradients do not become zero; else it only clips.

    A step in which a scaled gradient overflows does not change the weights, and the scale is
    halved. Nothing waits for the device until `report_skipped` is called.

    Args:
        device: Training device.
        is_enabled: True for fp16.

    Attributes:
        skipped_steps: Skipped steps of this epoch, int64 on the device.

    Source: Micikevicius et al. 2018, Mixed precision training.
    """

    def __init__(self, device: torch.device, is_enabled: bool) -> None:
        self._scaler = torch.amp.GradScaler(device.type, enabled=is_enabled)
        self.skipped_steps = torch.zeros((), dtype=torch.int64, device=device)

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss whose gradients are to be accumulated."""
        return self._scaler.scale(loss)

    def update_weights(
        self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], clip_norm: float
    ) -> None:
        """Clip the gradients to a norm (0: no clipping), update the weights and free the gradients.

        Args:
            optimizer: Optimizer of the parameters.
            parameters: All parameters; those without a gradient are ignored.
            clip_norm: Largest norm of all gradients together.
        """
        self._scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, clip_norm or math.inf)
        if self._scaler.is_enabled():
            self.skipped_steps += ~norm.isfinite()
        self._scaler.step(optimizer)
        self._scaler.update()
        optimizer.zero_grad()

    def start_epoch(self, n_skipped: int = 0) -> None:
        """Count from `n_skipped`, the skipped steps before an epoch was interrupted."""
        self.skipped_steps.fill_(n_skipped)

    def report_skipped(self, epoch: int, n_steps: int) -> int:
        """Log and return how many of the steps of an epoch were skipped.

        Raises:
            UserError: All of them, and the scale is so small that gradients overflow without it.
        """
        n_skipped = int(self.skipped_steps)
        if n_skipped == n_steps and self._scaler.get_scale() < 1:
            raise UserError(
                f"the gradients of every step of epoch {epoch} overflowed in fp16: lower --lr, or "
                "use --precision bf16 or fp32"
            )
        if n_skipped:
            line = "epoch %d: %d of %d steps skipped, their gradients overflowed in fp16"
            log.info(line, epoch, n_skipped, n_steps)
        return n_skipped

    def state_dict(self) -> dict[str, Any]:
        """Return the scale and its schedule as plain values; empty if disabled."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._scaler.load_state_dict(state)
