"""Runs that go on: more epochs, data that moved, and commands in other folders."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import evaluate
import main
from modeling import checkpoint
from tests.support.builders import ON_CPU, QUICK, Capture, expect_refusal, read_metrics
from training.schedule import Schedule

RESUME = ["--resume", "session/first", "--device", "cpu"]


def load_last(run: str = "first") -> dict:
    return checkpoint.load_run(Path("session") / run / "last.pt")


def test_an_extended_schedule_goes_on_from_the_present_learning_rate() -> None:
    plain = Schedule(n_steps=100, n_warmup=10, peak_lr=2.0)
    longer = plain.extend(300, step=60, epoch=6)
    assert longer.compute_lr(60) == pytest.approx(plain.compute_lr(60))
    rates = [longer.compute_lr(step) for step in range(60, 301)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.02)
    again = plain.restore(longer.to_record())
    assert again.compute_lr(100) == Schedule(**{**vars(longer), "n_steps": 100}).compute_lr(100)


def test_slices_never_shrink_again() -> None:
    plain = Schedule(n_steps=100, n_warmup=0, peak_lr=1.0)
    assert plain.compute_size(60, 160, 0.4) == 160
    assert Schedule(1000, 0, 1.0).compute_size(60, 160, 0.4) < 160
    assert plain.extend(1000, step=60, epoch=6).compute_size(60, 160, 0.4) == 160


def test_the_warm_up_is_not_cut_off() -> None:
    early = Schedule(n_steps=100, n_warmup=10, peak_lr=1.0).extend(200, step=2, epoch=0)
    assert early.compute_lr(10) == pytest.approx(1, abs=0.1)


@pytest.mark.usefixtures("trained", "no_evaluation")
def test_a_finished_run_is_extended(capsys: Capture) -> None:
    assert main.main([*RESUME, "--epochs", "3"]) == 0
    assert "3 epochs instead of 2, after epoch 2; the learning rate" in capsys.readouterr().out
    last = load_last()
    assert [row["epoch"] for row in last["history"]] == [1, 2, 3]
    assert last["config"]["train"]["epochs"] == 3
    best = checkpoint.load_run(Path("session/first/best.pt"))
    assert best["config"]["train"]["epochs"] == 3
    assert best["calibration"]
    assert json.loads(Path("session/first/config.json").read_text())["train"]["epochs"] == 3
    for epochs in ("2", "3"):
        line = expect_refusal(capsys, main.main([*RESUME, "--epochs", epochs]))
        assert f"--epochs {epochs}: session/first has finished 3 of 3" in line


@pytest.mark.usefixtures("workplace", "no_evaluation")
def test_a_run_that_stopped_early_goes_on(capsys: Capture) -> None:
    command = [*QUICK, *ON_CPU, "--epochs", "9", "--patience", "1", "--lr", "1e-8"]
    assert main.main([*command, "--name", "first"]) == 0
    n_before = load_last()["epoch"]
    assert n_before < 8
    assert main.main(RESUME) == 0
    assert load_last()["epoch"] == n_before
    assert main.main([*RESUME, "--epochs", "9"]) == 0
    assert load_last()["epoch"] > n_before
    assert load_last()["schedule"]["first_epoch"] == n_before
    assert "early stopping counts from here" in capsys.readouterr().out


@pytest.mark.usefixtures("crossed", "no_evaluation")
def test_all_folds_are_extended(capsys: Capture) -> None:
    command = ["--resume", "session/cross", "--device", "cpu", "--epochs"]
    line = expect_refusal(capsys, main.main([*command, "1"]))
    assert "session/cross has finished 1 of 1" in line
    assert main.main([*command, "2"]) == 0
    for fold in (1, 2, 3):
        assert load_last(f"cross/fold_{fold}")["epoch"] == 2
    assert json.loads(Path("session/cross/config.json").read_text())["train"]["epochs"] == 2


@pytest.mark.usefixtures("trained")
def test_data_that_moved(other_phantoms: Path, phantom_dir: Path, capsys: Capture) -> None:
    Path("data/phantom").unlink()
    assert "--data DIR" in expect_refusal(capsys, main.main(RESUME))
    status = evaluate.main(["session/first/best.pt", "--device", "cpu"])
    assert "--data DIR" in expect_refusal(capsys, status)
    line = expect_refusal(capsys, main.main([*RESUME, "--data", str(other_phantoms)]))
    assert "have changed" in line
    Path("moved").symlink_to(phantom_dir, target_is_directory=True)
    assert main.main([*RESUME, "--data", "moved"]) == 0
    assert read_metrics(Path(), "first")["data"] == "moved"
    last = load_last()
    assert (last["data"], last["earlier_data"]) == ("moved", ["data/phantom"])
    assert last["config"]["data"]["data"] == "moved"


@pytest.mark.usefixtures("trained")
def test_commands_hold_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, elsewhere = Path.cwd(), tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run = root / "session/first"
    shutil.rmtree(root / "results/first")
    assert main.main(["--resume", str(run), "--device", "cpu"]) == 0
    assert (root / "results/first/metrics.json").exists()
    assert not list(elsewhere.iterdir())
    assert torch.load(run / "last.pt")["data"] == "data/phantom"
    root.rename(tmp_path / "renamed")
    run = tmp_path / "renamed/session/first"
    assert evaluate.main([str(run), "--device", "cpu", "--gallery", "0"]) == 0


@pytest.mark.usefixtures("trained", "no_evaluation")
def test_a_network_of_another_run_is_trained_further(capsys: Capture) -> None:
    command = [*QUICK, *ON_CPU, "--epochs", "1", "--weights", "session/first/best.pt"]
    options = ["--intensity", "zscore", "--image-size", "48", "--split-seed", "7"]
    assert main.main([*command, *options, "--name", "next"]) == 0
    printed = capsys.readouterr().out
    for words in ("image_size was 32, now 48", "intensity was raw, now zscore", "LEAK"):
        assert words in printed
    assert load_last("next")["start"] == "weights of best.pt"
