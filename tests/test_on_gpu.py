"""What only a CUDA device can show; skipped without one. `benchmark.py --gpu-check` runs them."""

import gc
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import main
from modeling import checkpoint
from tests.support.builders import (
    QUICK,
    Capture,
    Patch,
    assert_same_weights,
    expect_refusal,
    raise_in_step,
)
from trainer import Trainer
from training.replica import Replica

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.usefixtures("workplace", "no_evaluation", "_restore_settings"),
]
ON_CUDA = (*QUICK, "--device", "cuda")
RESNET = ("--phantom", "--model", "resnet18", "--no-pretrained", "--device", "cuda")


@pytest.fixture
def _restore_settings() -> Iterator[None]:
    """Restore what a run sets for its whole process."""
    device = torch.cuda.current_device()
    yield
    torch.cuda.set_device(device)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def read_losses(run: str) -> np.ndarray:
    return pd.read_csv(f"session/{run}/history.csv")["train_loss"].to_numpy()


def load_last(run: str) -> dict:
    return checkpoint.load_run(Path("session") / run / "last.pt")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two CUDA devices")
def test_losses_on_a_second_device_are_those_of_the_first(monkeypatch: Patch) -> None:
    for index in (0, 1):
        command = [*QUICK, "--device", f"cuda:{index}", "--deterministic", "--epochs", "3"]
        assert main.main([*command, "--name", f"on-{index}"]) == 0
        assert torch.cuda.current_device() == index
    assert np.isfinite(read_losses("on-1")).all()
    assert np.allclose(read_losses("on-0"), read_losses("on-1"), rtol=1e-3)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_losses_fall_in_every_precision(precision: str) -> None:
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this device emulates bf16")
    command = [*ON_CUDA, "--precision", precision, "--epochs", "8", "--patience", "0"]
    assert main.main([*command, "--name", precision]) == 0
    losses = read_losses(precision)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert all(weight.isfinite().all() for weight in load_last(precision)["weights"].values())


def test_an_interrupted_run_in_fp16_equals_one_never_stopped(monkeypatch: Patch) -> None:
    command = [*ON_CUDA, "--precision", "fp16", "--deterministic", "--epochs", "2", "--name"]
    assert main.main([*command, "whole"]) == 0
    with monkeypatch.context() as patch:
        raise_in_step(patch, 3, signal.SIGINT)
        assert main.main([*command, "parts"]) == 130
    assert load_last("parts")["loss_scaler"]
    assert main.main(["--resume", "session/parts", "--device", "cuda"]) == 0
    assert_same_weights(load_last("whole"), load_last("parts"))
    assert load_last("whole")["loss_scaler"] == load_last("parts")["loss_scaler"]


def test_a_failure_of_the_compiler_falls_back(monkeypatch: Patch, capsys: Capture) -> None:
    """Also one that shows in the backward pass, which is compiled when it first runs."""

    class Failure(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: torch.autograd.function.FunctionCtx, *grads: torch.Tensor) -> None:
            raise RuntimeError("no kernel for the backward pass")

    call = Replica.__call__

    def fail(self: Replica, images: torch.Tensor) -> torch.Tensor:
        logits = call(self, images)
        return Failure.apply(logits) if self.compiles else logits

    monkeypatch.setattr(Replica, "__call__", fail)
    assert main.main([*ON_CUDA, "--compile", "on", "--epochs", "2", "--name", "compiled"]) == 0
    assert "no kernel for the backward pass" in capsys.readouterr().out
    assert np.isfinite(read_losses("compiled")).all()
    assert not load_last("compiled")["compiles"]


def test_cudnn_chooses_the_fastest_algorithms_in_training(monkeypatch: Patch) -> None:
    seen, train_step = [], Trainer.train_step

    def record(self: Trainer, *given: object) -> torch.Tensor:
        seen.append(torch.backends.cudnn.benchmark)
        return train_step(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "train_step", record)
    assert main.main([*ON_CUDA, "--epochs", "1", "--name", "fast"]) == 0
    assert set(seen) == {True}
    seen.clear()
    assert main.main([*ON_CUDA, "--epochs", "1", "--deterministic", "--name", "equal"]) == 0
    assert set(seen) == {False}


def test_a_network_without_deterministic_backward_pass_is_refused(capsys: Capture) -> None:
    command = ["--phantom", "--model", "vgg11", "--no-pretrained", "--image-size", "64"]
    options = ["--device", "cuda", "--deterministic", "--epochs", "1", "--batch-size", "8"]
    line = expect_refusal(capsys, main.main([*command, *options]))
    assert "--deterministic" in line
    assert re.search("avg_?pool", line, re.IGNORECASE)


def test_out_of_memory_moves_slices_and_then_divides_batches(capsys: Capture) -> None:
    command = [*RESNET, "--image-size", "224", "--batch-size", "32", "--epochs", "1"]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    assert main.main([*command, "--name", "whole"]) == 0
    assert load_last("whole")["micro_batch"] == 32
    peak = torch.cuda.max_memory_allocated()
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction(0.6 * peak / total)
    capsys.readouterr()
    assert main.main([*command, "--name", "small"]) == 0
    events = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("out of memory")
    ]
    assert "host" in events[0]
    assert all("micro-batches" in line for line in events[1:])
    assert load_last("small")["micro_batch"] < 32
    assert np.isfinite(read_losses("small")).all()


def test_a_dry_run_says_what_the_device_needs(capsys: Capture) -> None:
    assert main.main([*ON_CUDA, "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert torch.cuda.get_device_name() in output
    assert "in the memory of the device" in output
    assert "MiB on the device" in output
    assert not Path("session").exists()
