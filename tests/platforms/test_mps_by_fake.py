"""The program on Apple's GPU, without a Mac: `tests.support.fake_mps` refuses what MPS lacks."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
import torch

import main
import predict
import trainer as trainer_module
from loading.image_source import Batch
from modeling import checkpoint
from modeling.precision import resolve_precision
from tests.support.builders import QUICK, Patch, expect_refusal, raise_in_step, read_metrics
from tests.support.fake_mps import FakeMps, fake_mps
from trainer import Trainer
from training import augmentation

ON_MPS = (*QUICK, "--device", "mps", "--epochs", "1", "--name")
OPTIONS = (*("--first-size", "0.5"), *("--erase", "0.5"), *("--cutmix", "0.5"))


@pytest.fixture
def mps(request: pytest.FixtureRequest, monkeypatch: Patch) -> Iterator[FakeMps]:
    asked = augmentation.choose_resampling
    asked.cache_clear()  # it keeps the answer for a device
    with fake_mps(monkeypatch, has_bicubic=getattr(request, "param", False)) as found:
        yield found
    asked.cache_clear()


def test_a_run_its_evaluation_and_its_predictions(
    workplace: Path, mps: FakeMps, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([*ON_MPS, "mps", *OPTIONS]) == 0
    assert "resampled bilinearly" in capsys.readouterr().out
    best = checkpoint.load_run(workplace / "session/mps/best.pt")
    assert best["precision"] == "fp32"
    assert read_metrics(workplace, "mps")["environment"]["device"] == "mps"
    for device in ("mps", "cpu"):
        command = ["session/mps/best.pt", "data/phantom/Images/Menin", "--out", f"{device}.csv"]
        assert predict.main([*command, "--device", device]) == 0
    tables = [pd.read_csv(f"{device}.csv") for device in ("mps", "cpu")]
    pd.testing.assert_frame_equal(*tables, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("no_evaluation")
def test_a_stopped_run_is_resumed(workplace: Path, mps: FakeMps, monkeypatch: Patch) -> None:
    with monkeypatch.context() as patch:
        raise_in_step(patch, 6, KeyboardInterrupt())
        assert main.main([*ON_MPS, "mps", "--epochs", "2"]) == 130
    assert main.main(["--resume", "session/mps", "--device", "mps"]) == 0


@pytest.mark.usefixtures("no_evaluation")
def test_a_full_memory_halves_the_batches(
    workplace: Path, mps: FakeMps, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Trainer._backward

    def run(self: Trainer, part: Batch, *others: Any) -> torch.Tensor:
        if len(part) > 4:
            raise RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)")
        return step(self, part, *others)

    emptied = Mock()
    monkeypatch.setattr(torch.mps, "empty_cache", emptied)
    monkeypatch.setattr(Trainer, "_backward", run)
    assert main.main([*ON_MPS, "mps"]) == 0
    emptied.assert_called()
    assert "micro-batches of 4 slices" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mps", "resampling"), [(False, "bilinear"), (True, "bicubic")], indirect=["mps"]
)
def test_slices_are_resampled_as_torch_can(mps: FakeMps, resampling: str) -> None:
    assert augmentation.choose_resampling(torch.device("mps")) == resampling


def plant_float64(patch: Patch) -> None:
    scale = trainer_module.to_unit_range
    patch.setattr(trainer_module, "to_unit_range", lambda pixels: scale(pixels).double().float())


def plant_bicubic(patch: Patch) -> None:
    patch.setattr(augmentation, "choose_resampling", lambda _: "bicubic")


def plant_pinned_memory(patch: Patch) -> None:
    def copy(values: torch.Tensor, device: torch.device) -> torch.Tensor:
        return values.pin_memory().to(device)

    patch.setattr(augmentation, "copy_async", copy)


def plant_forgotten_copy(patch: Patch) -> None:
    patch.setattr(augmentation, "copy_async", lambda values, device: values)


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (plant_float64, "float64"),
        (plant_bicubic, "Bicubic"),
        (plant_pinned_memory, "not pinned"),
        (plant_forgotten_copy, "of the device and of the host"),
    ],
)
def test_a_planted_fault_is_found(
    workplace: Path,
    mps: FakeMps,
    monkeypatch: Patch,
    capsys: pytest.CaptureFixture[str],
    plant: Callable[[Patch], None],
    words: str,
) -> None:
    plant(monkeypatch)
    assert words in expect_refusal(capsys, main.main([*ON_MPS, "mps"]))


def test_automatic_precision_is_fp32() -> None:
    assert resolve_precision("auto", torch.device("mps"), "resnet18") == "fp32"
