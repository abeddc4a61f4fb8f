"""Exponential moving average (EMA) of the weights."""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def update_ema(ema: Sequence[Tensor], trained: Sequence[Tensor], decay: float, step: int) -> None:
    """Update the EMA weights; the decay of step t is at most (1 + t) / (10 + t).

    Source: Polyak and Juditsky 1992, Acceleration of stochastic approximation by averaging.
    """
    torch._foreach_lerp_(list(ema), list(trained), 1 - min(decay, (1 + step) / (10 + step)))
