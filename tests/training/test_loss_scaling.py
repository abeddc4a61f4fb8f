"""fp16: steps whose gradients overflow are skipped, counted, told and resumed to the same bits."""

import functools
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from helper import UserError
from modeling import checkpoint
from tests.support.builders import Patch, assert_same_weights, make_trainer, raise_in_step
from training.loss_scaling import LossScaler

CPU = torch.device("cpu")


def take_step(
    scaler: LossScaler, parameter: nn.Parameter, loss: torch.Tensor, clip_norm: float = 0.0
) -> torch.Tensor:
    """Take a step of SGD with a rate of 1; return the change of the parameter."""
    before = parameter.detach().clone()
    scaler.scale(loss).backward()
    scaler.update_weights(torch.optim.SGD([parameter], lr=1.0), [parameter], clip_norm)
    assert parameter.grad is None
    return parameter.detach() - before


def test_gradients_are_those_of_the_plain_loss() -> None:
    for is_enabled in (False, True):
        parameter, scaler = nn.Parameter(torch.ones(2)), LossScaler(CPU, is_enabled)
        change = take_step(scaler, parameter, (3 * parameter).sum())
        assert change.tolist() == [-3.0, -3.0]
        assert scaler.report_skipped(1, n_steps=2) == 0


def test_gradients_are_clipped_at_their_true_size() -> None:
    for factor, expected in ((0.5, -0.5), (3.0, -1.0)):
        parameter, scaler = nn.Parameter(torch.ones(1)), LossScaler(CPU, is_enabled=True)
        change = take_step(scaler, parameter, (factor * parameter).sum(), clip_norm=1.0)
        assert float(change) == pytest.approx(expected, abs=1e-5)


def test_without_scaling_no_step_is_skipped() -> None:
    parameter, scaler = nn.Parameter(torch.ones(1)), LossScaler(CPU, is_enabled=False)
    take_step(scaler, parameter, (torch.inf * parameter).sum())
    assert scaler.report_skipped(epoch=1, n_steps=1) == 0


def test_a_step_that_overflows_is_skipped_counted_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    parameter, scaler = nn.Parameter(torch.ones(1)), LossScaler(CPU, is_enabled=True)
    scaler.start_epoch(n_skipped=2)
    assert take_step(scaler, parameter, (1e35 * parameter).sum()) == 0  # times 65,536: infinite
    assert scaler.state_dict()["scale"] == 2.0**15
    assert take_step(scaler, parameter, parameter.sum()) == -1
    assert scaler.report_skipped(epoch=4, n_steps=9) == 3
    assert "epoch 4: 3 of 9 steps skipped" in caplog.text
    scaler.start_epoch()
    assert scaler.report_skipped(epoch=5, n_steps=9) == 0


def test_epochs_of_skipped_steps_are_refused_when_scaling_down_does_not_help() -> None:
    """An epoch can be one step; the first scale, 65,536, is too large for many networks."""
    parameter, scaler = nn.Parameter(torch.ones(1)), LossScaler(CPU, is_enabled=True)
    for epoch in range(1, 17):
        scaler.start_epoch()
        take_step(scaler, parameter, (torch.inf * parameter).sum())
        assert scaler.report_skipped(epoch, n_steps=1) == 1
    assert scaler.state_dict()["scale"] == 1.0
    scaler.start_epoch()
    take_step(scaler, parameter, (torch.inf * parameter).sum())
    with pytest.raises(UserError, match=r"every step of epoch 17 overflowed in fp16: .*--lr"):
        scaler.report_skipped(epoch=17, n_steps=1)


def test_an_interrupted_fp16_run_equals_one_never_stopped(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    """With a large first scale, steps overflow before and after the interruption."""
    scaler = functools.partial(torch.amp.GradScaler, init_scale=2.0**19)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    options: dict[str, Any] = {"precision": "fp16", "epochs": 2, "n_train": 64}
    whole = make_trainer(tmp_path / "whole", **options)
    whole.fit()
    skipped = [int(row["skipped_steps"]) for row in whole.history.rows]
    assert 2 < skipped[0] < 8
    assert skipped[1] < 8
    parts = make_trainer(tmp_path / "parts", save_every=1e-9, **options)
    with monkeypatch.context() as patch:
        raise_in_step(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            parts.fit()
    last = checkpoint.load_checkpoint(tmp_path / "parts" / "last.pt")
    assert last["loss_scaler"]["scale"] == 2.0**17
    assert last["partial_epoch"]["skipped_steps"] == 2
    resumed = make_trainer(tmp_path / "parts", weights_seed=1, **options)
    resumed.resume(last)
    resumed.fit()
    paths = [tmp_path / name / "last.pt" for name in ("whole", "parts")]
    one, other = map(checkpoint.load_checkpoint, paths)
    assert_same_weights(one, other)
    assert one["loss_scaler"] == other["loss_scaler"]
    tables = [pd.read_csv(path.with_name("history.csv"))["skipped_steps"] for path in paths]
    assert tables[0].equals(tables[1])
