"""The checkpoints of a run: best.pt, or those of all folds of a run with --folds."""

import json
from pathlib import Path
from typing import Any

from common.portable_names import quote
from helper import UserError, first_line
from modeling import checkpoint as checkpoints


def is_run(path: Path) -> bool:
    """Return whether a path is the folder of a run."""
    return (path / "config.json").is_file()


def is_folds(path: Path) -> bool:
    """Return whether a path is the folder of a run with --folds.

    Raises:
        UserError: Its config.json is damaged.
    """
    return is_run(path) and _count_folds(path) > 0


def list_checkpoints(path: Path) -> list[Path]:
    """Return the checkpoints that a user names by best.pt or by the folder of a run.

    Args:
        path: best.pt, session/RUN, or session/RUN of a run with --folds.

    Raises:
        UserError: A fold is missing or has not finished an epoch, or config.json is damaged.
    """
    if not is_run(path):
        return [path]
    n_folds = _count_folds(path)
    folders = [path / f"fold_{fold}" for fold in range(1, n_folds + 1)] or [path]
    paths = [folder / "best.pt" for folder in folders]
    for each in paths:
        if not each.is_file():
            raise UserError(
                f"{each} is missing; continue with python main.py --resume {quote(path)}"
            )
    return paths


def _count_folds(run_dir: Path) -> int:
    """Return the folds of a run; 0 for a run of one network."""
    path = run_dir / "config.json"
    try:
        return int(json.loads(path.read_text("utf-8"))["data"].get("folds") or 0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not the options of a run ({type(error).__name__}: {first_line(error)}); name "
            "its best.pt, or start a new run"
        ) from error


def load_best(path: Path) -> dict[str, Any]:
    """Read a checkpoint with a finished epoch.

    Raises:
        UserError: As `checkpoint.load_run`, or no epoch is finished.
    """
    checkpoint = checkpoints.load_run(path)
    if not checkpoint["best"]:
        raise UserError(
            f"{path}: no epoch is finished; continue with "
            f"python main.py --resume {quote(path.parent)}"
        )
    return checkpoint


def check_classes(paths: list[Path], loaded: list[dict[str, Any]]) -> None:
    """Check that networks of an ensemble have the same classes in the same order.

    Raises:
        UserError: They differ.
    """
    for path, checkpoint in zip(paths, loaded, strict=True):
        if checkpoint["classes"] != loaded[0]["classes"]:
            first, other = (", ".join(each["classes"]) for each in (loaded[0], checkpoint))
            raise UserError(
                f"{path} has the classes {other}, {paths[0]} has {first}; give checkpoints of the "
                "same classes"
            )


def check_ranges(paths: list[Path], loaded: list[dict[str, Any]]) -> None:
    """Check that networks of an ensemble read an image with the same brightness.

    Raises:
        UserError: They scale values without a declared bit depth differently.
    """
    known: dict[str, tuple[Path, Any]] = {}
    for path, checkpoint in zip(paths, loaded, strict=True):
        for kind, ends in checkpoint["preprocess"]["value_ranges"].items():
            first, expected = known.setdefault(kind, (path, ends))
            if ends != expected:
                raise UserError(
                    f"{path} scales {kind} without a declared bit depth by {ends}, {first} by "
                    f"{expected}; predict with one at a time, or train both on one data folder"
                )
