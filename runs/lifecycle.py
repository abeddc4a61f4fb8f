"""One run of one network: started or taken up, fitted, calibrated; all of it in session/RUN."""

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import dataset
import helper
import model
from args import TrainConfig
from common import atomic_files
from evaluation import baselines, calibration, ood, predictions
from helper import UserError, first_line, log
from loading import memory_budget
from loading.image_source import Slices
from modeling import activation_stats, checkpoint, precision
from preparation import integrity
from trainer import Trainer
from training import distributed

# A picture is compared with no more than these: of 6,000 numbers each they take 48 MiB.
REFERENCE_SLICES = 4096


def start_run(
    config: TrainConfig,
    table: pd.DataFrame,
    data_dir: Path,
    run_dir: Path,
    name: str,
    device: torch.device,
    *,
    again: bool = False,
) -> None:
    """Train one network from its start, on the slices as the table divides them.

    Args:
        config: Every option of the run.
        table: Of `dataset.load_table`.
        data_dir: The folder that the table's paths begin at.
        run_dir: session/RUN, which must not exist.
        name: What the run is called in its results.
        device: To train on.
        again: The folder is there, of a run that was killed before it saved anything.
    """
    options = config.model
    helper.set_threads(config.run.threads)
    classes = dataset.list_classes(table)
    check_parts(config, table)
    helper.seed_everything(config.run.seed, "weights")
    network = model.build_model(
        options.model,
        len(classes),
        options.image_size,
        pretrained=options.pretrained,
        weights=options.weights,
        dropout=options.dropout,
    )
    record = build_record(config, network, table, data_dir, name, device)
    if distributed.is_first() and not again:
        with atomic_files.new_folder(run_dir) as folder:
            write_start(config, table, folder)
    with hold(run_dir):
        trainer = None
        try:
            if distributed.is_first() and again:
                write_start(config, table, run_dir)
            trainer = prepare(config, record, network, table, device, run_dir)
            fit(trainer, table)
        except BaseException as error:
            outside = isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, OSError)
            has_steps = trainer is not None and trainer.saved_steps > 0
            kept = (outside or has_steps or distributed.count() > 1) and (
                run_dir / "last.pt"
            ).exists()
            if distributed.is_first() and not kept and not (run_dir / "history.csv").exists():
                shutil.rmtree(run_dir)  # it failed at the start: give the name back
            raise


def build_record(
    config: TrainConfig,
    network: model.Classifier,
    table: pd.DataFrame,
    data_dir: Path,
    name: str,
    device: torch.device,
) -> dict[str, Any]:
    """What the checkpoints of a run say of it, as plain values; arguments as of `start_run`."""
    options = config.model
    return {
        "run": name,
        **model.describe_model(options.model, network, dataset.list_classes(table)),
        "start": model.describe_start(options.model, options.pretrained, options.weights),
        "config": config.to_dict(),
        "data": data_dir.as_posix(),
        "phantom": dataset.is_phantom(data_dir),
        "split": dataset.record_split(table),
        "fingerprint": dataset.compute_fingerprint(table),
        "threads": torch.get_num_threads(),
        "precision": precision.resolve_precision(config.run.precision, device, options.model),
        "environment": helper.describe_environment(device, sys.argv),
    }


def check_parts(config: TrainConfig, table: pd.DataFrame) -> None:
    """Check that the processes of the run can share its batches; see `distributed.check_parts`."""
    counts = table["split"].value_counts()
    distributed.check_parts(counts.get("train", 0), counts.get("val", 0), config.train.batch_size)


def write_start(config: TrainConfig, table: pd.DataFrame, run_dir: Path) -> None:
    """What is known before the first step: config.json and split.csv."""
    columns = ["sha256", "path", "label", "slice", "group", "split"]
    atomic_files.write_json(run_dir / "config.json", config.to_dict())
    with atomic_files.atomic_path(run_dir / "split.csv") as temporary:
        table[columns].to_csv(temporary, index=False)


