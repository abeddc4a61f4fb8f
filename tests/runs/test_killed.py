"""Runs that are killed, interrupted or told to end: taken up, they end as if never stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import evaluate
import main
import trainer
from common import atomic_files, signals
from modeling import checkpoint
from runs import lifecycle
from tests.support.builders import ON_CPU, QUICK, ROOT, Run, expect_refusal, make_trainer
from trainer import Trainer
from training import distributed

WORKER = ROOT / "tests" / "support" / "kill_worker.py"


def assert_same_weights(one: dict, other: dict) -> None:
    """Of two last.pt, to the bit."""
    for key in ("weights", "trained_weights"):
        assert all(torch.equal(value, other[key][name]) for name, value in one[key].items())


def refuse_to_resume(capsys: pytest.CaptureFixture[str], run_dir: str) -> None:
    """Another program holds the run."""
    capsys.readouterr()
    status = main.main(["--resume", run_dir, "--device", "cpu"])
    assert f"{run_dir}: another program trains this run" in expect_refusal(capsys, status)


OPTIONS: dict[str, Any] = {"dropout": 0.5, "mixup": 0.4, "freeze_epochs": 1, "start": "weights"}


@pytest.mark.parametrize("times", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_any_moment_equals_never_stopped(workplace: Path, times: int) -> None:
    path = str(ROOT)
    ended = subprocess.run(
        [sys.executable, str(WORKER), str(times), "1", "report.json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    rows = json.loads((workplace / "report.json").read_text())
    print(Counter(kill for row in rows for kill in row["kills"]))
    assert len(rows) == times
    wrong = [row for row in rows if row["status"] or row["differences"]]
    assert not wrong
    assert any("it had ended" not in row["kills"] for row in rows)


@pytest.mark.parametrize("n_steps", range(1, 9))
def test_taken_up_after_any_step(
    tmp_path: Path, n_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StopError(Exception):
        pass

    whole = make_trainer(tmp_path / "whole", **OPTIONS)
    whole.fit()
    taken, train_step = 0, Trainer.train_step

    def die(*arguments: object) -> torch.Tensor:
        nonlocal taken
        if taken == n_steps:
            raise StopError
        taken += 1
        return train_step(*arguments)  # type: ignore[arg-type]

    first = make_trainer(tmp_path / "parts", save_every=1e-9, **OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", die)
        with pytest.raises(StopError):
            first.fit()
    last = checkpoint.load_checkpoint(tmp_path / "parts" / "last.pt")
    n_begun = len(last["begun"]["weights"]) if last["begun"] else 0
    # behind the last step of an epoch comes its end, which is saved too
    assert (last["epoch"], n_begun) == divmod(n_steps, whole.steps_per_epoch)
    second = make_trainer(tmp_path / "parts", weights_seed=1, **OPTIONS)
    second.resume(last)
    second.fit()
    for one, other in ((whole.network, second.network), (whole.averaged, second.averaged)):
        for key, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[key]), key
    histories = [
        pd.read_csv(tmp_path / part / "history.csv").drop(columns=["images_per_s", "time_s"])
        for part in ("whole", "parts")
    ]
    assert histories[0].equals(histories[1])


def test_nothing_is_saved_within_an_epoch_before_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for save_every, n_saves in ((0.0, 0), (10.0, 0), (1e-9, 3)):
        trainer = make_trainer(tmp_path / str(save_every), epochs=1, save_every=save_every)
        seen: list[int] = []
        monkeypatch.setattr(trainer, "save", lambda seen=seen, **_: seen.append(1))
        trainer.train_epoch()
        assert len(seen) == n_saves


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_a_signal_saves_and_says_how_to_go_on(
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    status: int,
) -> None:
    command = [*QUICK, *ON_CPU, "--epochs", "2", "--batch-size", "4"]
    assert main.main([*command, "--name", "whole"]) == 0
    train_step = Trainer.train_step

    def interrupt(self: Trainer, batch: object, step: int) -> torch.Tensor:
        if step == 1:
            os.kill(os.getpid(), number)
        return train_step(self, batch, step)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupt)
        capsys.readouterr()
        line = expect_refusal(capsys, main.main([*command, "--name", "parts"]), status)
    last = checkpoint.load_run(Path("session/parts/last.pt"))
    assert len(last["begun"]["weights"]) == 2
    n_steps = -(-len(pd.read_csv("session/parts/split.csv").query("split == 'train'")) // 4)
    assert line == (
        f"error: ended after epoch 0 and 2 of {n_steps} steps; go on with --resume session/parts"
    )
    assert main.main(["--resume", "session/parts", "--device", "cpu"]) == 0
    whole, parts = (
        checkpoint.load_run(Path(f"session/{run}/last.pt")) for run in ("whole", "parts")
    )
    assert_same_weights(whole, parts)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_signal_ends_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)

    def go_on() -> None:
        with signals.postpone() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.kind is KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("it went on")

    with pytest.raises(signals.Terminated):
        go_on()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_killed_before_it_saved_anything_begins_anew(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([*QUICK, *ON_CPU, "--name", "run"]) == 0
    whole = checkpoint.load_run(Path("session/run/last.pt"))
    for name in ("last.pt", "best.pt", "history.csv"):
        Path("session/run", name).unlink()
    Path("session/run/.part-half.pt").touch()
    capsys.readouterr()
    assert main.main(["--resume", "session/run", "--device", "cpu"]) == 0
    assert (
        "session/run: killed before anything was saved; it begins anew" in capsys.readouterr().out
    )
    again = checkpoint.load_run(Path("session/run/last.pt"))
    assert all(torch.equal(value, again["weights"][key]) for key, value in whole["weights"].items())
    assert not list(Path("session/run").glob(".*"))


def test_losses_of_a_begun_epoch_are_counted_by_one_process_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = []
    for is_first in (True, False):
        trainer = make_trainer(tmp_path / str(is_first), epochs=1)
        trainer.begun = {"losses": torch.tensor([30.0]), "weights": [8]}
        monkeypatch.setattr(trainer, "train_step", lambda *_: torch.tensor(1.0))
        with monkeypatch.context() as patch:
            patch.setattr(distributed, "is_first", lambda first=is_first: first)
            losses.append(trainer.train_epoch())
    assert losses == pytest.approx([(30 * 8 + 16) / 24, 16 / 24])


def test_two_programs_never_train_one_run(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([*QUICK, *ON_CPU, "--name", "run"]) == 0
    before = Path("session/run/last.pt").read_bytes()
    with atomic_files.lock(Path("session/run"), "taken"):
        refuse_to_resume(capsys, "session/run")
        assert Path("session/run/last.pt").read_bytes() == before
        for name in ("last.pt", "best.pt", "history.csv"):  # the other has not saved yet
            Path("session/run", name).unlink()
        refuse_to_resume(capsys, "session/run")
        assert Path("session/run/config.json").exists()


def test_two_programs_never_train_the_folds_of_one_run(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "evaluate", lambda _: None)
    command = [*QUICK, *ON_CPU, "--epochs", "1", "--folds", "3", "--name", "cross"]
    assert main.main(command) == 0
    Path("session/cross/fold_2/last.pt").unlink()
    with atomic_files.lock(Path("session/cross"), "taken"):
        refuse_to_resume(capsys, "session/cross")
    assert Path("session/cross/fold_2/best.pt").exists()


def test_a_signal_while_a_run_is_evaluated_says_how_to_go_on(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "evaluate", lambda _: os.kill(os.getpid(), signal.SIGTERM))
        status = main.main([*QUICK, *ON_CPU, "--epochs", "1", "--name", "run"])
        line = expect_refusal(capsys, status, 143)
    assert line == "error: trained, not evaluated; go on with --resume session/run"
    assert main.main(["--resume", "session/run", "--device", "cpu"]) == 0
    assert Path("results/run/metrics.json").exists()


def test_threads_that_read_change_no_bit(
    workplace: Path, phantom_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("data/phantom").unlink()
    shutil.copytree(phantom_dir, "data/phantom", ignore=shutil.ignore_patterns("cache"))
    monkeypatch.setattr(evaluate, "evaluate", lambda _: None)
    ends = []
    # in memory, or read from disk while it trains; decoded anew each time
    for n_threads, memory in ((1, []), (7, []), (3, ["--memory-mib", "1"])):
        monkeypatch.setattr(os, "cpu_count", lambda n=n_threads: n)
        shutil.rmtree("data/phantom/cache", ignore_errors=True)
        name = f"run-{n_threads}"
        size = ["--image-size", "160", "--epochs", "1"]
        assert main.main([*QUICK, *ON_CPU, *memory, *size, "--name", name]) == 0
        ends.append(checkpoint.load_run(Path(f"session/{name}/last.pt")))
    for end in ends[1:]:
        assert_same_weights(ends[0], end)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_run_on_cuda_is_the_same_twice_and_when_taken_up(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*QUICK, "--device", "cuda", "--deterministic", "--epochs", "2", "--name"]
    assert main.main([*command, "whole"]) == 0
    train_step = Trainer.train_step

    def interrupt(self: Trainer, batch: object, step: int) -> torch.Tensor:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(self, batch, step)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupt)
        assert main.main([*command, "parts"]) == 143
    assert main.main(["--resume", "session/parts", "--device", "cuda"]) == 0
    whole, parts = (
        checkpoint.load_run(Path(f"session/{run}/last.pt")) for run in ("whole", "parts")
    )
    assert_same_weights(whole, parts)


def test_what_was_chosen_for_a_run_is_not_chosen_again(tmp_path: Path) -> None:
    first = make_trainer(tmp_path, epochs=1)
    first.micro_batch, first.compiles = 4, True
    first.save(improved=False)
    second = make_trainer(tmp_path, epochs=1)
    assert not second.compiles
    second.resume(checkpoint.load_checkpoint(tmp_path / "last.pt"))
    assert (second.micro_batch, second.compiles) == (4, True)
    assert second.forward is not second.network


def test_a_finished_run_without_its_last_checkpoint_is_left_alone(
    trained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("session/first/last.pt").unlink()
    before = Path("session/first/best.pt").read_bytes()
    status = main.main(["--resume", "session/first", "--device", "cpu"])
    assert "session/first/last.pt: no such file" in expect_refusal(capsys, status)
    assert Path("session/first/best.pt").read_bytes() == before


def test_steps_that_were_saved_outlive_an_error_of_any_kind(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_step = Trainer.train_step

    def fail(self: Trainer, batch: object, step: int) -> torch.Tensor:
        if step == 1:
            raise RuntimeError("the device is lost")
        return train_step(self, batch, step)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "train_step", fail)
    command = [*QUICK, *ON_CPU, "--name"]
    assert main.main([*command, "kept", "--save-every", "0.0000001"]) == 1
    assert checkpoint.load_run(Path("session/kept/last.pt"))["begun"]
    assert main.main([*command, "lost"]) == 1
    assert not Path("session/lost").exists()


def test_a_signal_is_heeded_when_nobody_reads_what_is_said() -> None:
    code = (
        "import os, signal, stopping\n"
        "reader, writer = os.pipe()\n"
        "os.dup2(writer, 2); os.close(writer); os.close(reader)\n"
        "with stopping.postpone() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print(stop.kind.__name__)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.stdout == "KeyboardInterrupt\n"


def test_folds_that_are_ended_before_the_first_is_saved_can_be_taken_up(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "evaluate", lambda _: None)
    command = [*QUICK, *ON_CPU, "--epochs", "1", "--folds", "3", "--name", "cross"]

    def interrupt(*_: object, **__: object) -> None:
        raise signals.Terminated

    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "prepare", interrupt)
        line = expect_refusal(capsys, main.main(command), 143)
    assert line == "error: ended in fold 1; go on with --resume session/cross"
    (Path("session/cross/.part-fold") / "inside").mkdir(parents=True)  # killed in new_folder
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_checkpoint", fill_the_disk)
        patch.setattr(trainer, "save_checkpoint", fill_the_disk)
        line = expect_refusal(capsys, main.main(["--resume", "session/cross", "--device", "cpu"]))
    assert main.main(["--resume", "session/cross", "--device", "cpu"]) == 0
    assert Path("session/cross/fold_3/best.pt").exists()
    assert not list(Path("session/cross").glob(".*"))


def fill_the_disk(path: Path, content: object) -> None:
    raise OSError(28, "No space left on device", str(path))
