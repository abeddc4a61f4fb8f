"""Runs that are killed, interrupted or refused; resumed runs equal runs never stopped."""

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import dataset
import evaluate
import helper
import main
from common import atomic_files
from modeling import checkpoint
from runs import lifecycle, run_folder
from tests.support.builders import (
    ON_CPU,
    QUICK,
    ROOT,
    SESSION_FILES,
    Capture,
    Patch,
    Run,
    assert_same_weights,
    expect_refusal,
    raise_in_step,
    run_python,
)
from trainer import Trainer

RESUME = ["--resume", "session/first", "--device", "cpu"]


def load_last(run: str, root: Path = Path()) -> dict:
    return checkpoint.load_run(root / "session" / run / "last.pt")


@pytest.mark.integration
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("times", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_any_moment_equals_never_stopped(workplace: Path, times: int) -> None:
    ended = run_python(ROOT / "tests/support/kill_worker.py", times, 1, "report.json")
    assert ended.returncode == 0, ended.stderr
    rows = json.loads((workplace / "report.json").read_text())
    assert len(rows) == times
    assert not [row for row in rows if row["status"] or row["differences"]]
    assert any(row["n_kills"] for row in rows)


@pytest.mark.parametrize(
    ("event", "status", "steps"),
    [
        (signal.SIGINT, 130, " and 1 of "),
        (signal.SIGTERM, 143, " and 1 of "),
        (KeyboardInterrupt(), 130, ""),  # the second Ctrl-C; the first step is lost
    ],
    ids=["SIGINT", "SIGTERM", "twice"],
)
@pytest.mark.usefixtures("workplace", "no_evaluation")
def test_an_interrupted_run_equals_one_never_stopped(
    first_run: Run, monkeypatch: Patch, capsys: Capture, event: object, status: int, steps: str
) -> None:
    with monkeypatch.context() as patch:
        raise_in_step(patch, 0, event)
        command = [*QUICK, *ON_CPU, "--epochs", "2", "--name", "first"]
        line = expect_refusal(capsys, main.main(command), status)
    assert f"after epoch 0{steps}" in line
    assert "; continue with --resume session/first" in line
    set_threads = Mock(wraps=helper.set_threads)
    monkeypatch.setattr(helper, "set_threads", set_threads)
    assert main.main(RESUME) == 0
    set_threads.assert_any_call(load_last("first")["threads"])
    assert_same_weights(load_last("first", first_run.root), load_last("first"))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.usefixtures("trained", "no_evaluation")
def test_runs_without_a_save_restart_unless_locked(first_run: Run, capsys: Capture) -> None:
    before = Path("session/first/last.pt").read_bytes()
    with atomic_files.lock(Path("session/first"), "busy"):
        assert "another program trains this run" in expect_refusal(capsys, main.main(RESUME))
    assert Path("session/first/last.pt").read_bytes() == before
    for name in ("last.pt", "best.pt", "history.csv", "split.csv"):
        Path("session/first", name).unlink()
    Path("session/first/.part-half.pt").touch()
    with atomic_files.lock(Path("session/first"), "busy"):  # the other program has not saved yet
        line = expect_refusal(capsys, main.main(RESUME))
        assert "session/first: another program" in line
        assert Path("session/first/config.json").exists()
    assert main.main(RESUME) == 0
    assert "it restarts" in capsys.readouterr().out
    assert_same_weights(load_last("first", first_run.root), load_last("first"))
    assert not list(Path("session/first").glob(".*"))


@pytest.mark.usefixtures("trained")
def test_a_signal_during_evaluation(monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setattr(evaluate, "evaluate", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    line = expect_refusal(capsys, main.main(RESUME), 143)
    assert "not evaluated; continue with --resume session/first" in line


@pytest.mark.usefixtures("trained")
def test_a_finished_run_without_last_checkpoint_is_not_changed(capsys: Capture) -> None:
    Path("session/first/last.pt").unlink()
    before = Path("session/first/best.pt").read_bytes()
    assert "session/first/last.pt: no such file" in expect_refusal(capsys, main.main(RESUME))
    assert Path("session/first/best.pt").read_bytes() == before


@pytest.mark.usefixtures("workplace")
def test_saved_steps_survive_any_error(monkeypatch: Patch) -> None:
    raise_in_step(monkeypatch, 1, RuntimeError("the device is lost"))
    command = [*QUICK, *ON_CPU, "--name"]
    assert main.main([*command, "saved", "--save-every", "0.0000001"]) == 1
    assert load_last("saved")["partial_epoch"]
    assert not Path("session/saved/failed.txt").exists()
    assert main.main([*command, "lost"]) == 1
    assert "the device is lost" in Path("session/lost/failed.txt").read_text("utf-8")


@pytest.mark.usefixtures("workplace")
def test_an_operation_that_is_not_deterministic_is_named(
    monkeypatch: Patch, capsys: Capture
) -> None:
    message = "pool_backward does not have a deterministic implementation, but you set ..."
    raise_in_step(monkeypatch, 0, RuntimeError(message))
    line = expect_refusal(capsys, main.main([*QUICK, *ON_CPU, "--name", "pool"]))
    assert "--deterministic: pool_backward" in line
    assert "leave the option out" in line


@pytest.mark.usefixtures("workplace")
def test_finished_epochs_survive_any_error(monkeypatch: Patch, capsys: Capture) -> None:
    command = [*QUICK, *ON_CPU, "--epochs", "2", "--name", "half"]
    with monkeypatch.context() as patch:
        error = RuntimeError("the device is lost")
        validate = Mock(side_effect=[lifecycle.Trainer.validate, error])

        def validate_once(self: lifecycle.Trainer) -> dict[str, float]:
            return validate()(self)

        patch.setattr(lifecycle.Trainer, "validate", validate_once)
        assert main.main(command) == 1
    capsys.readouterr()
    assert not Path("session/half/failed.txt").exists()
    assert "--resume session/half" in expect_refusal(capsys, main.main(command))


def fail_to_start(monkeypatch: Patch, name: str, error: Exception) -> None:
    """Start a run that fails before anything is saved."""
    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "build_trainer", Mock(side_effect=error))
        assert main.main([*QUICK, *ON_CPU, "--name", name]) == 1


@pytest.mark.usefixtures("workplace", "no_evaluation")
def test_a_failed_run_that_restarts_is_never_replaced(monkeypatch: Patch, capsys: Capture) -> None:
    fail_to_start(monkeypatch, "again", RuntimeError("the device is lost"))
    assert Path("session/again/failed.txt").exists()
    assert main.main(["--resume", "session/again", "--device", "cpu"]) == 0
    before = Path("session/again/last.pt").read_bytes()
    capsys.readouterr()
    status = main.main([*QUICK, *ON_CPU, "--name", "again"])
    assert "--resume session/again" in expect_refusal(capsys, status)
    assert Path("session/again/last.pt").read_bytes() == before


@pytest.mark.usefixtures("workplace", "no_evaluation")
def test_two_programs_cannot_replace_a_failed_run(monkeypatch: Patch, capsys: Capture) -> None:
    fail_to_start(monkeypatch, "again", RuntimeError("the device is lost"))
    capsys.readouterr()
    run_dir, command = Path("session/again"), [*QUICK, *ON_CPU, "--name", "again"]
    with atomic_files.lock(run_dir, "busy"):
        assert "another program trains" in expect_refusal(capsys, main.main(command))
    assert (run_dir / "failed.txt").exists()
    lock_run = run_folder.lock_run

    @contextlib.contextmanager
    def lock_late(folder: Path) -> Iterator[None]:
        with lock_run(folder):
            (folder / "failed.txt").unlink()  # by the other program, which has trained since
            (folder / "last.pt").touch()
            yield

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "lock_run", lock_late)
        assert "session/again exists" in expect_refusal(capsys, main.main(command))
    assert (run_dir / "last.pt").exists()


@pytest.mark.usefixtures("workplace", "no_evaluation")
def test_a_failed_run_is_replaced_as_a_whole(monkeypatch: Patch) -> None:
    fail_to_start(monkeypatch, "again", RuntimeError("the device is lost"))
    run_dir = Path("session/again")
    (run_dir / "tensorboard").mkdir()
    (run_dir / "tensorboard/events").touch()
    assert main.main([*QUICK, *ON_CPU, "--seed", "7", "--name", "again"]) == 0
    assert {path.name for path in run_dir.iterdir()} == SESSION_FILES
    assert json.loads((run_dir / "config.json").read_text("utf-8"))["run"]["seed"] == 7


@pytest.mark.usefixtures("workplace")
def test_a_disk_too_full_for_the_mark_does_not_hide_the_error(
    monkeypatch: Patch, capsys: Capture
) -> None:
    full = Mock(side_effect=OSError(28, "No space left on device", "failed.txt"))
    write_text = atomic_files.write_text

    def write(path: Path, text: str) -> None:
        (full if path.name == "failed.txt" else write_text)(path, text)

    monkeypatch.setattr(atomic_files, "write_text", write)
    fail_to_start(monkeypatch, "full", RuntimeError("the device is lost"))
    assert "the device is lost" in capsys.readouterr().err
    full.assert_called_once()


@pytest.mark.usefixtures("workplace", "no_evaluation")
def test_memory_disk_and_reader_threads_give_the_same_bits(
    phantom_dir: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    Path("data/phantom").unlink()
    shutil.copytree(phantom_dir, "data/phantom", ignore=shutil.ignore_patterns("cache"))
    last, take_slices = [], Mock(wraps=dataset.take_slices)
    monkeypatch.setattr(dataset, "take_slices", take_slices)
    for n_threads, limit in ((1, []), (7, []), (3, ["--memory-mib", "1"])):
        monkeypatch.setattr(os, "cpu_count", lambda n=n_threads: n)
        shutil.rmtree("data/phantom/cache", ignore_errors=True)  # so that slices are decoded again
        size = ["--image-size", "160", "--epochs", "1"]  # 60 slices need 1.5 MiB
        assert main.main([*QUICK, *ON_CPU, *limit, *size, "--name", f"run-{n_threads}"]) == 0
        assert bool(limit) == ("read from disk" in capsys.readouterr().out)
        assert take_slices.call_args.kwargs["in_memory"] == (not limit)
        last.append(load_last(f"run-{n_threads}"))
    for other in last[1:]:
        assert_same_weights(last[0], other)
        assert other["baselines"] == last[0]["baselines"]
        assert other["history"][0]["val_loss"] == last[0]["history"][0]["val_loss"]


@pytest.mark.usefixtures("workplace", "no_evaluation")
def test_room_is_left_for_four_copies_of_the_weights(monkeypatch: Patch) -> None:
    load_slices = Mock(wraps=dataset.load_slices)
    monkeypatch.setattr(dataset, "load_slices", load_slices)
    assert main.main([*QUICK, *ON_CPU, "--epochs", "1", "--name", "room"]) == 0
    moments = load_last("room")["optimizer"]["state"].values()  # one entry per parameter
    n_weights = sum(each["exp_avg"].numel() for each in moments)
    assert load_slices.call_args.kwargs["reserved_mib"] == 4 * 4 * n_weights / 2**20


@pytest.mark.usefixtures("trained")
def test_out_of_memory_is_no_fault_of_the_checkpoint(monkeypatch: Patch, capsys: Capture) -> None:
    failure = torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(Trainer, "resume", Mock(side_effect=failure))
    line = expect_refusal(capsys, main.main(RESUME))
    assert "out of memory" in line
    assert "training state" not in line


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.usefixtures("workplace", "no_evaluation")
def test_an_interrupted_run_on_cuda_equals_one_never_stopped(monkeypatch: Patch) -> None:
    command = [*QUICK, "--device", "cuda", "--deterministic", "--epochs", "2", "--name"]
    assert main.main([*command, "whole"]) == 0
    with monkeypatch.context() as patch:
        raise_in_step(patch, 1, signal.SIGTERM)
        assert main.main([*command, "parts"]) == 143
    assert main.main(["--resume", "session/parts", "--device", "cuda"]) == 0
    assert_same_weights(load_last("whole"), load_last("parts"))
