"""Paths that a run recorded, found again from any current folder.

A run is in session/RUN of the folder in which it was started, its base. Its relative paths are
those of the base, so they hold if the command is given elsewhere or the base is moved.
"""

import os
from pathlib import Path

SESSION_DIR = Path("session")
RESULTS_DIR = Path("results")


def find_base(path: Path) -> Path | None:
    """Return the folder that holds session/, for a run, one of its folds, or a file in them.

    None if the run is not below a folder called session, for example if best.pt was copied.
    """
    parents = _make_absolute(path).parents
    for parent in parents[:3]:  # best.pt, its fold, RUN
        if parent.name == SESSION_DIR.name:
            return parent.parent
    return None


def locate(recorded: Path, run: Path) -> Path:
    """Return where a recorded path is now.

    Args:
        recorded: As the run stored it; a relative one is looked for in the base of the run first.
        run: The folder of the run, or a file in it.

    Returns:
        `recorded`, if the current folder is the base, or if the base does not hold it.
    """
    base = find_base(run)
    if recorded.is_absolute() or base is None or base == Path.cwd():
        return recorded
    there = base / recorded
    return Path(os.path.normpath(there)) if there.exists() else recorded


def store(path: Path, run: Path) -> Path:
    """Return the form in which a run records a path: relative to its base if it is inside."""
    base = find_base(run)
    return path if base is None else make_relative(path, base)


def make_relative(path: Path, base: Path) -> Path:
    """Return a path relative to a folder if it is inside, else from the root.

    A path that holds in that folder as it is, because it is the current one, is not changed.
    """
    whole, base = _make_absolute(path), _make_absolute(base)
    if whole.is_relative_to(base):
        return whole.relative_to(base)
    return path if base == Path.cwd() else whole


def choose_results_dir(path: Path) -> Path:
    """Return the folder of results: beside session/ of an existing run, else of this folder."""
    base = find_base(path)
    return RESULTS_DIR if base in (None, Path.cwd()) else base / RESULTS_DIR


def _make_absolute(path: Path) -> Path:
    """Return the path from the root; links are kept, because a run may be one."""
    return Path(os.path.normpath(path.absolute()))
