"""Errors and exit statuses, seeds, devices, the environment record."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import helper
from common.signals import Terminated
from helper import UserError
from tests.support.builders import Capture, Patch


def test_a_seed_depends_on_every_part() -> None:
    purposes = [("a", 1, 2), ("b", 1, 2), ("a", 1, 3), ("a", 2, 1), ("a", 1), ("a", 12), (1, 2), ()]
    parts = [(seed, purpose) for seed in (0, 1, 2**40) for purpose in purposes]
    seeds = [helper.derive_seed(seed, *purpose) for seed, purpose in parts]
    assert len(set(seeds)) == len(parts)
    assert seeds == [helper.derive_seed(seed, *purpose) for seed, purpose in parts]
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
    ("error", "status", "pattern"),
    [
        (UserError("what, where, what to do"), 1, "what, where, what to do"),
        (UserError("wrong option", status=2), 2, "wrong option"),
        (FileNotFoundError(2, "No such file", "a.csv"), 1, "a.csv: No such file"),
        (OSError("disk on fire"), 1, "disk on fire"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated("saved"), 143, "saved"),
        (ValueError("one\ntwo"), 1, "ValueError: one .*--debug"),
        (ValueError(), 1, "ValueError: ValueError .*--debug"),
        (torch.OutOfMemoryError("Tried to allocate"), 1, "Tried to allocate.*--batch-size"),
    ],
)
def test_a_failed_command_has_a_status_and_one_line(
    error: BaseException, status: int, pattern: str, capsys: Capture
) -> None:
    def command(_: None) -> None:
        helper.log.info("started")
        raise error

    assert helper.run_command(command, None) == status
    captured = capsys.readouterr()
    assert re.fullmatch(f"error: {pattern}.*\n", captured.err)
    assert captured.out == "started\n"
    with pytest.raises(type(error)):
        helper.run_command(command, None, debug=True)


def test_a_successful_command_has_status_0(capsys: Capture) -> None:
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


def test_no_commit_outside_git(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(helper, "PROJECT_DIR", tmp_path)
    assert helper.read_commit() is None
    monkeypatch.setenv("PATH", str(tmp_path))  # git is not installed
    assert helper.read_commit() is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "3000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "None"),
    ],
)
def test_threads_spin_briefly_unless_told_otherwise(given: dict[str, str], expected: str) -> None:
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    others = {name: value for name, value in os.environ.items() if name not in names}
    code = "import os, helper; print(os.environ.get('GOMP_SPINCOUNT'))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command,
        env=others | given,
        cwd=helper.PROJECT_DIR,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == expected
