"""Optimizer parameter groups and learning-rate schedule."""

import math

import torch
from torch import nn

LAYER_STEPS = 12
FLOOR_LR_FACTOR = 0.01
LONGEST_WARMUP = 0.2  # share of the run's steps


def build_optimizer(
    network: nn.Module,
    head: nn.Module,
    lr: float,
    weight_decay: float,
    backbone_lr_factor: float = 1.0,
    layer_decay: float = 1.0,
) -> torch.optim.AdamW:
    """Return AdamW (fused where the device supports it).

    Parameters of the backbone get `lr` times `backbone_lr_factor`, those of the head `lr`. The
    factor of the first of LAYER_STEPS equal parts of the backbone is multiplied by `layer_decay`,
    that of the last by 1, those between by powers of it. Norms and biases get no weight decay.
    `lr_factor` of a group is its multiplier of `lr`. The state is allocated at once, so that memory
    does not run out in the middle of the first update.

    Source: Loshchilov and Hutter 2019, Decoupled weight decay regularization; Clark et al. 2020,
    ELECTRA, for the decay of the learning rate over layers.
    """
    in_head = set(map(id, head.parameters()))
    backbone = [each for each in network.parameters() if id(each) not in in_head]
    depth_of = {
        id(each): place * LAYER_STEPS // len(backbone) / (LAYER_STEPS - 1)
        for place, each in enumerate(backbone)
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        depth = depth_of.get(id(parameter), 1.0)
        factor = layer_decay ** (1 - depth)
        factor *= 1.0 if id(parameter) in in_head else backbone_lr_factor
        decay = weight_decay if parameter.dim() > 1 else 0.0
        groups.setdefault((factor, decay), []).append(parameter)
    is_fused = next(network.parameters()).device.type in {"cpu", "cuda"}
    optimizer = torch.optim.AdamW(
        [
            {"params": parameters, "lr_factor": factor, "weight_decay": decay}
            for (factor, decay), parameters in groups.items()
        ],
        lr=lr,
        fused=is_fused,
    )
    for parameter in network.parameters():
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device if is_fused else "cpu"),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to `lr` times its multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def compute_lr_factor(step: int, n_steps: int, n_warmup: float) -> float:
    """Return the learning rate at a step as a multiple of its peak, 0 to 1.

    Linear warm-up over at most a fifth of the run, then half a cosine down to 0.01.

    Args:
        step: Steps before this one.
        n_steps: Steps of the whole run.
        n_warmup: Requested steps of warm-up.

    Source: Loshchilov and Hutter 2017, SGDR: stochastic gradient descent with warm restarts.
    """
    warmup = min(n_warmup, LONGEST_WARMUP * n_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return decay_lr_factor((step - warmup) / max(1.0, n_steps - warmup))


def decay_lr_factor(progress: float, start: float = 1.0) -> float:
    """Return half a cosine from `start` at progress 0 down to 0.01 at progress 1."""
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return FLOOR_LR_FACTOR + (start - FLOOR_LR_FACTOR) * cosine
