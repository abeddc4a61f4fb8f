"""`main.py --dry-run`: what it says, what it refuses, and that it leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

import main
import trainer
from helper import UserError
from loading.image_source import Batch
from modeling import checkpoint
from tests.support.builders import (
    ON_CPU,
    QUICK,
    RESULT_FILES,
    ROOT,
    SESSION_FILES,
    Capture,
    Patch,
    Run,
    assert_same_weights,
    expect_refusal,
    run_python,
)

COMMAND = (*QUICK, *ON_CPU, "--epochs", "2")


def list_outside_data(root: Path) -> list[str]:
    """Every file and folder but the data folder."""
    return sorted(str(path) for path in root.rglob("*") if path.parts[len(root.parts)] != "data")


def dry_run(*argv: str) -> int:
    return main.main([*COMMAND, *argv, "--dry-run"])


def find_row(output: str, label: str) -> str:
    """Return the value of a row of the report."""
    (line,) = [line for line in output.splitlines() if line.startswith(f"  {label} ")]
    return line.removeprefix(f"  {label} ").strip()


def test_what_a_run_would_use(workplace: Path, capsys: Capture) -> None:
    assert dry_run("--name", "first", "--threads", "1", "--image-size", "96") == 0
    output = capsys.readouterr().out
    assert find_row(output, "device") == "cpu, 1 thread"
    assert find_row(output, "precision") == "fp32"
    assert find_row(output, "torch.compile").startswith("off")
    slices = find_row(output, "slices")
    n_train, n_val = map(int, re.findall(r"(\d+) train, (\d+) val", slices)[0])
    assert 0 < n_val < n_train < 60
    assert f"{(n_train + n_val) * 96**2 / 2**20:.1f} MiB in memory" in slices
    assert f"{-(-n_train // 8)} per epoch, 2 epochs" in find_row(output, "steps")
    assert re.search(r"\d MiB", find_row(output, "memory"))
    assert re.match(r"about .* an epoch, about .* in all", find_row(output, "time"))
    assert re.search(r"last\.pt [\d.]+ MiB, best\.pt [\d.]+ MiB", find_row(output, "checkpoints"))
    rows = {"run folder": SESSION_FILES, "results": RESULT_FILES | {"plots/"}}
    for label, files in rows.items():
        folder, _, names = find_row(output, label).partition(": ")
        assert folder == f"{'results' if label == 'results' else 'session'}/first"
        assert set(names.split(", ")) == files
    assert "PHANTOM" in output
    assert "nothing was kept" in output
    assert list_outside_data(workplace) == []
    assert {path.name for path in Path("data").iterdir()} == {"phantom"}


def test_the_expensive_epoch_is_measured(workplace: Path, monkeypatch: Patch) -> None:
    """The last one: later epochs train larger slices."""
    sizes, steps = [], []
    train_step, augment = trainer.Trainer.train_step, trainer.Augmentation.augment

    def record_step(self: trainer.Trainer, batch: Batch, step: int) -> torch.Tensor:
        steps.append((step, self.step, self.steps_per_epoch, self.network.training))
        return train_step(self, batch, step)

    def record_size(
        self: trainer.Augmentation, slices: torch.Tensor, draws: torch.Tensor
    ) -> torch.Tensor:
        sizes.append(slices.shape[-1])
        return augment(self, slices, draws)

    monkeypatch.setattr(trainer.Trainer, "train_step", record_step)
    monkeypatch.setattr(trainer.Augmentation, "augment", record_size)
    assert dry_run("--first-size", "0.5", "--epochs", "9") == 0
    assert sizes == [32, 32]
    (first, before, per_epoch, is_training), (second, *_) = steps
    assert first == before == 8 * per_epoch
    assert second == first + 1
    assert is_training


def test_one_step_an_epoch_is_enough(workplace: Path, capsys: Capture) -> None:
    assert dry_run("--batch-size", "60", "--epochs", "1") == 0
    assert "1 per epoch" in find_row(capsys.readouterr().out, "steps")


def test_folds(workplace: Path, capsys: Capture) -> None:
    assert dry_run("--folds", "3", "--name", "cross") == 0
    output = capsys.readouterr().out
    assert "fold 1 of 3" in output
    assert "3 folds" in find_row(output, "time")
    assert "fold_1 … fold_3" in find_row(output, "run folder")
    assert list_outside_data(workplace) == []


def test_own_weights(workplace: Path, capsys: Capture, monkeypatch: Patch) -> None:
    line = expect_refusal(
        capsys, main.main(["--phantom", "--weights", "none.pth", "--dry-run", "--device", "cpu"])
    )
    assert "none.pth: no such file" in line
    assert list_outside_data(workplace) == []


def test_tensorboard_is_closed(workplace: Path, capsys: Capture, monkeypatch: Patch) -> None:
    writer = Mock()
    module = Mock(SummaryWriter=Mock(return_value=writer))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    assert dry_run("--tensorboard") == 0
    writer.close.assert_called_once_with()
    assert "tensorboard/" in find_row(capsys.readouterr().out, "run folder")


def test_a_run_after_a_dry_run_is_the_same(
    workplace: Path, first_run: Run, no_evaluation: None
) -> None:
    assert dry_run() == 0
    assert main.main([*COMMAND, "--name", "first"]) == 0
    path = Path("session/first/last.pt")
    assert_same_weights(*map(checkpoint.load_run, (first_run.root / path, path)))


@pytest.mark.parametrize(
    ("event", "status", "words"),
    [
        (UserError("no good"), 1, "no good"),
        (torch.OutOfMemoryError("too large"), 1, "--batch-size"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (signal.SIGTERM, 143, "interrupted"),
        (OSError(28, "No space left on device", "last.pt"), 1, "No space left"),
    ],
    ids=["error", "memory", "SIGINT", "SIGTERM", "disk"],
)
def test_failures_leave_nothing(
    workplace: Path, monkeypatch: Patch, capsys: Capture, event: object, status: int, words: str
) -> None:
    Path("session/other").mkdir(parents=True)
    save = trainer.Trainer.save

    def fail(self: trainer.Trainer, **options: Any) -> None:
        save(self, **options)
        (folder,) = Path("session").glob(".part-*")
        assert (folder / "last.pt").exists()
        if isinstance(event, BaseException):
            raise event
        os.kill(os.getpid(), event)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer.Trainer, "save", fail)
    assert words in expect_refusal(capsys, dry_run(), status)
    folder = workplace / "session"
    assert list_outside_data(workplace) == [str(folder), str(folder / "other")]


@pytest.mark.usefixtures("trained")
def test_a_name_that_a_run_could_not_use_is_refused(capsys: Capture) -> None:
    assert "session/first exists" in expect_refusal(capsys, dry_run("--name", "first"))
    Path("session/first").rename("session/second")
    assert "results/first exists" in expect_refusal(capsys, dry_run("--name", "first"))


def test_a_network_that_a_run_could_not_train_is_refused(empty_dir: Path, capsys: Capture) -> None:
    command = ["--model", "resnet81", "--dry-run"]
    assert "no such model" in expect_refusal(capsys, main.main(command), expected=2)
    assert not list(empty_dir.iterdir())


@pytest.mark.integration
def test_two_processes(workplace: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ended: subprocess.CompletedProcess[str] = run_python(
        *launcher, ROOT / "main.py", *COMMAND, "--dry-run", timeout=100
    )
    assert ended.returncode == 0, ended.stderr
    assert "2 processes" in find_row(ended.stdout, "device")
    assert ended.stdout.count("nothing was kept") == 1
    assert list_outside_data(workplace) == []
