"""Exponential moving average (EMA) of the weights."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def update_ema(ema: nn.Module, trained: nn.Module, decay: float, step: int) -> None:
    """Update the EMA weights; the decay of step t is at most (1 + t) / (10 + t).

    Source: Polyak and Juditsky 1992, Acceleration of stochastic approximation by averaging.
    """
    targets: list[Tensor] = list(ema.parameters())
    sources: list[Tensor] = list(trained.parameters())
    torch._foreach_lerp_(targets, sources, 1 - min(decay, (1 + step) / (10 + step)))
