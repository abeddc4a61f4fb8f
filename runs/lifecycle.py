"""Start, resume and finish the training of one network in session/RUN."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import dataset
import helper
import model
from args import TrainConfig
from common import atomic_files
from common.portable_names import quote
from evaluation import baselines, predictions
from helper import UserError, first_line, log
from loading.image_source import SliceSource
from modeling import checkpoint, precision
from modeling.weights import build_initial_model, describe_start
from preparation import integrity
from runs.extension import Changes, extend_schedule, locate_data, locate_paths, needs_extension
from runs.post_hoc import fit_post_hoc
from runs.run_folder import (
    FAILED,
    create_run_dir,
    is_fold,
    lock_run,
    mark_failed,
    parse_config,
    read_config,
)
from runs.teacher import build_targets
from runs.training_features import save_training_features
from runs.transfer import describe_transfer
from trainer import Trainer
from training import distributed, progressive_resizing
from training.augmentation import Augmentation, choose_resampling

UNCHANGED = Changes()
WEIGHT_COPIES = 4  # EMA weights, gradients and the two moments of AdamW

# ---- start


def check_model(config: TrainConfig) -> None:
    """Check `--model` and its sizes before any file is opened.

    Raises:
        UserError: The model or a size is invalid; exit status 2.
    """
    options = config.model
    uses_weights = options.pretrained or options.weights is not None
    first_px = progressive_resizing.compute_size(0, 1, options.image_size, config.train.first_size)
    model.check_model(options.model, options.image_size, uses_weights, first_px)


def load_table(config: TrainConfig) -> pd.DataFrame:
    """Load the manifest with the splits of a new run, after an integrity check of its files."""
    dataset.check_trainable(config.data_dir)
    integrity.check_all(config.data_dir)
    return dataset.load_table(config.data_dir, config.data.split_by, config.data.split_seed)


def start_run(
    config: TrainConfig,
    table: pd.DataFrame,
    run_dir: Path,
    name: str,
    device: torch.device,
) -> None:
    """Create the folder of a run and train one network from its initial weights.

    Args:
        config: All options of the run.
        table: Manifest with the splits of the run, see `load_table`.
        run_dir: Folder to create, session/RUN.
        name: Name of the run in its results.
        device: Training device.

    Raises:
        UserError: The folder exists, slices or weights are unusable, or the disk is full.
        KeyboardInterrupt: The run was stopped; the message says how to continue it.
    """
    distributed.check_batch_size(table["split"].tolist(), config.train.batch_size)
    _ask_teacher(config, table)  # raises before a folder is created
    create_run_dir(config, run_dir)
    _train_new(config, table, run_dir, name, device)


def _train_new(
    config: TrainConfig, table: pd.DataFrame, run_dir: Path, name: str, device: torch.device
) -> None:
    """Train in a folder that holds nothing but config.json."""
    split = table[["sha256", "path", "label", "duplicate_set", "group", "split"]]
    with lock_run(run_dir):
        trainer = None
        try:
            if distributed.is_main_process():
                (run_dir / FAILED).unlink(missing_ok=True)
                text = split.to_csv(index=False, lineterminator="\n")
                atomic_files.write_text(run_dir / "split.csv", text)
            trainer = build_new_trainer(config, table, run_dir, name, device)
            _train(trainer, table)
        except BaseException as error:
            if distributed.is_main_process() and not _is_worth_keeping(run_dir, trainer, error):
                mark_failed(run_dir, error)
            raise


def build_new_trainer(
    config: TrainConfig, table: pd.DataFrame, run_dir: Path, name: str, device: torch.device
) -> Trainer:
    """Build the trainer of a new run with its initial weights."""
    options = config.model
    helper.set_threads(config.run.threads)
    helper.seed_everything(config.run.seed, "weights")
    with distributed.first_process_first():  # it downloads the weights
        network = build_initial_model(
            options.model,
            len(dataset.list_classes(table)),
            options.image_size,
            pretrained=options.pretrained,
            weights=options.weights,
            dropout=options.dropout,
        )
    network.preprocess = replace(
        network.preprocess,
        intensity=options.intensity,
        value_ranges=dataset.read_ranges(config.data_dir),
    )
    if options.weights is not None:
        for line in describe_transfer(options.weights, network.preprocess, table):
            log.info(line)
    record = build_record(config, network, table, name, device)
    if (targets := _ask_teacher(config, table)) is not None:
        record["targets"] = targets  # kept, so that a resumed run does not depend on the teacher
    return build_trainer(config, record, network, table, device, run_dir)


def _ask_teacher(config: TrainConfig, table: pd.DataFrame) -> torch.Tensor | None:
    """Return what the training slices learn from `--teacher`, None without one."""
    teacher, share = config.train.teacher, config.train.teacher_weight
    if teacher is None:
        return None
    return build_targets(teacher, share, table, dataset.list_classes(table))


def _is_worth_keeping(run_dir: Path, trainer: Trainer | None, error: BaseException) -> bool:
    """Return whether it makes sense to resume a failed run."""
    if (run_dir / "history.csv").exists():
        return True
    is_external = isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, OSError)
    has_steps = trainer is not None and trainer.saved_steps > 0
    is_resumable = is_external or has_steps or distributed.get_world_size() > 1
    return is_resumable and (run_dir / "last.pt").exists()


# ---- resume


def resume_run(run_dir: Path, device: torch.device, changes: Changes = UNCHANGED) -> None:
    """Continue a stopped run from its last.pt, or restart it if it was killed before any save.

    Raises:
        UserError: There is no such run, it has the epochs already, or its slices have changed since
            it started.
    """
    path = run_dir / "last.pt"
    if _was_never_saved(run_dir):
        log.info("%s: killed before anything was saved; it restarts", run_dir)
        config = changes.change_options(read_config(run_dir / "config.json"), run_dir)
        _write_config(config, run_dir, changes)
        config = locate_paths(config, run_dir)
        _train_new(config, load_table(config), run_dir, run_dir.name, device)
        return
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the folder of a stopped run")
    with lock_run(run_dir):  # before reading: another program may be writing last.pt
        last = checkpoint.load_run(path)
        checkpoint.check_progress(last, path)
        helper.set_threads(last["threads"])
        config = parse_config(last["config"], path)
        planned, changes = config.train.epochs, changes.ignore_same(Path(last["data"]))
        changes.check_epochs(planned, last["epoch"], run_dir)
        locate_data(last, changes, run_dir)
        table = dataset.assign_split(dataset.load_table(Path(last["data"])), last["split"])
        if dataset.compute_fingerprint(table[table["split"] != ""]) != last["fingerprint"]:
            raise UserError(
                f"{last['data']}: the slices of run {last['run']} have changed since it started "
                "(added, removed, renamed or relabelled); restore them, or start a new run"
            )
        integrity.check_used(Path(last["data"]), set(table["path"][table["split"] != ""]))
        config = changes.change_options(config, run_dir)
        last["config"] = config.to_dict()
        distributed.check_batch_size(table["split"].tolist(), config.train.batch_size)
        network = checkpoint.restore_model(last, path)
        keys = (*checkpoint.RECORD_KEYS, *checkpoint.OPTIONAL_KEYS)
        record = {key: last[key] for key in keys if key in last}
        log.info("%s: continuing after epoch %d", run_dir, last["epoch"])
        trainer = build_trainer(config, record, network, table, device, run_dir)
        if needs_extension(last, changes, config, planned):
            extend_schedule(trainer, last, planned)
        _write_config(config, run_dir, changes)
        (run_dir / FAILED).unlink(missing_ok=True)
        _train(trainer, table, last)


def _write_config(config: TrainConfig, run_dir: Path, changes: Changes) -> None:
    """Write config.json of a changed run."""
    if changes != UNCHANGED and distributed.is_main_process():
        atomic_files.write_json(run_dir / "config.json", config.to_dict())


def _was_never_saved(run_dir: Path) -> bool:
    """Return whether a single run was killed before its first checkpoint."""
    saved = any((run_dir / name).exists() for name in ("last.pt", "best.pt", "history.csv"))
    return (run_dir / "config.json").is_file() and not is_fold(run_dir) and not saved


# ---- train and finish


def build_record(
    config: TrainConfig,
    network: model.Classifier,
    table: pd.DataFrame,
    name: str,
    device: torch.device,
) -> dict[str, Any]:
    """Return the checkpoint entries that define a run (RECORD_TYPES), as plain values."""
    options, data_dir = config.model, config.data_dir
    return {
        "run": name,
        **model.describe_model(options.model, network, dataset.list_classes(table)),
        "start": describe_start(options.model, options.pretrained, options.weights),
        "config": config.to_dict(),
        "data": data_dir.as_posix(),
        "phantom": dataset.is_phantom(data_dir),
        "split": dataset.record_split(table),
        "fingerprint": dataset.compute_fingerprint(table),
        "threads": torch.get_num_threads(),
        "precision": precision.resolve_precision(config.run.precision, device, options.model),
        "environment": helper.describe_environment(device, sys.argv),
    }


def build_trainer(
    config: TrainConfig,
    record: dict[str, Any],
    network: model.Classifier,
    table: pd.DataFrame,
    device: torch.device,
    run_dir: Path,
) -> Trainer:
    """Load the slices, add the fitted baselines to the record and return the trainer."""
    precision.keep_freed_memory()
    precision.choose_algorithms(device, config.run.deterministic, network)
    network.to(device)
    train, val = _load_slices(config, record, network, table, device)
    if "targets" in record:
        train.targets = record["targets"].to(device)
    n_classes = len(record["classes"])
    if distributed.is_main_process():
        assert train.brightness is not None
        record["baselines"] = baselines.fit_baselines(
            train.brightness, train.labels.cpu().numpy(), n_classes
        )
    weights = None
    if config.data.class_weights == "balanced":
        weights = dataset.compute_class_weights(train.labels.cpu(), n_classes).to(device)
    return Trainer(network, train, val, config, record, run_dir, weights)


def _train(trainer: Trainer, table: pd.DataFrame, last: dict[str, Any] | None = None) -> None:
    """Train to the end, from the content of last.pt if given; fit calibration and OOD detector."""
    run_dir = trainer.run_dir
    log_notes(trainer)
    _log_start(trainer)
    if last is None:
        trainer.save(improved=False)  # so that a run killed in its first epoch can be resumed
    else:
        try:
            trainer.resume(last)
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            if helper.is_out_of_memory(error):
                raise
            raise UserError(
                f"{run_dir / 'last.pt'}: its training state does not fit this run "
                f"({type(error).__name__}: {first_line(error)}); start a new run"
            ) from error
    try:
        trainer.fit()
        if distributed.is_main_process():
            trainer.retry(lambda: fit_post_hoc(run_dir / "best.pt", trainer, table))
            if not is_fold(run_dir):
                data_dir = Path(trainer.record["data"])
                save_training_features(trainer.config, [table], data_dir, run_dir)
    except KeyboardInterrupt as error:
        steps = f" and {trainer.saved_steps} of {trainer.steps_per_epoch} steps"
        raise type(error)(
            f"stopped after epoch {trainer.epoch}{steps if trainer.saved_steps else ''}; "
            f"continue with --resume {quote(run_dir)}"
        ) from error
    except OSError as error:
        line = atomic_files.describe_os_error(error)
        raise UserError(
            f"{line} with --resume {quote(run_dir)}; saved checkpoints are intact"
        ) from error
    except RuntimeError as error:
        if found := re.match(r"(\w+) does not have a deterministic implementation", str(error)):
            raise UserError(
                f"--deterministic: {found[1]} is not deterministic on this device; leave the "
                "option out, or choose another --model or --device cpu"
            ) from error
        raise
    distributed.barrier()


def _load_slices(
    config: TrainConfig,
    record: dict[str, Any],
    network: model.Classifier,
    table: pd.DataFrame,
    device: torch.device,
) -> list[SliceSource]:
    """Load training and val slices; room is left for what the trainer allocates."""
    weights_mib = sum(each.nbytes for each in network.parameters()) / 2**20
    with distributed.first_process_first():  # it writes the pixel cache that the others read
        return dataset.load_slices(
            table,
            ("train", "val"),
            Path(record["data"]),
            record["classes"],
            record["preprocess"]["image_size"],
            device,
            ranges=record["preprocess"]["value_ranges"],
            limit_mib=config.run.memory_mib,
            reserved_mib=WEIGHT_COPIES * weights_mib,
            n_processes=distributed.get_local_world_size(),
        )


def log_notes(trainer: Trainer) -> None:
    """Log warnings about the data and the device."""
    config, record, device = trainer.config, trainer.record, trainer.device
    if record["phantom"]:
        log.info(predictions.PHANTOM)
    if config.data.split_by == "image":
        log.info(predictions.LEAKY_SPLIT)
    if dataset.keeps_published_split(config.data_dir):
        log.info(predictions.PUBLISHED_SPLIT)
    if record["precision"] == "bf16" and not precision.has_fast_bf16(device):
        log.info("note: %s emulates bf16, which is slow; try --precision auto", device)
    if Augmentation(config.augment).is_geometric and choose_resampling(device) != "bicubic":
        log.info("note: slices are resampled bilinearly, %s has no bicubic resampling", device)


def _log_start(trainer: Trainer) -> None:
    """Log network, device, slices and folder."""
    record, n_processes = trainer.record, distributed.get_world_size()
    processes = f"{n_processes} processes of " if n_processes > 1 else ""
    log.info(
        f"{record['model']} ({record['start']}) at {record['preprocess']['image_size']} px on "
        f"{record['environment']['device']}, {processes}{record['threads']} threads, "
        f"{record['precision']}; {len(trainer.train)} training slices, {len(trainer.val)} val; "
        f"classes {', '.join(record['classes'])}; run folder {trainer.run_dir}"
    )
