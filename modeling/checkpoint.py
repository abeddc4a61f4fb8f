"""From a network to a checkpoint and back: tensors and plain values, no code."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common.atomic_files import atomic_path
from helper import UserError
from model import Classifier, Preprocess, build_model, list_models, load_tensors

CHECKPOINT_SCHEMA = 2  # 1: slices in the position of their files
# What a checkpoint holds beside the progress of training: the run's identity.
RECORD_TYPES: dict[str, type] = {
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
RUN_TYPES = {**RECORD_TYPES, "weights": dict, "history": list, "best": dict, "baselines": dict}
# What last.pt holds as well, to go on with.
LAST_TYPES: dict[str, type] = {
    "epoch": int,
    "trained_weights": dict,
    "optimizer": dict,
    "micro_batch": int,
}
SIZES_PX = (16, 2048)  # as of --image-size
MOST_THREADS = 1024  # as of --threads


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint of tensors and plain values, complete or not at all.

    Raises:
        OSError: The disk is full, or will not be written to; what was there is kept.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save({"schema": CHECKPOINT_SCHEMA, **checkpoint}, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # of which torch says a line of its own
                raise error.__context__ from None
            raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; code in it is never run.

    Raises:
        UserError: No such file, no checkpoint of this program, or of another schema.
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
    """Read a checkpoint that a run wrote, with everything that says what the run was.

    Raises:
        UserError: As `load_checkpoint`, or a part is missing or of another kind than it must be, or
            the run's name is no plain name.
    """
    checkpoint = load_checkpoint(path)
    check_types(checkpoint, RUN_TYPES, path)
    _check_identity(checkpoint, path)
    name = checkpoint["run"]
    if name in {"", ".", ".."} or Path(name).name != name or "\\" in name:
        raise UserError(f"{path}: its run name {name!r} is no plain name")
    return checkpoint


def check_types(checkpoint: dict[str, Any], wanted: dict[str, type], path: Path) -> None:
    """Make sure that the parts are there, and of the kinds that they must be.

    Raises:
        UserError: They are not; says what was expected and found.
    """
    missing = [key for key in wanted if key not in checkpoint]
    if missing:
        raise UserError(f"{path}: not a checkpoint of a run; {', '.join(missing)} missing")
    for key, kind in wanted.items():
        found = checkpoint[key]
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            raise _describe_fault(
                path, key, f"of type {kind.__name__}", f"of type {type(found).__name__}"
            )


def check_progress(last: dict[str, Any], path: Path) -> None:
    """Make sure that last.pt holds what a run can go on with.

    Raises:
        UserError: It does not; says what was expected and found.
    """
    check_types(last, LAST_TYPES, path)
    if last["micro_batch"] < 1 or last["epoch"] < 0:
        found = f"{last['micro_batch']} in epoch {last['epoch']}"
        raise _describe_fault(path, "micro_batch", "1 or more in epoch 0 or later", found)
    begun = last.get("begun")
    if begun is None:
        return
    losses, weights = (
        begun.get(key) if isinstance(begun, dict) else None for key in ("losses", "weights")
    )
    if not isinstance(losses, torch.Tensor) or not isinstance(weights, list):
        raise _describe_fault(path, "begun", "losses and weights of steps", f"{begun}"[:80])
    if losses.shape != (len(weights),) or not all(type(weight) is int for weight in weights):
        raise _describe_fault(path, "begun", "as many losses as weights", f"{weights}"[:80])


def _check_identity(checkpoint: dict[str, Any], path: Path) -> None:
    """Hold what a network is built of, and what is believed of it, to what they can be."""
    low, high = SIZES_PX
    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        "classes": (_are_names, "two plain names or more, each once"),
        "preprocess": (_is_preprocess, f"image_size ({low} to {high} px), mean and std"),
        "config": (_is_config, "the options of a run"),
        "threads": (lambda threads: 1 <= threads <= MOST_THREADS, f"1 to {MOST_THREADS}"),
        "precision": (("fp32", "bf16").__contains__, "fp32 or bf16"),
        "best": (lambda best: not best or type(best.get("epoch")) is int, "the row of an epoch"),
        "split": (_is_split, "as many splits as sha256"),
        "model": (list_models().__contains__, "one that this version knows"),
    }
    for key, (is_right, expected) in rules.items():
        if not is_right(checkpoint[key]):
            raise _describe_fault(path, key, expected, f"{checkpoint[key]!r}"[:80])


def _are_names(classes: list[Any]) -> bool:
    """As prepare.py takes them: no formula in a spreadsheet, no two names in a list."""
    names = [name for name in classes if isinstance(name, str) and name]
    plain = {name for name in names if name[0] not in "=+-@" and "|" not in name}
    return 2 <= len(plain) == len(classes)


def _is_preprocess(values: dict[Any, Any]) -> bool:
    low, high = SIZES_PX
    is_number = all(type(value) in {int, float} for value in values.values())
    wanted = {field.name for field in dataclasses.fields(Preprocess)}
    side = values.get("image_size")
    return set(values) == wanted and is_number and type(side) is int and low <= side <= high


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


def _describe_fault(path: Path, key: str, expected: str, found: str) -> UserError:
    return UserError(f"{path}: its {key} should be {expected}, and is {found}")


def restore_model(checkpoint: dict[str, Any], path: Path) -> Classifier:
    """The network of a checkpoint, its classes and preprocessing taken from there alone.

    Raises:
        UserError: The weights are not those of the network that the checkpoint names, or are NaN
            or infinite.
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
    except (RuntimeError, AttributeError) as error:  # other shapes, other names; no tensors
        raise UserError(
            f"{path}: its weights do not fit {checkpoint['model']} with "
            f"{n_classes} classes ({describe_mismatch(error)})"
        ) from error
    wrong = [name for name, value in network.state_dict().items() if not value.isfinite().all()]
    if wrong:
        raise UserError(f"{path}: its weights should be numbers; {wrong[0]} holds NaN or infinity")
    return network


def describe_mismatch(error: Exception) -> str:
    """The first thing that torch says does not fit; its first line names the class alone."""
    lines = [line.strip() for line in str(error).splitlines()]
    return lines[min(1, len(lines) - 1)].rstrip(".")[:200] if lines else type(error).__name__
