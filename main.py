"""Train a classifier on MRI slices and evaluate it: `python main.py --model resnet18`."""

import dataclasses
import datetime
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import args
import evaluate
import helper
from helper import UserError, log

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

    import dataset
    import model

SESSION_DIR = Path("session")

# torch is imported inside the functions: `--help` and a wrong option answer without it.


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    config = args.parse_train(argv)
    if isinstance(config, args.ResumeConfig):
        return helper.run_verb(resume, config, config.debug)
    return helper.run_verb(train, config, config.run.debug)


def train(config: args.TrainConfig) -> None:
    """A new run, from the manifest to results/RUN."""
    import model

    options = config.model
    uses_weights = options.pretrained or options.weights is not None
    model.check_model(options.model, options.image_size, uses_weights)
    name = config.run.name or f"{options.model}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    if (evaluate.RESULTS_DIR / name).exists() and not (SESSION_DIR / name).exists():
        raise UserError(
            f"{evaluate.RESULTS_DIR / name} exists; choose another --name, or move that folder"
        )
    if not config.data.folds:
        start_run(config, load_table(config), SESSION_DIR / name, name)
        judge(SESSION_DIR / name / "best.pt", config.run.device)
        return
    load_folds(config)  # refuses what cannot be divided before a folder is made
    run_dir = helper.create_run_dir(SESSION_DIR, name)
    try:
        helper.write_json(run_dir / "config.json", config.to_dict())
        train_folds(config, run_dir, config.run.device)
    except BaseException:
        if not any(run_dir.glob("fold_*")):
            shutil.rmtree(run_dir)  # it failed at the start: give the name back
        raise


def resume(config: args.ResumeConfig) -> None:
    """A run that was stopped, from its last.pt to results/RUN; a run of folds, fold by fold."""
    run_dir, kept = config.resume, config.resume / "config.json"
    if kept.is_file() and not (run_dir / "last.pt").exists():
        whole = args.TrainConfig.from_dict(json.loads(kept.read_text("utf-8")))
        if whole.data.folds:
            train_folds(whole, run_dir, config.device)
            return
    take_up(run_dir, config.device)
    judge(run_dir / "best.pt", config.device)


def judge(path: Path, device: str) -> None:
    """Evaluate on the test split, which is used here and nowhere before."""
    evaluate.evaluate(args.EvaluateConfig((path,), device=device))


def train_folds(config: args.TrainConfig, run_dir: Path, device: str) -> None:
    """Every fold as a run of its own, those that are there already taken up, and the pooled result.

    Raises:
        UserError: The slices, and so the folds, are not what they were when the run began.
        KeyboardInterrupt: Says how to go on.
    """
    tables = load_folds(config)
    keep_division(tables, run_dir)
    alone = dataclasses.replace(config, data=dataclasses.replace(config.data, folds=None))
    for fold, table in enumerate(tables, 1):
        fold_dir = run_dir / f"fold_{fold}"
        log.info("fold %d of %d", fold, len(tables))
        try:
            if (fold_dir / "last.pt").exists():
                take_up(fold_dir, device)
                continue
            if fold_dir.exists():
                shutil.rmtree(fold_dir)  # it was killed before there was anything to take up
            start_run(alone, table, fold_dir, f"{run_dir.name}-{fold_dir.name}", device)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(
                f"interrupted in fold {fold}; go on with --resume {run_dir}"
            ) from error
    judge(run_dir, device)


def keep_division(tables: list["pd.DataFrame"], run_dir: Path) -> None:
    """Write which slice is in which split of which fold, or make sure that it is still so.

    Raises:
        UserError: The slices have changed since the run began.
    """
    columns = {f"fold_{fold}": table["split"] for fold, table in enumerate(tables, 1)}
    whole = tables[0][["sha256", "path", "label", "slice", "group"]].assign(**columns)
    path, text = run_dir / "split.csv", whole.to_csv(index=False, lineterminator="\n")
    if not path.exists():
        helper.write_text(path, text)
    elif path.read_text("utf-8") != text:
        raise UserError(
            f"{path}: the slices are not divided as when the run began (some added, removed, "
            "relabelled or grouped otherwise); put them back, or start a new run"
        )


def load_table(config: args.TrainConfig) -> "pd.DataFrame":
    """The manifest with the split that the options ask for."""
    import dataset

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


