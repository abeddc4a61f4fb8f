"""Errors and exit statuses, seeds, devices, the environment record."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import helper
from common.signals import Terminated
from helper import UserError


def test_a_seed_depends_on_every_part() -> None:
    parts: list[tuple[int | str, ...]] = [
        (0, "augment", 1, 2),
        (1, "augment", 1, 2),
        (0, "order", 1, 2),
        (0, "augment", 0, 2),
        (0, "augment", 1, 3),
        (0, "augment", 2, 1),
        (0, "augment", 1),
        (0, "augment", 12),
        (0, 1, 2),
        (0,),
        (2**40, "augment", 1, 2),
    ]
    seeds = [helper.derive_seed(int(seed), *purpose) for seed, *purpose in parts]
    assert len(set(seeds)) == len(parts)
    assert seeds == [helper.derive_seed(int(seed), *purpose) for seed, *purpose in parts]
    assert all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds)
    steps = range(0, 200_000, 370)
    assert len({helper.derive_seed(0, "step", step) for step in steps}) == len(steps)


def test_a_seed_is_that_of_numpy_on_every_platform() -> None:
    """Resumed runs of an older version would continue differently if this changed."""
    words = [0, int.from_bytes(b"order", "little"), int.from_bytes(b"3", "little")]
    state = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
    assert helper.derive_seed(0, "order", 3) == state >> 1


def test_generators_and_the_global_seed_follow_the_purpose() -> None:
    def draw(seed: int, *purpose: int | str) -> list[float]:
        return torch.rand(3, generator=helper.build_generator(seed, *purpose)).tolist()

    assert draw(0, "a", 1) == draw(0, "a", 1)
    assert draw(0, "a", 1) != draw(0, "a", 2)
    helper.seed_everything(3, "weights")
    first = torch.rand(3)
    helper.seed_everything(3, "weights")
    assert torch.equal(torch.rand(3), first)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("what, where, what to do"), 1, "error: what, where, what to do"),
        (UserError("wrong option", status=2), 2, "error: wrong option"),
        (FileNotFoundError(2, "No such file", "a.csv"), 1, "error: a.csv: No such file"),
        (OSError("disk on fire"), 1, "error: disk on fire"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (Terminated("saved"), 143, "error: saved"),
        (ValueError("one\ntwo"), 1, "error: ValueError: one (run again with --debug to see where)"),
        (ValueError(), 1, "error: ValueError: ValueError (run again with --debug to see where)"),
    ],
)
def test_a_failed_command_has_a_status_and_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(_: None) -> None:
        helper.log.info("started")
        raise error

    assert helper.run_command(command, None) == status
    captured = capsys.readouterr()
    assert captured.err == line + "\n"
    assert captured.out == "started\n"
    with pytest.raises(type(error)):
        helper.run_command(command, None, debug=True)


def test_out_of_memory_suggests_smaller_batches() -> None:
    assert "--batch-size" in helper.describe_error(torch.OutOfMemoryError("Tried to allocate"))


def test_a_successful_command_has_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[str] = []
    assert helper.run_command(seen.append, "config") == 0
    assert seen == ["config"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["nonsense", "", "cuda:99", "cpu:x"])
def test_a_missing_device_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"--device .*--device cpu") as caught:
        helper.resolve_device(name)
    assert "\n" not in str(caught.value)


def test_devices_and_threads() -> None:
    assert helper.resolve_device("cpu") == torch.device("cpu")
    assert (helper.resolve_device("auto").type == "cuda") == torch.cuda.is_available()
    before = torch.get_num_threads()
    assert helper.set_threads(0) == before
    try:
        assert helper.set_threads(2) == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_environment_is_plain_and_names_the_command() -> None:
    record = helper.describe_environment(torch.device("cpu"), ["main.py", "--name", "a b"])
    keys = ["python", "torch", "torchvision", "device", "threads", "commit", "command"]
    assert list(record) == keys
    assert record["command"] == "python main.py --name 'a b'"
    assert record["device"] == "cpu"
    assert {type(value) for value in record.values()} <= {str, int, type(None)}
    assert json.loads(json.dumps(record)) == record


def test_no_commit_outside_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(helper, "PROJECT_DIR", tmp_path)
    assert helper.read_commit() is None
    monkeypatch.setenv("PATH", str(tmp_path))  # git is not installed
    assert helper.read_commit() is None
