"""Precision, compilation and its failures, allocator setting."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from helper import UserError
from model import build_model
from modeling.checkpoint import load_checkpoint
from modeling.forward import disable_tf32
from modeling.precision import autocast, choose_algorithms, has_fast_bf16, resolve_precision
from tests.support.builders import (
    Patch,
    make_trainer,
    run_python,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_precision_follows_the_device(monkeypatch: Patch) -> None:
    assert resolve_precision("fp32", CPU, "net") == "fp32"
    assert resolve_precision("bf16", CPU, "mobilenet_v2") == "bf16"
    for test in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, test, lambda: False, raising=False)
    assert resolve_precision("auto", CPU, "net") == "fp32"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert resolve_precision("auto", CPU, "convnext_tiny") == "bf16"
    for name in ("mobilenet_v2", "timm/tf_efficientnet_lite2", "timm/mobilenetv3_small_050"):
        assert resolve_precision("auto", CPU, name) == "fp32"
    assert resolve_precision("auto", torch.device("mps"), "net") == "fp32"


@pytest.mark.parametrize(
    ("has_bf16", "capability", "precision"),
    [
        (True, (8, 0), "bf16"),
        (False, (7, 5), "fp16"),
        (False, (7, 0), "fp16"),
        (False, (6, 1), "fp32"),
    ],
)
def test_precision_follows_the_generation_of_the_gpu(
    monkeypatch: Patch, has_bf16: bool, capability: tuple[int, int], precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert resolve_precision("auto", CUDA, "mobilenet_v2") == precision
    assert has_fast_bf16(CUDA) == has_bf16


def test_emulated_bf16_is_not_fast(monkeypatch: Patch) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    assert not has_fast_bf16(CUDA)


def test_autocast_follows_the_precision() -> None:
    layer, images = torch.nn.Linear(4, 2), torch.rand(3, 4)
    for precision, dtype in (
        *(("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)),
    ):
        with autocast(CPU, precision):
            assert layer(images).dtype == dtype


def test_the_fastest_algorithms_are_chosen_in_training_alone(monkeypatch: Patch) -> None:
    network = torch.nn.Linear(3, 2)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    choose_algorithms(CPU, False, network)
    assert torch.backends.cudnn.benchmark
    with disable_tf32():  # as for predictions
        assert not torch.backends.cudnn.benchmark


def test_deterministic_training_refuses_layers_by_name(monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch, "use_deterministic_algorithms", Mock())
    network = build_model("vgg11", 3, 64)
    choose_algorithms(CPU, True, network)
    with pytest.raises(UserError, match=r"--deterministic: backbone.avgpool .*leave the option"):
        choose_algorithms(CUDA, True, network)
    assert not torch.backends.cudnn.benchmark


def replace_compiler(monkeypatch: Patch, run: Callable) -> None:
    """Replace torch.compile: the compiled network calls `run(network, images)`."""
    monkeypatch.setattr(torch, "compile", lambda network, **_: lambda images: run(network, images))


def test_training_is_compiled_and_validation_is_not(
    tmp_path: Path, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    modes = []

    def run(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        modes.append(network.training)
        return network(images)

    replace_compiler(monkeypatch, run)
    make_trainer(tmp_path / "plain", compile="off", epochs=1).train_epoch()
    assert not modes
    make_trainer(tmp_path / "compiled", compile="on", epochs=1).fit()
    assert modes == [True] * 3  # one epoch of three steps
    assert caplog.text.count("compiling: ") == 1


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_training_has_equal_losses(tmp_path: Path) -> None:
    losses = []
    for choice in ("off", "on"):
        trainer = make_trainer(tmp_path / choice, compile=choice, dropout=0.0, epochs=1)
        losses.append(trainer.train_epoch())
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)


def test_a_compiler_that_fails_in_the_forward_or_backward_pass_is_not_used(
    tmp_path: Path, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    failure = RuntimeError("no compiler found\nand many more lines")

    class FailInBackward(torch.autograd.Function):
        @staticmethod
        def forward(_context: Any, logits: torch.Tensor) -> torch.Tensor:
            return logits.clone()

        @staticmethod
        def backward(_context: Any, *_gradients: torch.Tensor) -> torch.Tensor:
            raise failure

    plain = make_trainer(tmp_path / "plain", epochs=1)
    plain.fit()
    failing: dict[str, Callable] = {
        "forward": Mock(side_effect=failure),
        "backward": lambda network, images: FailInBackward.apply(network(images)),
    }
    for name, run in failing.items():
        caplog.clear()
        replace_compiler(monkeypatch, run)
        trainer = make_trainer(tmp_path / name, compile="on", epochs=1)
        trainer.fit()
        assert caplog.text.count("torch.compile fails here (no compiler found)") == 1
        last = [load_checkpoint(tmp_path / part / "last.pt") for part in ("plain", name)]
        same = [
            torch.equal(each, last[1]["weights"][key]) for key, each in last[0]["weights"].items()
        ]
        assert all(same)  # the first step was repeated, no step was lost
        assert not last[1]["compiles"]


def test_errors_after_the_first_step_are_not_of_the_compiler(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    replace_compiler(monkeypatch, lambda network, images: network(images))
    trainer = make_trainer(tmp_path, compile="on", epochs=1)
    accumulate = trainer.accumulate_gradients
    errors = iter([None, RuntimeError("the device is lost"), None, None, None])

    def fail_once(*arguments: Any) -> Any:
        if error := next(errors):
            raise error
        return accumulate(*arguments)

    monkeypatch.setattr(trainer, "accumulate_gradients", fail_once)
    with pytest.raises(RuntimeError, match="the device is lost"):
        trainer.fit()


def test_a_frozen_backbone_is_compiled_again_when_it_is_unfrozen(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    compiled = Mock(side_effect=lambda network, **_: network)
    monkeypatch.setattr(torch, "compile", compiled)
    make_trainer(tmp_path, compile="on", start="weights", freeze_epochs=1, epochs=3).fit()
    assert compiled.call_count == 2


def test_the_first_step_of_every_epoch_may_fail_in_the_compiler(
    tmp_path: Path, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    calls = []

    def run(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        if len(calls) > 3:  # an epoch has three steps
            raise RuntimeError("a second graph is too many")
        return network(images)

    replace_compiler(monkeypatch, run)
    make_trainer(tmp_path, compile="on", epochs=2).fit()
    assert "fails here (a second graph is too many)" in caplog.text
    assert len(calls) == 4


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="mallopt belongs to the GNU C library")
def test_freed_memory_is_reused() -> None:
    """A repeated allocation causes few page faults; measured in a new process."""
    script = (
        "import resource, torch\n"
        "from modeling.precision import keep_freed_memory\n"
        "def count():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(5): torch.ones(8_000_000)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "torch.ones(8_000_000); plain = count()\n"
        "possible = keep_freed_memory()\n"
        "count(); print(int(possible), plain, count())"
    )
    possible, plain, reused = map(int, run_python("-c", script).stdout.split())
    if not possible:
        pytest.skip("this C library has no such setting")
    assert reused < plain / 10
