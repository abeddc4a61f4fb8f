"""Precision, compilation and its failures, allocator setting."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from helper import UserError
from modeling.precision import build_forward, resolve_precision, should_compile
from tests.support.builders import Patch, make_trainer, run_python

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_precision_follows_the_device(monkeypatch: Patch) -> None:
    assert resolve_precision("fp32", CPU, "net") == "fp32"
    assert resolve_precision("bf16", CPU, "mobilenet_v2") == "bf16"
    for test in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, test, lambda: False, raising=False)
    assert resolve_precision("auto", CPU, "net") == "fp32"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert resolve_precision("auto", CPU, "convnext_tiny") == "bf16"
    assert resolve_precision("auto", CPU, "mobilenet_v2") == "fp32"
    assert resolve_precision("auto", torch.device("mps"), "net") == "fp32"


def test_only_long_runs_on_one_cuda_device_compile_by_default() -> None:
    assert should_compile("on", CPU, 1)
    assert not should_compile("off", CUDA, 10**6)
    assert should_compile("auto", CUDA, 10**6)
    for device, n_steps, n_processes in ((CPU, 10**6, 1), (CUDA, 100, 1), (CUDA, 10**6, 2)):
        assert not should_compile("auto", device, n_steps, n_processes)


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


def test_failing_compiler_is_reported_once_or_refused(
    monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    failure = RuntimeError("no compiler found\nand many more lines")
    replace_compiler(monkeypatch, Mock(side_effect=failure))
    network, images = torch.nn.Linear(3, 2), torch.rand(4, 3)
    forward = build_forward(network, True, is_required=False)
    for _ in range(2):
        assert torch.equal(forward(images), network(images))
    assert caplog.text.count("torch.compile fails here (no compiler found)") == 1
    with pytest.raises(UserError, match=r"--compile on: .*\(no compiler found\)"):
        build_forward(network, True, is_required=True)(images)


def test_out_of_memory_is_no_failure_of_the_compiler(monkeypatch: Patch) -> None:
    replace_compiler(monkeypatch, Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        build_forward(torch.nn.Linear(3, 2), True, is_required=False)(torch.rand(4, 3))


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
