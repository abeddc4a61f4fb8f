"""From a network to a checkpoint and back: tensors and plain values, no code."""

from pathlib import Path
from typing import Any

import torch

from files import atomic_path
from helper import UserError
from model import Classifier, Preprocess, build_model, load_tensors

CHECKPOINT_SCHEMA = 2  # 1: slices in the position of their files
# What a checkpoint holds beside the progress of training: the run's identity.
RECORD_KEYS = (
    "run",
    "model",
    "classes",
    "preprocess",
    "start",
    "config",
    "data",
    "phantom",
    "split",
    "fingerprint",
    "threads",
    "precision",
    "environment",
)


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
        UserError: As `load_checkpoint`, or a part is missing, or the run's name is no plain name.
    """
    checkpoint = load_checkpoint(path)
    wanted = (*RECORD_KEYS, "weights", "history", "best", "baselines")
    missing = [key for key in wanted if key not in checkpoint]
    if missing:
        raise UserError(f"{path}: not a checkpoint of a run; {', '.join(missing)} missing")
    name = checkpoint["run"]
    if not isinstance(name, str) or Path(name).name != name or "\\" in name:
        raise UserError(f"{path}: its run name {name!r} is no plain name")
    return checkpoint


def restore_model(checkpoint: dict[str, Any], path: Path) -> Classifier:
    """The network of a checkpoint, its classes and preprocessing taken from there alone.

    Raises:
        UserError: The weights are not those of the network that the checkpoint names.
    """
    preprocess = Preprocess(**checkpoint["preprocess"])
    network = build_model(
        checkpoint["model"],
        len(checkpoint["classes"]),
        preprocess.image_size,
        dropout=checkpoint["config"]["model"]["dropout"],
    )
    network.preprocess = preprocess
    try:
        network.load_state_dict(checkpoint["weights"])
    except RuntimeError as error:
        raise UserError(f"{path}: its weights do not fit {checkpoint['model']}") from error
    return network
