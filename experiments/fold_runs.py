"""Runs of main.py that are trained once: finished ones are reused, stopped ones resumed."""

from collections.abc import Sequence
from pathlib import Path

import main as training
from common.run_paths import RESULTS_DIR, SESSION_DIR

FOLDS = 5


def is_finished(name: str) -> bool:
    """Return whether a run is trained and evaluated."""
    return (RESULTS_DIR / name / "metrics.json").exists()  # written last


def train_folds(name: str, data_dir: Path, options: Sequence[str]) -> Path:
    """Train and evaluate a run with --folds unless it is finished; return its folder of results.

    Args:
        name: Name of the run.
        data_dir: Prepared folder.
        options: Other options of main.py.

    Raises:
        SystemExit: Training failed; main.py has said why.
    """
    return train_run(name, ["--data", str(data_dir), "--folds", str(FOLDS), *options])


def train_run(name: str, options: Sequence[str]) -> Path:
    """Train and evaluate a run unless it is finished; return its folder of results.

    Raises:
        SystemExit: Training failed; main.py has said why.
    """
    run_dir = SESSION_DIR / name
    command = ["--name", name, *options]
    if run_dir.exists():
        command = ["--resume", str(run_dir)]
    if not is_finished(name) and training.main(command) != 0:
        raise SystemExit(1)
    return RESULTS_DIR / name