def take_up(run_dir: Path, device: torch.device) -> None:
    """Go on with one network from its last.pt.

    Raises:
        UserError: The slices are not those that the run began with.
    """
    path = run_dir / "last.pt"
    if not path.is_file():
        raise UserError(f"{path}: no such file; name the folder of a run that was stopped")
    with hold(run_dir):  # before it is read: another program may just be writing it
        last = checkpoint.load_run(path)
        checkpoint.check_progress(last, path)
        helper.set_threads(last["threads"])
        table = dataset.assign_split(dataset.load_table(Path(last["data"])), last["split"])
        if dataset.compute_fingerprint(table[table["split"] != ""]) != last["fingerprint"]:
            raise UserError(
                f"{last['data']}: the slices of run {last['run']} are not what they were when it "
                "began (some added, removed, renamed or relabelled); put them back, or start a "
                "new run"
            )
        integrity.check_used(Path(last["data"]), set(table["path"][table["split"] != ""]))
        config = read_config(last["config"], path)
        check_parts(config, table)
        network = checkpoint.restore_model(last, path)
        record = {key: last[key] for key in checkpoint.RECORD_KEYS}
        log.info("%s: going on after epoch %d", run_dir, last["epoch"])
        trainer = prepare(config, record, network, table, device, run_dir)
        fit(trainer, table, last)


@contextlib.contextmanager
def hold(run_dir: Path) -> Iterator[None]:
    """Train in a folder as the only program, and clear away what a killed one left unfinished.

    Raises:
        UserError: Another program trains there.
    """
    if not distributed.is_first():
        yield
        return
    with atomic_files.lock(run_dir, f"{run_dir}: another program trains this run; let it end"):
        atomic_files.clear_unfinished(run_dir)
        yield


