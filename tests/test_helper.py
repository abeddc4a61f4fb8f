"""Errors and their exit statuses, seeds, devices, run folders, files complete or not at all."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import helper
from helper import UserError


@pytest.fixture
def umask_027() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail() -> None:
        with helper.atomic_path(path) as temporary:
            assert temporary.parent == tmp_path
            assert temporary.suffix == ".txt"
            temporary.write_text("half of the n")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_clean_end_replaces_the_file_in_folders_made_for_it(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    for text in ("one", "two"):
        with helper.atomic_path(path) as temporary:
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "one"
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.usefixtures("umask_027")
def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    helper.write_text(tmp_path / "file.txt", "text")
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == 0o640
    assert os.umask(0o027) == 0o027  # and the umask is as it was


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_refuses_what_is_no_number(value: float, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    helper.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        helper.write_json(path, {"a": [0.5, value]})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_utf8_with_plain_line_ends(tmp_path: Path) -> None:
    helper.write_json(tmp_path / "file.json", {"ä": None})
    assert (tmp_path / "file.json").read_bytes() == '{\n  "ä": null\n}\n'.encode()


def test_seed_depends_on_every_part() -> None:
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


def test_steps_of_a_long_run_have_seeds_of_their_own() -> None:
    seeds = {helper.derive_seed(0, "step", step) for step in range(0, 200_000, 37)}
    assert len(seeds) == len(range(0, 200_000, 37))


def test_generators_and_global_seed_follow_the_purpose() -> None:
    def draw(seed: int, *purpose: int | str) -> list[float]:
        return torch.rand(3, generator=helper.build_generator(seed, *purpose)).tolist()

    assert draw(0, "a", 1) == draw(0, "a", 1)
    assert draw(0, "a", 1) != draw(0, "a", 2)
    helper.seed_everything(3, "weights")
    first = torch.rand(3)
    helper.seed_everything(3, "weights")
    assert torch.equal(torch.rand(3), first)


def test_a_run_folder_is_made_once(tmp_path: Path) -> None:
    run_dir = helper.create_run_dir(tmp_path / "session", "first")
    assert run_dir == tmp_path / "session" / "first"
    assert run_dir.is_dir()
    with pytest.raises(UserError, match=f"--resume {run_dir}") as caught:
        helper.create_run_dir(tmp_path / "session", "first")
    assert caught.value.status == 1
    assert "--name" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("what, where, what to do"), 1, "error: what, where, what to do"),
        (UserError("wrong option", status=2), 2, "error: wrong option"),
        (FileNotFoundError(2, "No such file", "a.csv"), 1, "error: a.csv: No such file"),
        (OSError("disk on fire"), 1, "error: disk on fire"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (ValueError("one\ntwo"), 1, "error: ValueError: one (run again with --debug to see where)"),
        (ValueError(), 1, "error: ValueError: ValueError (run again with --debug to see where)"),
    ],
)
def test_a_verb_ends_with_a_status_and_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def verb(_: None) -> None:
        helper.log.info("begun")
        raise error

    assert helper.run_verb(verb, None) == status
    captured = capsys.readouterr()
    assert captured.err == line + "\n"
    assert captured.out == "begun\n"
    with pytest.raises(type(error)):
        helper.run_verb(verb, None, debug=True)


def test_a_verb_that_ends_well_has_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[str] = []
    assert helper.run_verb(seen.append, "config") == 0
    assert seen == ["config"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["nonsense", "", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"--device .*--device cpu") as caught:
        helper.resolve_device(name)
    assert "\n" not in str(caught.value)


def test_devices() -> None:
    assert helper.resolve_device("cpu") == torch.device("cpu")
    auto = helper.resolve_device("auto")
    assert (auto.type == "cuda") == torch.cuda.is_available()
    assert torch.zeros(1, device=auto).sum() == 0


def test_threads() -> None:
    before = torch.get_num_threads()
    assert helper.set_threads(0) == before
    try:
        assert helper.set_threads(2) == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_environment_is_plain_and_names_the_command() -> None:
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
    monkeypatch.setenv("PATH", str(tmp_path))  # nor where git is not installed
    assert helper.read_commit() is None


def test_seeds_are_numpys_of_any_platform() -> None:
    """A change here would let resumed runs of an older version go another way."""
    words = [0, int.from_bytes(b"order", "little"), int.from_bytes(b"3", "little")]
    state = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
    assert helper.derive_seed(0, "order", 3) == state >> 1
