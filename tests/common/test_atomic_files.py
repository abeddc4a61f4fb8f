"""Files and folders that are complete or absent, and are written by one program at a time."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import atomic_files
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
        with atomic_files.atomic_path(path) as temporary:
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
        with atomic_files.atomic_path(path) as temporary:
            temporary.write_text(text)
            number = temporary.stat().st_ino
            assert not path.exists() or path.read_text() == "one"
        assert path.read_text() == text
        assert path.stat().st_ino == number  # renamed: a copy could be cut short
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.usefixtures("umask_027")
def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    atomic_files.write_text(tmp_path / "file.txt", "text")
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == 0o640
    assert os.umask(0o027) == 0o027  # and the umask is as it was


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_refuses_what_is_no_number(value: float, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    atomic_files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        atomic_files.write_json(path, {"a": [0.5, value]})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_utf8_with_plain_line_ends(tmp_path: Path) -> None:
    atomic_files.write_json(tmp_path / "file.json", {"ä": None})
    assert (tmp_path / "file.json").read_bytes() == '{\n  "ä": null\n}\n'.encode()


def test_a_folder_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    run_dir = tmp_path / "session" / "first"
    with atomic_files.new_folder(run_dir) as folder:
        (folder / "config.json").write_text("{}")
        assert not run_dir.exists()
    assert [path.name for path in run_dir.iterdir()] == ["config.json"]
    assert list(run_dir.parent.iterdir()) == [run_dir]
    with (
        pytest.raises(UserError, match=f"--resume {run_dir}") as caught,
        atomic_files.new_folder(run_dir),
    ):
        pass
    assert caught.value.status == 1
    assert "--name" in str(caught.value)


def test_two_folders_of_one_name_are_never_one(tmp_path: Path) -> None:
    run_dir = tmp_path / "first"

    def make_both() -> None:
        with atomic_files.new_folder(run_dir) as folder:
            (folder / "mine").touch()
            with atomic_files.new_folder(run_dir) as other:
                (other / "theirs").touch()

    with pytest.raises(UserError, match="first exists"):
        make_both()
    assert [path.name for path in run_dir.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [run_dir]


def test_a_folder_that_fails_is_not_there(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_files.new_folder(tmp_path / "first") as folder:
            (folder / "half").touch()
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_program_left_is_cleared_away(tmp_path: Path) -> None:
    for name in (
        f"{atomic_files.UNFINISHED}abc.pt",
        f"{atomic_files.UNFINISHED}abc.npz",
        "last.pt",
    ):
        (tmp_path / name).touch()
    (tmp_path / f"{atomic_files.UNFINISHED}dir.pt" / "inside").mkdir(parents=True)
    atomic_files.clear_unfinished(tmp_path, ".pt")
    assert {path.name for path in tmp_path.iterdir()} == {".part-abc.npz", "last.pt"}
    atomic_files.clear_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_content_and_name_are_flushed_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool]] = []
    path, flush = tmp_path / "file.txt", os.fsync

    def watch(handle: int) -> None:
        seen.append((Path(f"/proc/self/fd/{handle}").is_dir(), path.exists()))
        flush(handle)

    monkeypatch.setattr(os, "fsync", watch)
    atomic_files.write_text(path, "text")
    if Path("/proc/self/fd").exists():
        assert seen == [(False, False), (True, True)]
    assert len(seen) == 2


def test_who_comes_second_waits_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    order: list[str] = []

    def be_second() -> None:
        with atomic_files.lock(tmp_path):
            order.append("second")

    with atomic_files.lock(tmp_path):
        other = threading.Thread(target=be_second)
        other.start()
        while "waiting for another program" not in caplog.text:
            time.sleep(0.01)
        order.append("first")
    other.join()
    assert order == ["first", "second"]


HOLD = """
import sys, time
from pathlib import Path
import files
with files.lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_by_one_program_and_free_when_that_is_killed(tmp_path: Path) -> None:
    root = Path(atomic_files.__file__).parents[1]
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="taken"), atomic_files.lock(tmp_path, "taken"):
            pass
        other.kill()
        other.wait()
    with atomic_files.lock(tmp_path, "taken"):
        pass
    assert list(tmp_path.iterdir()) == []
