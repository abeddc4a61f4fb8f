"""What moves the weights: groups of parameters, the learning rate's course, the average."""

import math

import torch
from torch import Tensor, nn

FLOOR_LR_SHARE = 0.01
LONGEST_WARMUP = 0.2  # of the run


def build_optimizer(
    network: nn.Module,
    head: nn.Module,
    lr: float,
    body_lr_share: float,
    weight_decay: float,
) -> torch.optim.AdamW:
    """AdamW with a rate of its own for the body, and no decay for norms and biases.

    Each group has `lr_share`, its rate as a share of `lr`. Where the device has them, all weights
    are moved by one fused kernel.

    Source: Loshchilov and Hutter 2019, Decoupled weight decay regularization.
    """
    in_head = set(map(id, head.parameters()))
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        share = 1.0 if id(parameter) in in_head else body_lr_share
        decay = weight_decay if parameter.dim() > 1 else 0.0
        groups.setdefault((share, decay), []).append(parameter)
    fused = next(network.parameters()).device.type in {"cpu", "cuda"}
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr_share": share, "weight_decay": decay}
            for (share, decay), parameters in groups.items()
        ],
        lr=lr,
        fused=fused,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of a rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_share"]


def compute_rate_share(step: int, n_steps: int, n_warmup: float) -> float:
    """Share of the peak rate at a step, 0 to 1: linear warm-up, then half a cosine to 1 %.

    The warm-up takes at most a fifth of the run.

    Args:
        step: Steps taken before.
        n_steps: Of the whole run.
        n_warmup: Steps of warm-up that are asked for.

    Source: Loshchilov and Hutter 2017, SGDR: stochastic gradient descent with warm restarts.
    """
    warmup = min(n_warmup, LONGEST_WARMUP * n_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1.0, n_steps - warmup)
    return FLOOR_LR_SHARE + (1 - FLOOR_LR_SHARE) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def update_average(averaged: nn.Module, trained: nn.Module, decay: float, step: int) -> None:
    """Move averaged weights towards the trained ones; the decay is at most (1 + t) / (10 + t).

    Source: Polyak and Juditsky 1992, Acceleration of stochastic approximation by averaging.
    """
    targets: list[Tensor] = list(averaged.parameters())
    sources: list[Tensor] = list(trained.parameters())
    torch._foreach_lerp_(targets, sources, 1 - min(decay, (1 + step) / (10 + step)))
