"""Parameter groups, learning-rate schedule and EMA, with hand-worked values."""

import math

import pytest
import torch
from torch import nn

from training.ema import update_ema
from training.optimizer import build_optimizer, compute_lr_factor, set_learning_rate


def test_updates_are_those_of_adamw_without_allocated_state() -> None:
    weights = []
    for is_ours in (True, False):
        torch.manual_seed(0)
        network = nn.Linear(3, 2)
        optimizer: torch.optim.Optimizer
        if is_ours:
            optimizer = build_optimizer(network, network, 0.1, 0.0)
        else:
            optimizer = torch.optim.AdamW(network.parameters(), 0.1, weight_decay=0.0, fused=True)
        for number in (1, 2):
            optimizer.zero_grad()
            (number * network(torch.ones(1, 3))).square().sum().backward()
            optimizer.step()
        weights.append(network.weight.detach())
    assert torch.equal(*weights)


def test_parameter_groups() -> None:
    backbone, head = nn.Linear(3, 4), nn.Linear(4, 2)
    network = nn.Sequential(backbone, head)
    optimizer = build_optimizer(network, head, 1e-3, 0.1, 0.25)
    groups = {
        (group["lr_factor"], group["weight_decay"]): group["params"]
        for group in optimizer.param_groups
    }
    assert set(groups) == {(1.0, 0.1), (1.0, 0.0), (0.25, 0.1), (0.25, 0.0)}
    assert groups[1.0, 0.1][0] is head.weight
    assert groups[1.0, 0.0][0] is head.bias
    assert groups[0.25, 0.1][0] is backbone.weight
    assert groups[0.25, 0.0][0] is backbone.bias
    set_learning_rate(optimizer, 0.008)
    assert {group["lr"] for group in optimizer.param_groups} == {0.008, 0.002}


def test_the_schedule_by_hand() -> None:
    factors = [compute_lr_factor(step, n_steps=30, n_warmup=3) for step in range(30)]
    assert factors[:4] == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1.0])
    cosine = (1 + math.cos(math.pi * 13 / 27)) / 2
    assert factors[3 + 13] == pytest.approx(0.01 + 0.99 * cosine)
    assert factors[3:] == sorted(factors[3:], reverse=True)
    assert 0.01 <= factors[-1] < 0.02
    # the warm-up takes at most a fifth of the run
    assert compute_lr_factor(1, n_steps=3, n_warmup=3) > 0.7


def test_ema_by_hand() -> None:
    ema, trained = torch.tensor(1.0), torch.tensor(11.0)
    update_ema([ema], [trained], 0.15, 0)  # decay 1 / 10
    assert ema.item() == pytest.approx(10.0)
    update_ema([ema], [trained], 0.15, 1)  # decay min(0.15, 2 / 11)
    assert ema.item() == pytest.approx(10.85)
    update_ema([ema], [trained], 0.0, 50)
    assert ema == trained


def test_the_learning_rate_rises_over_the_layers() -> None:
    layers = [nn.Linear(2, 2) for _ in range(13)]
    network = nn.Sequential(*layers)
    optimizer = build_optimizer(network, layers[-1], 1.0, 0.1, 0.5, 0.01)
    factor_of = {
        id(parameter): group["lr_factor"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    factors = [factor_of[id(layer.weight)] for layer in layers]
    assert factors == pytest.approx([*(0.5 * 0.01 ** (1 - step / 11) for step in range(12)), 1.0])
    assert [factor_of[id(layer.bias)] for layer in layers] == factors
    plain = build_optimizer(network, layers[-1], 1.0, 0.1, 0.5)
    assert {group["lr_factor"] for group in plain.param_groups} == {0.5, 1.0}
