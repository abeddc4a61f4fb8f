"""Several processes of one run: the same weights as one process, one writer, a clear end."""

import re
import subprocess
from pathlib import Path
from unittest.mock import Mock

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
    Patch,
    make_data_folder,
    read_metrics,
    run_python,
)
from training import distributed

pytestmark = pytest.mark.timeout(300)
WORKER = ROOT / "tests" / "support" / "distributed_worker.py"


def torchrun(n_processes: int, *command: object) -> "subprocess.CompletedProcess[str]":
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
    return run_python(*launcher, *command, timeout=100)  # processes that hang fail the test


@pytest.mark.integration
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    results = []
    for n_processes in (1, 2):
        folder = tmp_path / str(n_processes)
        folder.mkdir()
        ended = torchrun(n_processes, WORKER, "train", folder)
        assert ended.returncode == 0, ended.stderr
        results.append([torch.load(folder / f"rank-{rank}.pt") for rank in range(n_processes)])
    (one,), two = results
    assert [a + b for a, b in zip(two[0]["seen"], two[1]["seen"], strict=True)] == one["seen"]
    assert [len(rank["seen"][0]) for rank in two] == [5, 4]  # uneven, and weighted
    for whole, *parts in zip(*(each["gradients"] for each in (one, *two)), strict=True):
        # of a sum of 9 slices in another order, relative to the largest gradient of the layer
        torch.testing.assert_close(
            parts[0], whole, rtol=0, atol=1e-6 * float(whole.abs().max()) * 9
        )
        assert torch.equal(*parts)
    for name, value in one["weights"].items():
        # 12 steps of SGD on gradients that differ in the order of their float32 sums
        assert torch.allclose(two[0]["weights"][name], value, rtol=1e-4, atol=1e-5), name
        assert torch.equal(two[0]["weights"][name], two[1]["weights"][name]), name
    for rows in zip(one["history"], two[0]["history"], two[1]["history"], strict=True):
        for key in ("train_loss", "val_loss", "val_accuracy", "val_macro_f1"):
            assert rows[1][key] == pytest.approx(rows[0][key], abs=1e-5)
            assert rows[1][key] == rows[2][key]


@pytest.mark.integration
def test_a_run_of_two_processes_writes_the_same_files(workplace: Path) -> None:
    command = [*QUICK, *ON_CPU, "--epochs", "2", "--name", "two"]
    ended = torchrun(2, ROOT / "main.py", *command)
    assert ended.returncode == 0, ended.stderr
    assert {path.name for path in Path("session/two").iterdir()} == SESSION_FILES
    assert {path.name for path in Path("results/two").iterdir()} == RESULT_FILES | {"plots"}
    assert read_metrics(workplace, "two")["n_images"] > 0
    assert pd.read_csv("session/two/history.csv")["epoch"].tolist() == [1, 2]
    assert ended.stdout.count("epoch   2/2") == 1
    assert re.search(r"2 processes of \d+ threads", ended.stdout)
    assert "Warning" not in ended.stderr
    again = torchrun(2, ROOT / "main.py", *command)
    assert again.returncode != 0
    assert "--resume session/two" in again.stderr


@pytest.mark.integration
def test_a_killed_process_ends_the_run_with_one_line(workplace: Path) -> None:
    command = [*QUICK, *ON_CPU, "--epochs", "3", "--name", "killed"]
    ended = torchrun(2, WORKER, "kill", ".", *command)
    assert ended.returncode != 0
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert "process 0 of 2 lost the connection" in line
    assert "--resume" in line
    # a run may be continued by another number of processes
    assert main.main(["--resume", "session/killed", "--device", "cpu"]) == 0
    assert read_metrics(workplace, "killed")["n_images"] > 0


@pytest.mark.integration
def test_cross_validation_with_two_processes(empty_dir: Path) -> None:
    make_data_folder(empty_dir / "data", n_each=15)
    options = ["--model", "net", "--image-size", "32", "--batch-size", "8", "--epochs", "1"]
    command = [*options, *ON_CPU, "--folds", "2", "--name", "cross"]
    ended = torchrun(2, ROOT / "main.py", *command)
    assert ended.returncode == 0, ended.stderr
    for fold in ("fold_1", "fold_2"):
        assert {path.name for path in Path("session/cross", fold).iterdir()} == SESSION_FILES
    assert read_metrics(empty_dir, "cross")["n_images"] == 30


@pytest.mark.integration
def test_too_small_batches_leave_no_run_behind(workplace: Path) -> None:
    command = ["--phantom", "--model", "net", "--image-size", "32", "--batch-size", "4"]
    ended = torchrun(3, ROOT / "main.py", *command, *ON_CPU, "--name", "small")
    assert ended.returncode != 0
    assert "--batch-size of 6" in ended.stderr
    assert not Path("session/small").exists()


@pytest.mark.parametrize(
    ("n_train", "n_val", "batch_size", "words"),
    [(24, 9, 4, "--batch-size of 8"), (7, 9, 8, "--batch-size of 8"), (99, 3, 64, "3 val slices")],
)
def test_slices_that_four_processes_cannot_share(
    monkeypatch: Patch, n_train: int, n_val: int, batch_size: int, words: str
) -> None:
    splits = ["train"] * n_train + ["val"] * n_val
    distributed.check_batch_size(splits, batch_size)  # one process can
    monkeypatch.setattr(distributed, "get_world_size", lambda: 4)
    distributed.check_batch_size(["train"] * 99 + ["val"] * 9, 64)
    distributed.check_batch_size(["train"] * 9 + ["val"] * 9, 8)  # two full batches
    distributed.check_batch_size(["val"] * 9, batch_size)  # empty splits are reported elsewhere
    with pytest.raises(UserError, match=words):
        distributed.check_batch_size(splits, batch_size)


def test_several_gpus_without_nccl_are_refused(monkeypatch: Patch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    resolve = Mock(return_value=torch.device("cuda", 1))
    monkeypatch.setattr(distributed, "resolve_device", resolve)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(UserError, match="several GPUs need NCCL"):
        distributed.init("auto")
    resolve.assert_called_once_with("cuda:1")


@pytest.mark.parametrize(("rank", "order"), [("0", ["run", "wait"]), ("1", ["wait", "run"])])
def test_the_first_process_of_a_machine_is_waited_for(
    monkeypatch: Patch, rank: str, order: list[str]
) -> None:
    seen: list[str] = []
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(distributed, "barrier", lambda: seen.append("wait"))
    with distributed.first_process_first():
        seen.append("run")
    assert seen == order


@pytest.mark.parametrize("words", ["CUDA out of memory in NCCL", "mat1 and mat2 do not fit"])
def test_errors_that_are_not_of_the_connection_are_kept(words: str) -> None:
    error = RuntimeError(words)
    context = distributed._convert_errors(distributed.CONNECTION_ERROR)
    with pytest.raises(RuntimeError) as caught, context:
        raise error
    assert caught.value is error


def test_one_process_needs_no_group() -> None:
    assert distributed.init("cpu") == torch.device("cpu")
    assert distributed.is_main_process()
    assert (distributed.get_world_size(), distributed.get_local_world_size()) == (1, 1)
    assert distributed.broadcast("name") == "name"
    rows = torch.arange(6).view(3, 2)
    assert torch.equal(distributed.all_gather_rows(rows, 3), rows)
    assert torch.equal(distributed.all_reduce(rows.clone()), rows)
    distributed.barrier()
    distributed.destroy()
