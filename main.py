"""Train a classifier on MRI slices and evaluate it: `python main.py --model resnet18`."""

import dataclasses
import datetime
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import args
import evaluate
import helper
from common import atomic_files, signals
from helper import UserError, log

if TYPE_CHECKING:
    import pandas as pd
    import torch

SESSION_DIR = Path("session")

# torch is imported inside the functions: `--help` and a wrong option answer without it.


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    config = args.parse_train(argv)
    with signals.heed_sigterm():
        if isinstance(config, args.ResumeConfig):
            return helper.run_verb(resume, config, config.debug)
        return helper.run_verb(train, config, config.run.debug)


def train(config: args.TrainConfig) -> None:
    """A new run, from the manifest to results/RUN."""
    import model
    from runs import lifecycle
    from training import distributed, progressive_resizing

    options = config.model
    uses_weights = options.pretrained or options.weights is not None
    first_px = progressive_resizing.compute_size(0, 1, options.image_size, config.train.first_size)
    model.check_model(options.model, options.image_size, uses_weights, first_px)
    device = distributed.join(config.run.device)
    name = distributed.agree(
        config.run.name or f"{options.model}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    )
    run_dir, results_dir = SESSION_DIR / name, evaluate.RESULTS_DIR / name
    if distributed.is_first() and results_dir.exists() and not run_dir.exists():
        raise UserError(f"{results_dir} exists; choose another --name, or move that folder")
    if config.data.folds:
        start_folds(config, run_dir, device)
    else:
        lifecycle.start_run(config, load_table(config), find_data(config), run_dir, name, device)
        judge(run_dir / "best.pt", config.run.device)


def resume(config: args.ResumeConfig) -> None:
    """A run that was stopped, from its last.pt to results/RUN; a run of folds, fold by fold."""
    from preparation import integrity
    from runs import lifecycle
    from training import distributed

    device = distributed.join(config.device)
    run_dir, kept = config.resume, config.resume / "config.json"
    whole = None
    if kept.is_file() and not (run_dir / "last.pt").exists():
        whole = read_config(kept)
    if whole and whole.data.folds:
        integrity.check_used(find_data(whole), set(load_folds(whole)[0]["path"]))
        train_folds(whole, run_dir, device)
        return
    is_fold = (run_dir.parent / "config.json").is_file()  # its split is in the folder above
    has_results = any((run_dir / name).exists() for name in ("best.pt", "history.csv"))
    if whole and not is_fold and not has_results:
        log.info("%s: killed before anything was saved; it begins anew", run_dir)
        table, data_dir = load_table(whole), find_data(whole)
        lifecycle.start_run(whole, table, data_dir, run_dir, run_dir.name, device, again=True)
    else:
        lifecycle.take_up(run_dir, device)
    judge(run_dir / "best.pt", config.device)


def read_config(path: Path) -> args.TrainConfig:
    """The options of a run from its config.json.

    Raises:
        UserError: The file holds something else.
    """
    from runs import lifecycle

    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({helper.first_line(error)})") from error
    return lifecycle.read_config(values, path)


def judge(path: Path, device: str) -> None:
    """Part from other processes, and evaluate on the test split, which is used nowhere before."""
    from training import distributed

    is_first = distributed.is_first()
    distributed.leave()  # nobody need wait while the first evaluates
    if not is_first:
        return
    try:
        evaluate.evaluate(args.EvaluateConfig((path,), device=device))
    except KeyboardInterrupt as error:
        run_dir = path if path.is_dir() else path.parent
        raise type(error)(f"trained, not evaluated; go on with --resume {run_dir}") from error


def start_folds(config: args.TrainConfig, run_dir: Path, device: "torch.device") -> None:
    """Make the folder of a run with --folds, and train every fold."""
    from preparation import integrity
    from training import distributed

    integrity.check_all(find_data(config))
    load_folds(config)  # refuses what cannot be divided before a folder is made
    if distributed.is_first():
        with atomic_files.new_folder(run_dir) as folder:
            atomic_files.write_json(folder / "config.json", config.to_dict())
    try:
        train_folds(config, run_dir, device)
    except Exception:
        if distributed.is_first() and not any(run_dir.glob("fold_*")):
            shutil.rmtree(run_dir)  # it failed at the start: give the name back
        raise


def train_folds(config: args.TrainConfig, run_dir: Path, device: "torch.device") -> None:
    """Every fold as a run of its own, those that are there already taken up, and the pooled result.

    Raises:
        UserError: The slices, and so the folds, are not what they were when the run began.
        KeyboardInterrupt: Says how to go on.
    """
    from runs import lifecycle
    from training import distributed

    tables, data_dir = load_folds(config), find_data(config)
    if distributed.is_first():
        keep_division(tables, run_dir)
    alone = dataclasses.replace(config, data=dataclasses.replace(config.data, folds=None))
    with lifecycle.hold(run_dir):
        for fold, table in enumerate(tables, 1):
            fold_dir = run_dir / f"fold_{fold}"
            log.info("fold %d of %d", fold, len(tables))
            try:
                if distributed.agree((fold_dir / "last.pt").exists()):
                    lifecycle.take_up(fold_dir, device)
                    continue
                if distributed.is_first() and fold_dir.exists():
                    shutil.rmtree(fold_dir)  # it was killed before there was anything to take up
                name = f"{run_dir.name}-{fold_dir.name}"
                lifecycle.start_run(alone, table, data_dir, fold_dir, name, device)
            except KeyboardInterrupt as error:
                raise type(error)(f"ended in fold {fold}; go on with --resume {run_dir}") from error
            except UserError as error:
                if not isinstance(error.__cause__, OSError):
                    raise
                line = (
                    f"fold {fold}: {atomic_files.advise(error.__cause__)} with --resume {run_dir}"
                )
                raise UserError(line) from error
    judge(run_dir, config.run.device)


def keep_division(tables: list["pd.DataFrame"], run_dir: Path) -> None:
    """Write which slice is in which split of which fold, or make sure that it is still so.

    Raises:
        UserError: The slices have changed since the run began.
    """
    columns = {f"fold_{fold}": table["split"] for fold, table in enumerate(tables, 1)}
    whole = tables[0][["sha256", "path", "label", "slice", "group"]].assign(**columns)
    path, text = run_dir / "split.csv", whole.to_csv(index=False, lineterminator="\n")
    if not path.exists():
        atomic_files.write_text(path, text)
    elif path.read_text("utf-8") != text:
        raise UserError(
            f"{path}: the slices are not divided as when the run began (some added, removed, "
            "relabelled or grouped otherwise); put them back, or start a new run"
        )


def load_table(config: args.TrainConfig) -> "pd.DataFrame":
    """The manifest with the split that the options ask for."""
    import dataset
    from preparation import integrity

    integrity.check_all(find_data(config))
    return dataset.load_table(find_data(config), config.data.split_by, config.data.split_seed)


def load_folds(config: args.TrainConfig) -> list["pd.DataFrame"]:
    """The manifest, divided for each fold."""
    import dataset

    options = config.data
    assert options.folds is not None
    return dataset.load_fold_tables(
        find_data(config), options.split_by, options.split_seed, options.folds
    )


def find_data(config: args.TrainConfig) -> Path:
    """The folder that the slices lie in."""
    return args.PHANTOM_DIR if config.data.phantom else config.data.data


if __name__ == "__main__":
    sys.exit(main())
