"""Several processes of one run: the same images and weights as one, one writer, a clear end."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import main
from helper import UserError
from tests.support.builders import (
    ON_CPU,
    QUICK,
    RESULT_FILES,
    ROOT,
    SESSION_FILES,
    make_data_folder,
    read_metrics,
)
from training import distributed

WORKER = ROOT / "tests" / "support" / "distributed_worker.py"


def torchrun(n_processes: int, *command: str | Path) -> subprocess.CompletedProcess:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    # a deadline: what hangs must fail the test
    return subprocess.run(
        [*launcher, f"--nproc-per-node={n_processes}", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": f"{ROOT}"},
        check=False,
    )


def test_two_processes_see_and_learn_what_one_does(tmp_path: Path) -> None:
    kept = []
    for n_processes in (1, 2):
        folder = tmp_path / str(n_processes)
        folder.mkdir()
        result = torchrun(n_processes, WORKER, "train", folder)
        assert result.returncode == 0, result.stderr
        kept.append([torch.load(folder / f"rank-{rank}.pt") for rank in range(n_processes)])
    (one,), two = kept
    assert [a + b for a, b in zip(two[0]["seen"], two[1]["seen"], strict=True)] == one["seen"]
    assert {len(part) for rank in two for part in rank["seen"]} == {3, 4}  # uneven, and weighted
    for name, value in one["weights"].items():
        # 12 steps of SGD on gradients that differ in the order of their float32 sums
        assert torch.allclose(two[0]["weights"][name], value, rtol=1e-4, atol=1e-5), name
        assert torch.equal(two[0]["weights"][name], two[1]["weights"][name]), name
    for rows in zip(one["history"], two[0]["history"], two[1]["history"], strict=True):
        for key in ("train_loss", "val_loss", "val_accuracy", "val_macro_f1"):
            assert rows[1][key] == pytest.approx(rows[0][key], abs=1e-5)
            assert rows[1][key] == rows[2][key]


def test_a_run_of_two_processes_writes_what_one_does(workplace: Path) -> None:
    command = [*QUICK, *ON_CPU, "--epochs", "2", "--name", "two"]
    result = torchrun(2, ROOT / "main.py", *command)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in Path("session/two").iterdir()} == SESSION_FILES
    assert {path.name for path in Path("results/two").iterdir()} == RESULT_FILES | {"plots"}
    assert read_metrics(workplace, "two")["n_images"] > 0
    assert pd.read_csv("session/two/history.csv")["epoch"].tolist() == [1, 2]
    assert result.stdout.count("epoch   2/2") == 1
    assert "2 processes of 1 threads" in result.stdout
    again = torchrun(2, ROOT / "main.py", *command)
    assert again.returncode != 0
    assert "session/two exists; go on with it by --resume session/two" in again.stderr


def test_a_killed_process_ends_the_run_with_a_line(workplace: Path) -> None:
    command = [*QUICK, *ON_CPU, "--epochs", "3", "--name", "killed"]
    result = torchrun(2, WORKER, "kill", ".", *command)
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "process 0 of 2 lost the others" in lines[0]
    assert "--resume" in lines[0]
    # alone this time: a run may go on with another number of processes
    assert main.main(["--resume", "session/killed", "--device", "cpu"]) == 0
    assert read_metrics(workplace, "killed")["n_images"] > 0


def test_folds_of_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_data_folder(tmp_path / "data", n_each=15)
    options = ["--model", "net", "--image-size", "32", "--batch-size", "8", "--epochs", "1"]
    command = [*options, *ON_CPU, "--folds", "2", "--name", "cross"]
    result = torchrun(2, ROOT / "main.py", *command)
    assert result.returncode == 0, result.stderr
    for fold in ("fold_1", "fold_2"):
        assert {path.name for path in Path("session/cross", fold).iterdir()} == SESSION_FILES
    assert read_metrics(tmp_path, "cross")["n_images"] == 30


def test_batches_that_are_too_small_are_refused(workplace: Path) -> None:
    command = ["--phantom", "--model", "net", "--image-size", "32", "--batch-size", "4"]
    result = torchrun(3, ROOT / "main.py", *command, *ON_CPU, "--name", "small")
    assert result.returncode != 0
    assert "give a --batch-size of 6 or more, or start fewer processes" in result.stderr
    assert not Path("session/small").exists()


@pytest.mark.parametrize(
    ("n_train", "n_val", "batch_size", "words"),
    [(24, 9, 4, "--batch-size of 8"), (9, 9, 8, "--batch-size of 8"), (99, 3, 64, "3 val slices")],
)
def test_what_four_processes_cannot_share(
    monkeypatch: pytest.MonkeyPatch, n_train: int, n_val: int, batch_size: int, words: str
) -> None:
    distributed.check_parts(n_train, n_val, batch_size)  # one process can
    for nothing in ((0, n_val), (n_train, 0)):  # told elsewhere, and better
        distributed.check_parts(*nothing, batch_size)
    monkeypatch.setattr(distributed, "count", lambda: 4)
    distributed.check_parts(99, 9, 64)
    with pytest.raises(UserError, match=words):
        distributed.check_parts(n_train, n_val, batch_size)


def test_one_process_needs_no_others() -> None:
    assert distributed.join("cpu") == torch.device("cpu")
    assert (distributed.get_rank(), distributed.count(), distributed.count_local()) == (0, 1, 1)
    assert distributed.agree("name") == "name"
    rows = torch.arange(6).view(3, 2)
    assert torch.equal(distributed.gather_rows(rows, 3), rows)
    assert torch.equal(distributed.add_up(rows.clone()), rows)
    distributed.wait()
    distributed.leave()
