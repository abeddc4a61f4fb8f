"""Cross-validation: one run per fold in session/RUN/fold_1..K, which can be stopped and resumed.

When the last fold has ended, the calibration of their ensemble is fitted.
"""

import dataclasses
import shutil
from pathlib import Path

import pandas as pd
import torch

import dataset
from args import TrainConfig
from common import atomic_files
from common.portable_names import quote
from helper import UserError, log
from preparation import integrity
from runs import lifecycle, run_folder
from runs.ensemble import fit_ensemble
from runs.extension import Changes, check_data_dir, locate_paths
from runs.lifecycle import UNCHANGED
from runs.training_features import save_training_features
from training import distributed


def is_cross_validation(run_dir: Path) -> bool:
    """Return whether a folder is a run with `--folds`.

    Raises:
        UserError: Its config.json is damaged.
    """
    path = run_dir / "config.json"
    if not path.is_file() or (run_dir / "last.pt").exists():
        return False
    return run_folder.read_config(path).data.folds is not None


def start_folds(config: TrainConfig, run_dir: Path, device: torch.device) -> None:
    """Create the folder of a cross-validation and train every fold.

    Args:
        config: All options of the run.
        run_dir: Folder to create, session/RUN.
        device: Training device.

    Raises:
        UserError: The slices are missing, changed or too few for the folds; the folder exists.
        KeyboardInterrupt: The run was stopped; the message says how to continue it.
    """
    tables = load_new_tables(config)  # raises before a folder is created
    run_folder.create_run_dir(config, run_dir)
    try:
        _train_folds(config, tables, run_dir, device)
    except Exception as error:
        is_started = any((fold / "last.pt").exists() for fold in run_dir.glob("fold_*"))
        is_failed = (run_dir / "fold_1" / run_folder.FAILED).exists()
        if distributed.is_main_process() and (is_failed or not is_started):
            run_folder.mark_failed(run_dir, error)
        raise


def resume_folds(run_dir: Path, device: torch.device, changes: Changes = UNCHANGED) -> None:
    """Continue a cross-validation: finish the stopped fold and train the missing ones.

    Raises:
        UserError: The folds have the epochs already, or the slices have changed since the run
            started, so the folds would differ.
    """
    config = run_folder.read_config(run_dir / "config.json")
    changes.check_epochs(config.train.epochs, config.train.epochs, run_dir)
    stored = changes.change_options(config, run_dir)
    config = locate_paths(stored, run_dir)
    check_data_dir(config.data_dir, run_dir)
    tables = _load_tables(config)
    integrity.check_used(config.data_dir, set(tables[0]["path"]))
    (run_dir / run_folder.FAILED).unlink(missing_ok=True)
    if changes != UNCHANGED and distributed.is_main_process():
        _check_assignment(tables, run_dir)
        atomic_files.write_json(run_dir / "config.json", stored.to_dict())
    _train_folds(config, tables, run_dir, device)


def load_new_tables(config: TrainConfig) -> list[pd.DataFrame]:
    """Load the manifest with the splits of each fold, after an integrity check of its files.

    Raises:
        UserError: The slices are missing, changed or too few for the folds.
    """
    dataset.check_trainable(config.data_dir)
    integrity.check_all(config.data_dir)
    return _load_tables(config)


def _load_tables(config: TrainConfig) -> list[pd.DataFrame]:
    """Return the manifest with the splits of each fold."""
    options = config.data
    assert options.folds is not None
    return dataset.load_fold_tables(
        *(config.data_dir, options.split_by, options.split_seed, options.folds),
        keep_test=options.keep_test,
    )


def _train_folds(
    config: TrainConfig, tables: list[pd.DataFrame], run_dir: Path, device: torch.device
) -> None:
    if distributed.is_main_process():
        _check_assignment(tables, run_dir)
    fold_config = dataclasses.replace(config, data=dataclasses.replace(config.data, folds=None))
    with run_folder.lock_run(run_dir):
        for fold, table in enumerate(tables, 1):
            log.info("fold %d of %d", fold, len(tables))
            try:
                _train_fold(fold_config, table, run_dir / f"fold_{fold}", device)
            except KeyboardInterrupt as error:
                line = f"stopped in fold {fold}; continue with --resume {quote(run_dir)}"
                raise type(error)(line) from error
            except UserError as error:
                if not isinstance(error.__cause__, OSError):
                    raise
                line = atomic_files.describe_os_error(error.__cause__)
                raise UserError(f"fold {fold}: {line} with --resume {quote(run_dir)}") from error
        if distributed.is_main_process():
            save_training_features(config, tables, config.data_dir, run_dir)
            _fit_ensemble(run_dir, device)


def _fit_ensemble(run_dir: Path, device: torch.device) -> None:
    try:
        fit_ensemble(run_dir, device)
    except KeyboardInterrupt as error:
        line = f"stopped after the last fold; continue with --resume {quote(run_dir)}"
        raise type(error)(line) from error
    except OSError as error:
        line = atomic_files.describe_os_error(error)
        raise UserError(f"{line} with --resume {quote(run_dir)}; the folds are intact") from error


def _train_fold(
    config: TrainConfig, table: pd.DataFrame, fold_dir: Path, device: torch.device
) -> None:
    if distributed.broadcast((fold_dir / "last.pt").exists()):
        changes = Changes(config.train.epochs, config.data_dir, is_fold=True)
        lifecycle.resume_run(fold_dir, device, changes)
        return
    if distributed.is_main_process() and fold_dir.exists():
        shutil.rmtree(fold_dir)  # killed before its first checkpoint
    name = f"{fold_dir.parent.name}-{fold_dir.name}"
    lifecycle.start_run(config, table, fold_dir, name, device)


def _check_assignment(tables: list[pd.DataFrame], run_dir: Path) -> None:
    """Write split.csv with the split of every slice in every fold, or compare it when resumed.

    Raises:
        UserError: The splits differ from those in split.csv.
    """
    columns = {f"fold_{fold}": table["split"] for fold, table in enumerate(tables, 1)}
    slices = tables[0][["sha256", "path", "label", "duplicate_set", "group"]].assign(**columns)
    path, text = run_dir / "split.csv", slices.to_csv(index=False, lineterminator="\n")
    if not path.exists():
        atomic_files.write_text(path, text)
    elif path.read_text("utf-8") != text:
        raise UserError(
            f"{path}: the slices have changed since the run started (added, removed, relabelled or "
            "regrouped), so the folds differ; restore them, or start a new run"
        )
