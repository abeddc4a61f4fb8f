"""How networks are run: precision, compiling and what happens when it fails, kept memory."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helper import UserError
from modeling import precision
from modeling.precision import CompiledNetwork, build_forward, decides_to_compile, resolve_precision
from tests.support.builders import make_trainer

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_precision_is_what_the_device_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_precision("fp32", CPU, "net") == "fp32"
    assert resolve_precision("bf16", CPU, "mobilenet_v2") == "bf16"
    for test in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, test, lambda: False, raising=False)
    assert resolve_precision("auto", CPU, "net") == "fp32"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert resolve_precision("auto", CPU, "convnext_tiny") == "bf16"
    assert resolve_precision("auto", CPU, "mobilenet_v2") == "fp32"
    assert resolve_precision("auto", torch.device("mps"), "net") == "fp32"


@pytest.mark.parametrize(
    ("choice", "device", "n_steps", "n_processes", "compiles"),
    [
        ("on", CPU, 1, 1, True),
        ("off", CUDA, 10**6, 1, False),
        ("auto", CPU, 10**6, 1, False),
        ("auto", CUDA, 10**6, 1, True),
        ("auto", CUDA, 100, 1, False),
        ("auto", CUDA, 10**6, 2, False),
    ],
)
def test_what_is_compiled(
    choice: str, device: torch.device, n_steps: int, n_processes: int, compiles: bool
) -> None:
    network = torch.nn.Linear(3, 2)
    assert decides_to_compile(choice, device, n_steps, n_processes) == compiles
    forward = build_forward(network, compiles, is_wanted=False)
    assert isinstance(forward, CompiledNetwork if compiles else torch.nn.Linear)


def compile_as(monkeypatch: pytest.MonkeyPatch, run: Callable) -> None:
    """Let torch.compile give what `run` makes of a network and its input."""
    monkeypatch.setattr(torch, "compile", lambda network, **_: lambda images: run(network, images))


def test_training_is_compiled_and_val_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    calls = []

    def run(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        calls.append(network.training)
        return network(images)

    compile_as(monkeypatch, run)
    make_trainer(tmp_path / "plain", compile="off").fit()
    assert not calls
    make_trainer(tmp_path / "compiled", compile="on").fit()
    assert calls == [True] * 9  # three epochs of three steps
    assert caplog.text.count("compiling: ") == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_the_real_compiler_changes_nothing_but_speed(tmp_path: Path) -> None:
    losses = []
    for choice in ("off", "on"):
        trainer = make_trainer(tmp_path / choice, compile=choice, dropout=0.0, epochs=1)
        losses.append(trainer.train_epoch())
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)


def fail(*_: object) -> None:
    raise RuntimeError("no compiler found\nand a page of more")


def test_where_the_compiler_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    compile_as(monkeypatch, fail)
    network, images = torch.nn.Linear(3, 2), torch.rand(4, 3)
    going_on = CompiledNetwork(network, is_wanted=False)
    for _ in range(2):
        assert torch.equal(going_on(images), network(images))
    assert caplog.text.count("torch.compile fails here (no compiler found)") == 1
    with pytest.raises(UserError, match=r"--compile on: .*\(no compiler found\); leave it out"):
        CompiledNetwork(network, is_wanted=True)(images)


def test_out_of_memory_is_no_failure_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    compile_as(monkeypatch, run)
    with pytest.raises(torch.OutOfMemoryError):
        CompiledNetwork(torch.nn.Linear(3, 2), is_wanted=False)(torch.rand(4, 3))


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is of the GNU C library")
def test_freed_memory_is_kept() -> None:
    """A buffer allocated anew touches no new pages; in a process of its own."""
    script = (
        "import resource, torch, execution\n"
        "def count():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(5): torch.ones(8_000_000)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "torch.ones(8_000_000); plain = count()\n"
        "possible = execution.keep_freed_memory()\n"
        "count(); print(int(possible), plain, count())"
    )
    root = Path(precision.__file__).parents[1]
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    possible, plain, kept = map(int, result.stdout.split())
    if not possible:
        pytest.skip("this C library takes no such setting")
    assert kept < plain / 10