def start_run(
    config: args.TrainConfig, table: "pd.DataFrame", run_dir: Path, name: str, device: str = ""
) -> None:
    """Train one network from its start, on the slices as the table divides them."""
    import dataset
    import execution
    import model

    options = config.model
    threads = helper.set_threads(config.run.threads)
    where = helper.resolve_device(device or config.run.device)
    data_dir, classes = find_data(config), dataset.list_classes(table)
    helper.seed_everything(config.run.seed, "weights")
    network = model.build_model(
        options.model,
        len(classes),
        options.image_size,
        pretrained=options.pretrained,
        weights=options.weights,
        dropout=options.dropout,
    )
    helper.create_run_dir(run_dir.parent, run_dir.name)
    record = {
        "run": name,
        **model.describe_model(options.model, network, classes),
        "start": model.describe_start(options.model, options.pretrained, options.weights),
        "config": config.to_dict(),
        "data": data_dir.as_posix(),
        "phantom": dataset.is_phantom(data_dir),
        "split": dataset.record_split(table),
        "fingerprint": dataset.compute_fingerprint(table),
        "threads": threads,
        "precision": execution.resolve_precision(config.run.precision, where),
        "environment": helper.describe_environment(where, sys.argv),
    }
    columns = ["sha256", "path", "label", "slice", "group", "split"]
    try:
        helper.write_json(run_dir / "config.json", config.to_dict())
        with helper.atomic_path(run_dir / "split.csv") as temporary:
            table[columns].to_csv(temporary, index=False)
        fit(config, record, network, table, where, run_dir)
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt) and (run_dir / "last.pt").exists()
        if not stopped and not (run_dir / "history.csv").exists():
            shutil.rmtree(run_dir)  # it failed at the start: give the name back
        raise


def take_up(run_dir: Path, device: str) -> None:
    """Go on with one network from its last.pt."""
    import checkpoint
    import dataset

    last = checkpoint.load_run(run_dir / "last.pt")
    helper.set_threads(last["threads"])
    where = helper.resolve_device(device)
    table = dataset.assign_split(dataset.load_table(Path(last["data"])), last["split"])
    if dataset.compute_fingerprint(table[table["split"] != ""]) != last["fingerprint"]:
        raise UserError(
            f"{last['data']}: the slices of run {last['run']} are not what they were when it began "
            "(some added, removed, renamed or relabelled); put them back, or start a new run"
        )
    network = checkpoint.restore_model(last, run_dir / "last.pt")
    record = {key: last[key] for key in checkpoint.RECORD_KEYS}
    log.info("%s: going on after epoch %d", run_dir, last["epoch"])
    fit(args.TrainConfig.from_dict(last["config"]), record, network, table, where, run_dir)


def fit(
    config: args.TrainConfig,
    record: dict[str, Any],
    network: "model.Classifier",
    table: "pd.DataFrame",
    device: "torch.device",
    run_dir: Path,
) -> None:
    """Train, going on from last.pt where there is one."""
    import dataset
    import execution
    from assessment import baselines
    from trainer import Trainer

    execution.keep_freed_memory()
    data_dir, classes = Path(record["data"]), record["classes"]
    image_size = record["preprocess"]["image_size"]
    train, val = (
        dataset.take_slices(table, split, data_dir, classes, image_size)
        for split in ("train", "val")
    )
    record["baselines"] = baselines.fit_baselines(
        train.pixels.squeeze(1).numpy(), train.labels.numpy(), len(classes)
    )
    weights = None
    if config.data.class_weights == "balanced":
        weights = dataset.compute_class_weights(train.labels, len(classes)).to(device)
    trainer = Trainer(
        network.to(device), train.to(device), val.to(device), config, record, run_dir, weights
    )
    announce(record, len(train), len(val), device, run_dir)
    if (run_dir / "last.pt").exists():
        trainer.resume()
    else:
        trainer.save(improved=False)  # a run killed in its first epoch can be taken up too
    try:
        trainer.fit()
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            f"interrupted after epoch {trainer.epoch}; go on with --resume {run_dir}"
        ) from error
    groups = table.loc[table["split"] == "val", "group"].to_numpy()
    calibrate(run_dir / "best.pt", trainer.val, groups, config.train.batch_size)


def calibrate(path: Path, val: "dataset.Slices", groups: "np.ndarray", batch_size: int) -> None:
    """Fit what belongs to val, once the epoch is chosen, and keep it in best.pt.

    Args:
        path: The checkpoint, which is written anew.
        val: The val slices, on the device.
        groups: Their groups [N].
        batch_size: Slices a forward pass.
    """
    import checkpoint
    import model
    from assessment import calibration

    best = checkpoint.load_run(path)
    network = checkpoint.restore_model(best, path).to(val.labels.device)
    logits = model.infer(network, val.iterate(batch_size))[0].numpy()
    best["calibration"] = calibration.fit_calibration(
        logits, val.labels.cpu().numpy(), groups, best["classes"]
    )
    checkpoint.save_checkpoint(path, best)


def announce(
    record: dict[str, Any], n_train: int, n_val: int, device: "torch.device", run_dir: Path
) -> None:
    """Say what is trained on what, and what a reader must not overlook."""
    import verdicts

    if record["phantom"]:
        log.info(verdicts.PHANTOM)
    if record["config"]["data"]["split_by"] == "image":
        log.info(verdicts.LEAKY_SPLIT)
    log.info(
        "%s (%s) at %d px on %s, %d threads, %s; %d training slices, %d val; classes %s; into %s",
        record["model"],
        record["start"],
        record["preprocess"]["image_size"],
        record["environment"]["device"],
        record["threads"],
        record["precision"],
        n_train,
        n_val,
        ", ".join(record["classes"]),
        run_dir,
    )


if __name__ == "__main__":
    sys.exit(main())