def read_config(values: Any, path: Path) -> TrainConfig:
    """The options of a run, as `TrainConfig.to_dict` wrote them into a file.

    Raises:
        UserError: They are not those of this version.
    """
    try:
        return TrainConfig.from_dict(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: not the options of a run of this version ({type(error).__name__}: "
            f"{first_line(error)}); start a new run"
        ) from error


def fit(trainer: Trainer, table: pd.DataFrame, last: dict[str, Any] | None = None) -> None:
    """Train, from the content of last.pt where the run is taken up, and calibrate on val.

    Args:
        trainer: Of `prepare`.
        table: The rows that its slices are of.
        last: What last.pt holds; None begins anew.
    """
    run_dir = trainer.run_dir
    if last is not None:
        try:
            trainer.resume(last)
        except torch.OutOfMemoryError:
            raise
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise UserError(
                f"{run_dir / 'last.pt'}: the state of its training is not that of this run "
                f"({type(error).__name__}: {first_line(error)}); start a new run"
            ) from error
    else:
        trainer.save(improved=False)  # a run killed in its first epoch can be taken up too
    try:
        trainer.fit()
        if distributed.is_first():
            complete(run_dir / "best.pt", trainer, table)
    except KeyboardInterrupt as error:
        steps = f"{trainer.saved_steps} of {trainer.steps_per_epoch} steps"
        begun = f" and {steps}" if trainer.saved_steps else ""
        raise type(error)(
            f"ended after epoch {trainer.epoch}{begun}; go on with --resume {run_dir}"
        ) from error
    except OSError as error:
        raise UserError(
            f"{atomic_files.advise(error)} with --resume {run_dir}: what was saved before is whole"
        ) from error
    distributed.wait()


def prepare(
    config: TrainConfig,
    record: dict[str, Any],
    network: model.Classifier,
    table: pd.DataFrame,
    device: torch.device,
    run_dir: Path,
) -> Trainer:
    """Everything that comes before the first step; the baselines go into the record."""
    precision.keep_freed_memory()
    if config.run.deterministic:
        precision.be_deterministic()
    train, val = open_splits(config, record, table, device)
    if distributed.is_first():
        record["baselines"] = baselines.fit_baselines(
            predictions.measure_brightness(train),
            train.labels.cpu().numpy(),
            len(record["classes"]),
        )
    weights = None
    if config.data.class_weights == "balanced":
        weights = dataset.compute_class_weights(train.labels.cpu(), len(record["classes"]))
        weights = weights.to(device)
    announce(record, len(train), len(val), device, run_dir)
    return Trainer(network.to(device), train, val, config, record, run_dir, weights)


def open_splits(
    config: TrainConfig, record: dict[str, Any], table: pd.DataFrame, device: torch.device
) -> tuple[Slices, Slices]:
    """The slices to learn from and those that choose the epoch: on the device, or left on disk."""
    names, image_size = ("train", "val"), record["preprocess"]["image_size"]
    wanted_mib = dataset.count_bytes(table, names, image_size) / 2**20
    allowed_mib = config.run.memory_mib or memory_budget.measure_budget_mib(
        device, distributed.count_local()
    )
    if wanted_mib > allowed_mib:
        log.info(
            "%.0f MiB of slices, %.0f MiB for them (--memory-mib): read from disk batch by batch",
            wanted_mib,
            allowed_mib,
        )
    with distributed.first_before_others():  # the first decodes, the others find the cache
        train, val = (
            dataset.take_slices(
                table,
                split,
                Path(record["data"]),
                record["classes"],
                image_size,
                in_memory=wanted_mib <= allowed_mib,
            ).to(device)
            for split in names
        )
    return train, val


def complete(path: Path, trainer: Trainer, table: pd.DataFrame) -> None:
    """Fit what belongs to val, once the epoch is chosen, and keep it in best.pt.

    Args:
        path: The checkpoint, which is written anew.
        trainer: With the slices on the device.
        table: The rows that its slices are of.
    """
    best = checkpoint.load_run(path)
    network = checkpoint.restore_model(best, path).to(trainer.device)
    batch_size, val = trainer.micro_batch, trainer.val
    groups = table.loc[table["split"] == "val", "group"].to_numpy()
    with activation_stats.watch_layers(network) as watch:
        logits = model.infer(network, val.iterate(batch_size))[0].numpy()
    best["calibration"] = calibration.fit_calibration(
        logits, val.labels.cpu().numpy(), groups, best["classes"]
    )
    rows = table[table["split"] == "train"].reset_index(drop=True)
    chosen = choose_reference(rows)
    parts = torch.from_numpy(chosen).split(batch_size)
    with activation_stats.watch_layers(network) as known:
        embeddings = model.infer(network, trainer.train.read(parts))[1]
    fitted = ood.fit_novelty(known.collect().numpy(), watch.collect().numpy(), groups)
    best["reference"] = {
        "sha256": rows["sha256"].iloc[chosen].tolist(),
        "labels": rows["label"].iloc[chosen].tolist(),
        "embeddings": torch.nn.functional.normalize(embeddings).half(),
        "threshold": fitted.threshold,
        "mean": torch.from_numpy(fitted.mean),
        "deviation": torch.from_numpy(fitted.deviation),
        "statistics": torch.from_numpy(fitted.statistics).half(),
    }
    checkpoint.save_checkpoint(path, best)


def choose_reference(rows: pd.DataFrame) -> np.ndarray:
    """The training slices that a picture is compared with: places of one of each distinct slice.

    Of more than REFERENCE_SLICES as many are taken, evenly over the table.
    """
    distinct = np.flatnonzero(~rows["slice"].duplicated().to_numpy())
    if len(distinct) <= REFERENCE_SLICES:
        return distinct
    return distinct[np.linspace(0, len(distinct) - 1, REFERENCE_SLICES).round().astype(int)]


def announce(
    record: dict[str, Any], n_train: int, n_val: int, device: torch.device, run_dir: Path
) -> None:
    """Say what is trained on what, and what a reader must not overlook."""
    if record["phantom"]:
        log.info(predictions.PHANTOM)
    if record["config"]["data"]["split_by"] == "image":
        log.info(predictions.LEAKY_SPLIT)
    log.info(
        "%s (%s) at %d px on %s, %s%d threads, %s; %d training slices, %d val; classes %s; into %s",
        record["model"],
        record["start"],
        record["preprocess"]["image_size"],
        record["environment"]["device"],
        f"{distributed.count()} processes of " if distributed.count() > 1 else "",
        record["threads"],
        record["precision"],
        n_train,
        n_val,
        ", ".join(record["classes"]),
        run_dir,
    )
