"""Windows' file rules on Linux: what Windows refuses raises the error that it raises there.

Emulated below one folder, for this process alone:

- A file that is open or mapped into memory, by whatever library, cannot be deleted, renamed or
  replaced, nor can the folder that holds it or the working folder. Mapped files are not truncated.
- `os.rename` does not replace. A read-only file is not deleted or replaced. A folder is not opened.
  Symbolic links are refused. Paths of 260 characters and more (248 for folders) are not found.
- Names with `< > : " | ? *` or control characters, reserved names (CON, NUL, COM1 …) and names that
  end in a dot or blank are refused, and so is a new name that differs from another by case alone:
  Windows would overwrite that file.
- The program finds none of the functions, signals and modules that Windows lacks; libraries, which
  believe that they run on Linux, still do. It finds `msvcrt.locking`, and the `os.linesep` of
  Windows.

Not emulated: `os.name` and `sys.platform`, spawned processes, reading by a name of other case,
drive letters, mandatory byte locks, and code pages, which other tests cover.
"""

import builtins
import contextlib
import errno
import fcntl
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest

from tests.support.builders import ROOT

MAX_PATH, MAX_FOLDER_PATH = 260, 248
FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f\\]|[. ]$')
RESERVED = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE
)
MISSING: dict[ModuleType, tuple[str, ...]] = {
    os: (
        *("fork", "forkpty", "sync", "sched_getaffinity", "sched_setaffinity", "killpg", "setsid"),
        *("getuid", "geteuid", "getgid", "getegid", "getpgid", "chown", "mkfifo", "nice", "uname"),
        *("statvfs", "sysconf", "getloadavg", "pread", "pwrite", "fchmod", "O_DIRECTORY"),
    ),
    signal: (
        *("SIGKILL", "SIGHUP", "SIGQUIT", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGCHLD"),
        *("alarm", "setitimer", "pause", "pthread_sigmask", "pthread_kill", "sigwait"),
    ),
}
MISSING_MODULES = {"fcntl", "grp", "posix", "pwd", "resource", "termios"}

_root: Path | None = None  # the folder where the rules hold; None while they do not
_state = threading.local()
_is_installed = False


@contextlib.contextmanager
def windows_rules(root: Path) -> Iterator[None]:
    """Hold Windows' rules below a folder."""
    global _root, _is_installed
    if not _is_installed:
        sys.addaudithook(_audit)  # cannot be removed
        _is_installed = True
    with pytest.MonkeyPatch.context() as patch:
        for module, names in MISSING.items():
            _hide(patch, module, names)
        patch.setattr(builtins, "__import__", _import)
        patch.setattr(os, "rename", _rename)
        patch.setattr(os, "linesep", "\r\n")
        patch.setattr(shutil, "_use_fd_functions", False)
        patch.setattr(tempfile, "TemporaryFile", tempfile.NamedTemporaryFile)
        patch.setitem(sys.modules, "msvcrt", _build_msvcrt())
        _root = root.resolve()
        try:
            yield
        finally:
            _root = None


# ---- what the program has


def _build_msvcrt() -> ModuleType:
    """Return a module with `locking`, which locks the whole file instead of some bytes."""
    module = ModuleType("msvcrt")
    kinds = {1: fcntl.LOCK_EX | fcntl.LOCK_NB, 0: fcntl.LOCK_UN}

    def locking(handle: int, kind: int, _n_bytes: int) -> None:
        try:
            fcntl.flock(handle, kinds[kind])
        except BlockingIOError as error:
            raise PermissionError(errno.EACCES, "Permission denied") from error

    module.__dict__.update(locking=locking, LK_UNLCK=0, LK_NBLCK=1)
    return module


# ---- what the program lacks


def _is_program(path: str) -> bool:
    """Return whether a source file belongs to the program, not to tests or packages."""
    if not Path(path).is_relative_to(ROOT):
        return False
    return not Path(path).relative_to(ROOT).parts[0].startswith(("tests", "."))


def _hide(patch: pytest.MonkeyPatch, module: ModuleType, names: tuple[str, ...]) -> None:
    """Take attributes of a module out of the program's sight."""
    real = {name: getattr(module, name) for name in names if hasattr(module, name)}

    def find(name: str) -> Any:
        caller: FrameType = sys._getframe(1)
        if name not in real or _is_program(caller.f_code.co_filename):
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r} on Windows")
        return real[name]

    for name in real:
        patch.delattr(module, name)
    patch.setattr(module, "__getattr__", find, raising=False)


_real_import = builtins.__import__


def _import(name: str, globals: Any = None, *rest: Any, **others: Any) -> ModuleType:
    if name in MISSING_MODULES and _is_program((globals or {}).get("__file__") or ""):
        raise ModuleNotFoundError(f"No module named {name!r} on Windows")
    return _real_import(name, globals, *rest, **others)


_real_rename = os.rename


