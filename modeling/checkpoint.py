"""Save, load and check checkpoints: tensors and plain values, no code."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from args import INTENSITIES
from common import run_paths
from common.atomic_files import atomic_path
from helper import UserError
from imaging.bit_depth import is_ranges
from model import Classifier, Preprocess, build_model, is_model
from modeling.weight_files import load_tensors

Types = dict[str, type]
Rule = tuple[Callable[[Any], bool], str]  # test and expectation of a value
# 4: preprocessing without intensity and value ranges; 3: a stem without bias; 2: other names of
# entries; 1: slices in the orientation of their files
CHECKPOINT_SCHEMA = 5
# Entries that define the run; its progress is in other entries.
RECORD_TYPES: Types = {
    "run": str,
    "model": str,
    "classes": list,
    "preprocess": dict,
    "start": str,
    "config": dict,
    "data": str,
    "phantom": bool,
    "split": dict,
    "fingerprint": str,
    "threads": int,
    "precision": str,
    "environment": dict,
}
RECORD_KEYS = tuple(RECORD_TYPES)
# folders from which the data of the run moved; what its training slices learn from a teacher
OPTIONAL_KEYS = ("earlier_data", "targets")
RUN_TYPES = {**RECORD_TYPES, "weights": dict, "history": list, "best": dict, "baselines": dict}
# Further entries of last.pt, from which a run is resumed.
LAST_TYPES: Types = {
    "epoch": int,
    "trained_weights": dict,
    "optimizer": dict,
    "loss_scaler": dict,
    "micro_batch": int,
    "compiles": bool,
}
SIZES_PX = (16, 2048)  # range of --image-size
MAX_THREADS = 1024  # maximum of --threads


def _is_file_name(name: str) -> bool:
    return name not in {"", ".", ".."} and Path(name).name == name and "\\" not in name


def _are_names(classes: list[Any]) -> bool:
    """Apply the rules of prepare.py: no spreadsheet formula, no list separator, no repeats."""
    names = [name for name in classes if isinstance(name, str) and name]
    plain = {name for name in names if name[0] not in "=+-@" and "|" not in name}
    return 2 <= len(plain) == len(classes)


def _is_preprocess(values: dict[Any, Any]) -> bool:
    low, high = SIZES_PX
    side, scale = values.get("image_size"), (values.get("mean"), values.get("std"))
    fields = {field.name for field in dataclasses.fields(Preprocess)}
    return (
        set(values) == fields
        and all(type(value) in {int, float} for value in scale)
        and type(side) is int
        and low <= side <= high
        and values["intensity"] in INTENSITIES
        and is_ranges(values["value_ranges"])
    )


def _is_config(config: dict[Any, Any]) -> bool:
    data, network = config.get("data"), config.get("model")
    if not isinstance(data, dict) or not isinstance(network, dict):
        return False
    dropout = network.get("dropout")
    in_range = isinstance(dropout, float) and 0 <= dropout < 1
    return in_range and data.get("split_by") in ("group", "image")


def _is_split(split: dict[Any, Any]) -> bool:
    digests, splits = split.get("sha256"), split.get("split")
    if not isinstance(digests, list) or not isinstance(splits, list):
        return False
    return len(digests) == len(splits)


def _is_partial_epoch(partial_epoch: Any) -> bool:
    if partial_epoch is None:
        return True
    if not isinstance(partial_epoch, dict):
        return False
    losses, skipped = partial_epoch.get("losses"), partial_epoch.get("skipped_steps")
    return isinstance(losses, torch.Tensor) and losses.dim() == 1 and type(skipped) is int


def _is_schedule(schedule: Any) -> bool:
    """Return whether the entry is missing, or that of `training.schedule.Schedule.to_record`."""
    kinds = {"first_step": int, "first_factor": float, "first_epoch": int, "growing_steps": int}
    if schedule is None:
        return True
    return isinstance(schedule, dict) and kinds == {
        name: type(value) for name, value in schedule.items()
    }


def _are_folders(folders: Any) -> bool:
    """Return whether the entry is missing or a list of paths."""
    return folders is None or (
        isinstance(folders, list) and all(isinstance(folder, str) for folder in folders)
    )


def _are_targets(targets: Any) -> bool:
    """Return whether the entry is missing or finite probabilities [N, K]."""
    if targets is None:
        return True
    is_table = isinstance(targets, torch.Tensor) and targets.dim() == 2
    return is_table and targets.is_floating_point() and bool(targets.isfinite().all())


# Checked after the types.
RUN_RULES: dict[str, Rule] = {
    "run": (_is_file_name, "a plain name"),
    "classes": (_are_names, "two plain names or more, each once"),
    "preprocess": (
        _is_preprocess,
        "image_size ({} to {} px), mean, std, intensity and value_ranges".format(*SIZES_PX),
    ),
    "config": (_is_config, "the options of a run"),
    "threads": (lambda threads: 1 <= threads <= MAX_THREADS, f"1 to {MAX_THREADS}"),
    "precision": (("fp32", "bf16", "fp16").__contains__, "fp32, bf16 or fp16"),
    "best": (lambda best: not best or type(best.get("epoch")) is int, "the row of an epoch"),
    "split": (_is_split, "as many splits as sha256"),
    "model": (is_model, "a model of this version"),
    "earlier_data": (_are_folders, "a list of folders"),
    "targets": (_are_targets, "finite probabilities of each training slice"),
}
LAST_RULES: dict[str, Rule] = {
    "micro_batch": (lambda size: size >= 1, "1 or more"),
    "epoch": (lambda epoch: epoch >= 0, "0 or more"),
    "partial_epoch": (_is_partial_epoch, "losses, one per step, and skipped_steps"),
    "schedule": (_is_schedule, "step, learning rate and epoch of an extension"),
}


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint atomically.

    Raises:
        OSError: The file cannot be written; an older file at `path` is unchanged.
    """
    content = {"schema": CHECKPOINT_SCHEMA, **checkpoint}
    if "data" in content:
        content["data"] = run_paths.store(Path(content["data"]), path).as_posix()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch's own message lacks the cause
                raise error.__context__ from None
            raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; code in it is never run.

    Raises:
        UserError: The file is missing, not a checkpoint of this program, or of another schema.
    """
    checkpoint = load_tensors(path, "checkpoint")
    if not isinstance(checkpoint, dict) or "schema" not in checkpoint:
        raise UserError(f"{path}: not a checkpoint of this program (main.py writes best.pt)")
    if checkpoint["schema"] != CHECKPOINT_SCHEMA:
        raise UserError(
            f"{path}: checkpoint schema {checkpoint['schema']}, "
            f"this program reads {CHECKPOINT_SCHEMA}; train again or use the version that wrote it"
        )
    return checkpoint


def load_run(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a run and check all entries that define the run.

    Its `data` is where the data folder is now, seen from the current folder.

    Raises:
        UserError: As `load_checkpoint`, or an entry is missing, of a wrong type or out of range.
    """
    checkpoint = load_checkpoint(path)
    _check(checkpoint, RUN_TYPES, RUN_RULES, path)
    checkpoint["data"] = run_paths.locate(Path(checkpoint["data"]), path).as_posix()
    return checkpoint


