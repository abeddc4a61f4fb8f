"""From a network to a checkpoint and back: tensors and plain values, no code."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from files import atomic_path
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
MOST_THREADS = 1024


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
            raise _describe_fault(path, key, f"a {kind.__name__}", f"a {type(found).__name__}")


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
    classes, config = checkpoint["classes"], checkpoint["config"]
    # as prepare.py takes them: no formula in a spreadsheet, no two names in a list
    names = [
        name
        for name in classes
        if isinstance(name, str) and name and name[0] not in "=+-@" and "|" not in name
    ]
    if len(set(names)) < 2 or len(set(names)) != len(classes):
        raise _describe_fault(
            path, "classes", "two plain names or more, each once", f"{classes}"[:80]
        )
    preprocess, (low, high) = checkpoint["preprocess"], SIZES_PX
    wanted = [field.name for field in dataclasses.fields(Preprocess)]
    if sorted(preprocess) != sorted(wanted):
        raise _describe_fault(
            path, "preprocess", ", ".join(wanted), ", ".join(map(str, preprocess))
        )
    is_number = all(type(value) in {int, float} for value in preprocess.values())
    side = preprocess["image_size"]
    if not is_number or type(side) is not int or not low <= side <= high:
        raise _describe_fault(
            path, "preprocess", f"numbers, image_size of {low} to {high} px", f"{preprocess}"[:80]
        )
    data, network = config.get("data"), config.get("model")
    known = isinstance(data, dict) and data.get("split_by") in {"group", "image"}
    dropout = network.get("dropout") if isinstance(network, dict) else None
    if not known or not isinstance(dropout, float) or not 0 <= dropout < 1:
        raise _describe_fault(path, "config", "the options of a run", f"{config}"[:80])
    if not 1 <= checkpoint["threads"] <= MOST_THREADS:
        raise _describe_fault(path, "threads", f"1 to {MOST_THREADS}", str(checkpoint["threads"]))
    if checkpoint["precision"] not in {"fp32", "bf16"}:
        raise _describe_fault(path, "precision", "fp32 or bf16", repr(checkpoint["precision"][:80]))
    if checkpoint["best"] and type(checkpoint["best"].get("epoch")) is not int:
        raise _describe_fault(path, "best", "the row of an epoch", f"{checkpoint['best']}"[:80])
    split = checkpoint["split"]
    parts = [split.get(key) for key in ("sha256", "split")]
    if (
        not all(isinstance(part, list) for part in parts)
        or len({len(part or ()) for part in parts}) > 1
    ):
        raise _describe_fault(path, "split", "as many splits as sha256", f"{split}"[:80])


def _describe_fault(path: Path, key: str, expected: str, found: str) -> UserError:
    return UserError(f"{path}: its {key} should be {expected}, and is {found}")


def restore_model(checkpoint: dict[str, Any], path: Path) -> Classifier:
    """The network of a checkpoint, its classes and preprocessing taken from there alone.

    Raises:
        UserError: The weights are not those of the network that the checkpoint names, or are NaN
            or infinite.
    """
    preprocess, n_classes = Preprocess(**checkpoint["preprocess"]), len(checkpoint["classes"])
    if checkpoint["model"] not in list_models():
        found = repr(checkpoint["model"][:80])
        raise _describe_fault(path, "model", "one that this version knows", found)
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
