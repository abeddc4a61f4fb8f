"""Files and folders that are complete or absent, whenever the program or the machine ends.

What is under way has a hidden name that begins with UNFINISHED. Standard library alone, but for
locks, whose library is imported when one is taken.
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helper import UserError, describe_error, log

UNFINISHED = ".part-"
LOCK = ".lock"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; at a clean end flush it to disk and rename it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=UNFINISHED, suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp makes files that only their owner may read
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        if error.filename in (None, name) and error.errno is not None:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 with plain line ends, complete or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; NaN and infinity are refused, for JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; at a clean end it gets that name, with all it holds.

    Raises:
        UserError: There is one already: two that are made at once never share a folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        raise _describe_clash(path)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=UNFINISHED))
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o777 & ~mask)
        try:
            temporary.rename(path)
        except OSError as error:
            if path.exists():
                raise _describe_clash(path) from error
            raise
        _flush_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _describe_clash(path: Path) -> UserError:
    return UserError(f"{path} exists; go on with it by --resume {path}, or choose another --name")


@contextlib.contextmanager
def lock(folder: Path, taken: str = "") -> Iterator[None]:
    """Be the only program that does something in a folder; the system gives it back at a kill.

    Args:
        folder: It gets a file of the name LOCK.
        taken: What to say where another program holds it; "": wait until that has ended.

    Raises:
        UserError: Another program holds it, and is not waited for.
    """
    from filelock import FileLock, Timeout

    held = FileLock(folder / LOCK, timeout=0, mode=0o666)  # of whoever shares the folder
    try:
        held.acquire()
    except Timeout:
        if taken:
            raise UserError(taken) from None
        log.info("%s: waiting for another program that is at work there", folder)
        held.acquire(timeout=-1)
    try:
        yield
    finally:
        if taken:  # nobody waits for it
            (folder / LOCK).unlink(missing_ok=True)
        held.release()


def flush_all() -> None:
    """Let everything that was written so far outlive a loss of power, where the system can."""
    getattr(os, "sync", lambda: None)()


def clear_unfinished(folder: Path, suffix: str = "") -> None:
    """Delete what a killed program has left half-written where nobody else writes such files."""
    for path in folder.glob(f"{UNFINISHED}*{suffix}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def advise(error: OSError) -> str:
    """What to do about an error of the system's while a file is written or read."""
    is_full = error.errno in {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
    return f"{describe_error(error)}; {'make room' if is_full else 'mend that'}, and go on"


def _flush_folder(folder: Path) -> None:
    """Let a rename outlive a loss of power; not every system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
