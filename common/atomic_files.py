"""Write files and folders that are complete or absent, also after a crash or power loss.

Unfinished files have a hidden name that begins with UNFINISHED. Imports the standard library only.
"""

import contextlib
import errno
import importlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.portable_names import quote
from helper import UserError, describe_error, log

UNFINISHED = ".part-"
LOCK = ".lock"
POLL_S = 0.05  # between two attempts to get a lock


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush the file to disk and rename it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=UNFINISHED, suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        _apply_umask(temporary, 0o666)  # mkstemp lets only the owner read the file
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        if error.filename in (None, name) and error.errno is not None:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically as UTF-8 with \\n line ends."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON.

    Raises:
        ValueError: It contains NaN or infinity, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success rename it to `path`.

    Raises:
        UserError: `path` exists, also when another program created it in the meantime.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    check_absent(path)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=UNFINISHED))
    try:
        yield temporary
        _apply_umask(temporary, 0o777)
        try:
            temporary.rename(path)
        except OSError:
            check_absent(path)
            raise
        _flush_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def lock(folder: Path, busy_message: str = "") -> Iterator[None]:
    """Hold an exclusive lock on a folder; the system releases it if the program is killed.

    Args:
        folder: The lock file LOCK is created here, and deleted at the end.
        busy_message: Error message if another program holds the lock; "": wait for it instead.

    Raises:
        UserError: Another program holds the lock and `busy_message` is not empty.
    """
    path, is_waiting = folder / LOCK, False
    while (handle := _open_locked(path)) is None:
        if busy_message:
            raise UserError(busy_message)
        if not is_waiting:
            log.info("%s: waiting for another program that uses this folder", folder)
        is_waiting = True
        time.sleep(POLL_S)
    try:
        yield
    finally:
        _delete_locked(path, handle)


def _open_locked(path: Path) -> int | None:
    """Open and lock a file; None if another program holds it, or has deleted it since."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    handle = os.open(path, flags, 0o666)
    is_ours = False
    try:
        with contextlib.suppress(BlockingIOError, PermissionError):  # of POSIX, of Windows
            _set_lock(handle, True)
            is_ours = os.fstat(handle).st_nlink > 0
    finally:
        if not is_ours:
            os.close(handle)
    return handle if is_ours else None


def _delete_locked(path: Path, handle: int) -> None:
    """Delete a locked file and release its lock.

    POSIX deletes an open file. It must be done under the lock: later it could be the file of
    another program. Windows deletes a file only after it is closed, and only if no other program
    has opened it.
    """
    is_refused = False
    try:
        path.unlink(missing_ok=True)
    except OSError:  # on Windows, or on a disk that has become read-only
        is_refused = True
    _set_lock(handle, False)
    os.close(handle)
    if is_refused:
        with contextlib.suppress(OSError):
            path.unlink()


def _set_lock(handle: int, locked: bool) -> None:
    """Lock an open file without waiting, or unlock it."""
    try:
        import fcntl
    except ImportError:
        msvcrt: Any = importlib.import_module("msvcrt")
        msvcrt.locking(handle, msvcrt.LK_NBLCK if locked else msvcrt.LK_UNLCK, 1)
    else:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB if locked else fcntl.LOCK_UN)
        if locked:
            with contextlib.suppress(PermissionError):  # the file of another user
                os.fchmod(handle, 0o666)  # for all users of the folder, also if it remains


def flush_all() -> None:
    """Flush all written files to disk, on systems that support it."""
    getattr(os, "sync", lambda: None)()


def clear_unfinished(folder: Path, suffix: str = "") -> None:
    """Delete unfinished files of killed programs; call it while no other program writes there."""
    for path in folder.glob(f"{UNFINISHED}*{suffix}"):
        delete(path)


def delete(path: Path) -> None:
    """Delete a file, or a folder with its content."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def describe_os_error(error: OSError) -> str:
    """Return one line: the file, the reason, and what the user must do before continuing."""
    is_full = error.errno in {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
    return f"{describe_error(error)}; {'free disk space' if is_full else 'fix that'}, and continue"


def check_absent(path: Path) -> None:
    """Raise a UserError if the folder of a run exists."""
    if path.exists():
        raise UserError(
            f"{path} exists; continue it with --resume {quote(path)}, or choose another --name"
        )


def _apply_umask(path: Path, mode: int) -> None:
    """Give a temporary file or folder the permissions that an ordinary one would have."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(mode & ~mask)


def _flush_folder(folder: Path) -> None:
    """Flush a rename to disk, on systems that support it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
