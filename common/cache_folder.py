"""Where files that are derived from a data folder are kept, also if it cannot be written."""

import errno
import hashlib
import os
import sys
from pathlib import Path

_APPLICATION = "brain-cancer-mri-classification"
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


def list_cache_folders(data_dir: Path) -> list[Path]:
    """Return the cache folder of a data folder, and the user's one for data that are read-only."""
    path = str(data_dir.resolve()).encode(errors="surrogateescape")
    name = hashlib.blake2s(path, digest_size=8).hexdigest()
    folders = [data_dir / "cache", find_user_cache() / _APPLICATION / name]
    return [folder for folder in folders if folder == folders[0] or folder.is_absolute()]


def find_user_cache() -> Path:
    """Return the folder of the system for caches of this user.

    On Linux, this is XDG_CACHE_HOME, else ~/.cache (XDG Base Directory Specification). It is not
    absolute for a user without a home folder.
    """
    home = Path(os.path.expanduser("~"))  # noqa: PTH111  Path.home raises an error without a home
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    if sys.platform == "darwin":
        return home / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")


def is_read_only(error: OSError) -> bool:
    """Return whether writing failed because the place is read-only or belongs to another user."""
    return error.errno in _READ_ONLY