def _rename(source: Any, target: Any, **options: Any) -> None:
    if _is_below(_absolute(target)) and os.path.lexists(target):
        raise FileExistsError(
            errno.EEXIST, "Cannot create a file that exists", source, None, target
        )
    _real_rename(source, target, **options)


# ---- what file calls refuse


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Check a call of Python's before it is made; raising prevents it."""
    check = CHECKS.get(event)
    if _root is None or check is None or getattr(_state, "is_checking", False):
        return
    _state.is_checking = True
    try:
        check(*arguments)
    finally:
        _state.is_checking = False


def _check_open(path: Any, _mode: Any, flags: int) -> None:
    if isinstance(path, int) or not _is_below(found := _absolute(path)):
        return
    _check_name(found, MAX_PATH)
    # tempfile names a folder and opens a file in it by an opener
    if found.is_dir() and sys._getframe(2).f_code.co_filename != tempfile.__file__:
        raise PermissionError(errno.EACCES, "Permission denied", str(found))
    if flags & os.O_CREAT:
        _check_case(found)
    if flags & os.O_TRUNC and found in _list_mapped():
        raise OSError(errno.EINVAL, "The file has a user-mapped section open", str(found))


def _check_remove(path: Any, folder: int = -1) -> None:
    if _is_below(found := _absolute(path, folder)):
        _check_unused(found)


def _check_rename(source: Any, target: Any, source_folder: int, target_folder: int) -> None:
    found, goal = _absolute(source, source_folder), _absolute(target, target_folder)
    if _is_below(found):
        _check_unused(found)
    if _is_below(goal):
        _check_name(goal, MAX_FOLDER_PATH if found.is_dir() else MAX_PATH)
        _check_case(goal)
        if goal.is_dir():
            raise PermissionError(errno.EACCES, "Access is denied", str(goal))
        _check_unused(goal)


def _check_mkdir(path: Any, _mode: int, folder: int = -1) -> None:
    if _is_below(found := _absolute(path, folder)):
        _check_name(found, MAX_FOLDER_PATH)
        _check_case(found)


def _check_symlink(_source: Any, target: Any, folder: int = -1) -> None:
    if _is_below(found := _absolute(target, folder)):
        raise OSError(errno.EINVAL, "A required privilege is not held by the client", str(found))


CHECKS: dict[str, Callable[..., None]] = {
    "open": _check_open,
    "os.remove": _check_remove,
    "os.rename": _check_rename,
    "os.rmdir": _check_remove,
    "os.mkdir": _check_mkdir,
    "os.symlink": _check_symlink,
}


def _absolute(path: Any, folder: int = -1) -> Path:
    """Return an absolute path; `folder` is an open folder that it may be relative to, or -1."""
    start = Path(f"/proc/self/fd/{folder}").readlink() if folder >= 0 else Path()
    found = (start / os.fsdecode(path)).absolute()
    return found.parent.resolve() / found.name  # a link itself, not its target


def _is_below(path: Path) -> bool:
    return _root is not None and _root in path.parents


def _check_name(path: Path, limit: int) -> None:
    assert _root is not None
    for part in path.relative_to(_root).parts:
        if FORBIDDEN.search(part) or RESERVED.fullmatch(part):
            raise OSError(errno.EINVAL, "The filename or directory name is incorrect", str(path))
    if len(str(path)) >= limit:
        raise FileNotFoundError(errno.ENOENT, "The system cannot find the path", str(path))


def _check_case(path: Path) -> None:
    """Refuse a new name that differs from another one by case alone."""
    if os.path.lexists(path) or not path.parent.is_dir():
        return
    for other in path.parent.iterdir():
        if other.name.casefold() == path.name.casefold():
            raise FileExistsError(errno.EEXIST, f"It would overwrite {other.name}", str(path))


def _check_unused(path: Path) -> None:
    """Refuse to change a file or folder that this process uses, or a read-only file."""
    used = {*_list_open(), *_list_mapped(), Path.cwd()}
    if any(path in (name, *name.parents) for name in used):
        error = PermissionError(errno.EACCES, "The file is used by another process", str(path))
        error.winerror = 32  # type: ignore[attr-defined]
        raise error
    if path.is_file() and not path.stat().st_mode & stat.S_IWUSR:
        raise PermissionError(errno.EACCES, "Access is denied", str(path))


def _list_open() -> set[Path]:
    """Return the files that this process has open; folders are not among them."""
    found = set()
    for handle in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed in the meantime
            found.add(handle.readlink())
    return {path for path in found if path.is_file()}


def _list_mapped() -> set[Path]:
    """Return the files that are mapped into the memory of this process."""
    maps = Path("/proc/self/maps").read_text("utf-8", "surrogateescape")
    rows = (line.split(maxsplit=5) for line in maps.splitlines())
    return {Path(row[5]) for row in rows if len(row) == 6 and row[5].startswith(f"{_root}/")}
