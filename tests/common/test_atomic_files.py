"""Atomic files and folders, and locks."""

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from common import atomic_files
from helper import UserError


def test_a_failed_write_keeps_the_old_file_and_leaves_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail() -> None:
        new_folder = atomic_files.new_folder(tmp_path / "folder")
        with new_folder as folder, atomic_files.atomic_path(path) as temporary:
            (folder / "half").touch()
            assert temporary.parent == tmp_path
            assert temporary.suffix == ".txt"
            temporary.write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_successful_write_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    for text in ("one", "two"):
        with atomic_files.atomic_path(path) as temporary:
            temporary.write_text(text)
            inode = temporary.stat().st_ino
            assert not path.exists() or path.read_text() == "one"
        assert path.read_text() == text
        assert path.stat().st_ino == inode  # renamed, not copied
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="no such permissions on Windows")
def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_files.write_text(tmp_path / "file.txt", "text")
    finally:
        assert os.umask(before) == 0o027
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == 0o640


def test_json_has_no_nan_and_no_infinity(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    atomic_files.write_json(path, {"ä": None})
    for value in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            atomic_files.write_json(path, {"a": [0.5, value]})
    assert path.read_bytes() == '{\n  "ä": null\n}\n'.encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_renamed_when_it_is_complete(tmp_path: Path) -> None:
    run_dir = tmp_path / "session" / "first"
    with atomic_files.new_folder(run_dir) as folder:
        (folder / "config.json").write_text("{}")
        assert not run_dir.exists()
    assert [path.name for path in run_dir.iterdir()] == ["config.json"]
    assert list(run_dir.parent.iterdir()) == [run_dir]
    words = f"--resume {run_dir}.*--name"
    with pytest.raises(UserError, match=words), atomic_files.new_folder(run_dir):
        pass


def test_two_programs_cannot_create_the_same_folder(tmp_path: Path) -> None:
    run_dir = tmp_path / "first"

    def create_both() -> None:
        with atomic_files.new_folder(run_dir) as folder:
            (folder / "mine").touch()
            with atomic_files.new_folder(run_dir) as other:
                (other / "theirs").touch()

    with pytest.raises(UserError, match="first exists"):
        create_both()
    assert [path.name for path in run_dir.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [run_dir]


def test_unfinished_files_are_deleted(tmp_path: Path) -> None:
    for name in (".part-abc.pt", ".part-abc.npz", "last.pt"):
        (tmp_path / name).touch()
    (tmp_path / ".part-dir.pt" / "inside").mkdir(parents=True)
    atomic_files.clear_unfinished(tmp_path, ".pt")
    assert {path.name for path in tmp_path.iterdir()} == {".part-abc.npz", "last.pt"}
    atomic_files.clear_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_files_are_flushed_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_second_program_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    order: list[str] = []

    def wait_for_lock() -> None:
        with atomic_files.lock(tmp_path):
            order.append("second")

    with atomic_files.lock(tmp_path):
        other = threading.Thread(target=wait_for_lock)
        other.start()
        while "waiting for another program" not in caplog.text:
            time.sleep(0.01)
        order.append("first")
    other.join()
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == []


def test_a_deleted_lock_file_still_excludes_the_third_program(tmp_path: Path) -> None:
    holds, ends = threading.Event(), threading.Event()

    def hold() -> None:
        with atomic_files.lock(tmp_path):
            holds.set()
            ends.wait()

    with atomic_files.lock(tmp_path):
        other = threading.Thread(target=hold)
        other.start()
        time.sleep(0.1)  # it waits
    assert holds.wait(10)
    with pytest.raises(UserError, match="busy"), atomic_files.lock(tmp_path, "busy"):
        pass
    ends.set()
    other.join()


def test_a_lock_on_a_file_deleted_meanwhile_is_none(tmp_path: Path) -> None:
    path, opened, handles = tmp_path / atomic_files.LOCK, os.open, []

    def open_and_delete(*arguments: Any) -> int:
        handle = opened(*arguments)
        handles.append(handle)
        path.unlink()  # by a program that ends its lock at this moment
        return handle

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", open_and_delete)
        assert atomic_files._open_locked(path) is None
    assert not path.exists()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handles[0])


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_other_users_of_the_folder_can_lock_it(tmp_path: Path) -> None:
    mask = os.umask(0o077)
    try:
        with atomic_files.lock(tmp_path):
            assert (tmp_path / atomic_files.LOCK).stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(mask)


def test_a_lock_file_that_cannot_be_deleted_is_unlocked(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        unlink = Mock(side_effect=OSError(errno.EROFS, "Read-only file system"))
        patch.setattr(Path, "unlink", unlink)
        with atomic_files.lock(tmp_path):
            pass
    assert unlink.called
    with atomic_files.lock(tmp_path, "busy"):
        pass


LOCK_AND_SLEEP = """
import sys, time
from pathlib import Path
from common import atomic_files
with atomic_files.lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.mark.integration
def test_a_lock_ends_when_its_program_is_killed(tmp_path: Path) -> None:
    root = Path(atomic_files.__file__).parents[1]
    command = [sys.executable, "-c", LOCK_AND_SLEEP, str(tmp_path)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="busy"), atomic_files.lock(tmp_path, "busy"):
            pass
        other.kill()
        other.wait()
    with atomic_files.lock(tmp_path, "busy"):
        pass
    assert list(tmp_path.iterdir()) == []