def hash_weights(checkpoint: dict[str, Any]) -> str:
    """Return the SHA-256 of the names and values of a checkpoint's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(checkpoint["weights"].items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check(checkpoint: dict[str, Any], types: Types, rules: dict[str, Rule], path: Path) -> None:
    missing = [key for key in types if key not in checkpoint]
    if missing:
        raise UserError(f"{path}: not a checkpoint of a run; {', '.join(missing)} missing")
    for key, kind in types.items():
        value = checkpoint[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            found = f"of type {type(value).__name__}"
            raise UserError(f"{path}: {key} must be of type {kind.__name__}, but is {found}")
    for key, (is_valid, expected) in rules.items():
        value = checkpoint.get(key)
        if not is_valid(value):
            raise UserError(f"{path}: {key} must be {expected}, but is {value!r:.80}")


def check_progress(last: dict[str, Any], path: Path) -> None:
    """Check the entries of last.pt from which a run is resumed.

    Raises:
        UserError: An entry is missing, of a wrong type or out of range.
    """
    _check(last, LAST_TYPES, LAST_RULES, path)


def restore_model(checkpoint: dict[str, Any], path: Path) -> Classifier:
    """Build the network of a checkpoint with its classes, preprocessing and weights.

    Raises:
        UserError: The weights do not fit the network, or are NaN or infinite.
    """
    preprocess, n_classes = Preprocess(**checkpoint["preprocess"]), len(checkpoint["classes"])
    network = build_model(
        checkpoint["model"],
        n_classes,
        preprocess.image_size,
        dropout=checkpoint["config"]["model"]["dropout"],
    )
    network.preprocess = preprocess
    try:
        network.load_state_dict(checkpoint["weights"])
    except (RuntimeError, AttributeError) as error:  # other shapes or names; values of other types
        # torch's first line names the class only, the second the first difference
        lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
        reason = lines[min(1, len(lines) - 1)].rstrip(".")[:200]
        raise UserError(
            f"{path}: its weights do not fit {checkpoint['model']} with {n_classes} classes "
            f"({reason})"
        ) from error
    wrong = [name for name, value in network.state_dict().items() if not value.isfinite().all()]
    if wrong:
        raise UserError(f"{path}: weights must be finite; {wrong[0]} holds NaN or infinity")
    return network.to(memory_format=torch.channels_last)
