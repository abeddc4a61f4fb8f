"""The folder of a run, session/RUN: create, lock, read its options, mark it as failed."""

import contextlib
import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helper
from args import TrainConfig
from common import atomic_files
from helper import UserError, first_line, log
from training import distributed

FAILED = "failed.txt"  # in the folder of a run with nothing to continue


def create_run_dir(config: TrainConfig, run_dir: Path) -> None:
    """Create the folder of a run with its config.json; it replaces one of a failed run.

    Raises:
        UserError: The folder exists, and its run can be continued.
    """
    if not distributed.is_main_process():
        return
    if (run_dir / FAILED).exists():
        with lock_run(run_dir):
            # under the lock, because another program may have used the name since
            if (run_dir / FAILED).exists():
                log.info("%s: replacing a run that failed before its first epoch ended", run_dir)
                _replace_failed(config, run_dir)
                return
    with atomic_files.new_folder(run_dir) as folder:
        atomic_files.write_json(folder / "config.json", config.to_dict())


def _replace_failed(config: TrainConfig, run_dir: Path) -> None:
    """Replace the content of a folder by a new config.json; FAILED and the lock are kept longest.

    The folder itself is kept, because Windows deletes or renames none with a locked file.
    """
    atomic_files.write_json(run_dir / "config.json", config.to_dict())
    for path in run_dir.iterdir():
        if path.name not in {"config.json", FAILED, atomic_files.LOCK}:
            atomic_files.delete(path)
    (run_dir / FAILED).unlink()


def mark_failed(run_dir: Path, error: BaseException) -> None:
    """Mark a run with nothing to continue, so that its name can be used again."""
    line = f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S} {helper.describe_error(error)}\n"
    with contextlib.suppress(OSError):  # `error` matters more, which may be the same full disk
        atomic_files.write_text(run_dir / FAILED, line)
        log.info("%s is kept until its name is used again, with the error in %s", run_dir, FAILED)


@contextlib.contextmanager
def lock_run(run_dir: Path) -> Iterator[None]:
    """Lock a run against other programs and delete files that a killed one left unfinished.

    Raises:
        UserError: Another program trains this run.
    """
    if not distributed.is_main_process():
        yield
        return
    with atomic_files.lock(run_dir, f"{run_dir}: another program trains this run; wait for it"):
        atomic_files.clear_unfinished(run_dir)
        yield


def read_config(path: Path) -> TrainConfig:
    """Read config.json of a run.

    Raises:
        UserError: It is not JSON, or not from this version.
    """
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({first_line(error)})") from error
    return parse_config(values, path)


def parse_config(values: Any, path: Path) -> TrainConfig:
    """Convert the options that `TrainConfig.to_dict` wrote into a file."""
    try:
        return TrainConfig.from_dict(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: not the options of a run of this version ({type(error).__name__}: "
            f"{first_line(error)}); start a new run"
        ) from error


def is_fold(run_dir: Path) -> bool:
    """Return whether a run is one of a cross-validation: its splits are in the folder above."""
    return (run_dir.parent / "config.json").is_file()
