"""Load the manifest, assign splits and open the slices of one split."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from common.portable_names import quote
from helper import UserError, log
from imaging.bit_depth import Ranges
from loading import memory_budget
from loading.image_source import DiskSlices, MemorySlices, SliceSource
from loading.pixel_cache import open_pixels
from preparation.audit import check_version, read_audit
from preparation.manifest import load_manifest
from preparation.published_split import split_path
from preparation.splits import HELD_OUT, check_disjoint, split_folds, split_groups, split_images


def check_trainable(data_dir: Path) -> None:
    """Check that a folder was not prepared for evaluation only.

    Raises:
        UserError: It was, so all of its slices are in the test split.
    """
    if is_evaluation_only(data_dir):
        raise UserError(
            f"{data_dir} was prepared with --evaluation-only, so it has no slices to train on: "
            f"evaluate it by python evaluate.py session/RUN --data {quote(data_dir)}, or run "
            "prepare.py on its source with another --data"
        )


def is_evaluation_only(data_dir: Path) -> bool:
    """Return True if prepare.py --evaluation-only wrote this folder."""
    return bool(read_audit(data_dir).get("evaluation_only"))


def load_table(
    data_dir: Path, split_by: str = "group", split_seed: int | None = None
) -> pd.DataFrame:
    """Load the readable rows of the manifest with the split of this run.

    Args:
        data_dir: Folder that prepare.py wrote.
        split_by: `group`, or `image` for the leaky split.
        split_seed: Draw a new split with this seed; None uses the manifest's split (seed 0 for
            `image`).

    Raises:
        UserError: The manifest is missing or invalid, the folder was prepared by another version,
            or a group is in two splits.
    """
    table = _load_used(data_dir)
    if split_by == "image" or split_seed is not None:
        _check_replaceable(data_dir, "--split-by image" if split_by == "image" else "--split-seed")
    if split_by == "image":
        table["split"] = split_images(table["sha256"], table["label"], split_seed or 0)
        return table
    if split_seed is not None:
        table["split"] = split_groups(table["label"], table["group"], split_seed)
    if not keeps_published_split(data_dir):
        check_disjoint(table["group"], table["split"])
    return table


def load_fold_tables(
    data_dir: Path, split_by: str, split_seed: int | None, n_folds: int, *, keep_test: bool = False
) -> list[pd.DataFrame]:
    """Load the readable rows of the manifest once for each fold, with the splits of that fold.

    Args:
        data_dir: Folder that prepare.py wrote.
        split_by: As for `load_table`.
        split_seed: Seed of the folds.
        n_folds: Number of folds.
        keep_test: Leave the test split of the manifest out of all folds.

    Raises:
        UserError: As `load_table`, the folder keeps a published split, or a class has too few
            groups for this number of folds.
    """
    table = _load_used(data_dir)
    if keep_test:
        table = table[table["split"] != HELD_OUT].reset_index(drop=True)
    else:
        _check_replaceable(data_dir, "--folds")
    units = table["sha256"] if split_by == "image" else table["group"]
    folds = split_folds(table["label"], units, n_folds, split_seed or 0)
    return [table.assign(split=splits) for splits in folds]


def _load_used(data_dir: Path) -> pd.DataFrame:
    """Load the rows that are in a split: not unreadable, nor repeated across a published split."""
    table = load_manifest(data_dir)
    check_version(data_dir)
    return table[table["split"] != ""].reset_index(drop=True)


def keeps_published_split(data_dir: Path) -> bool:
    """Return True if prepare.py --keep-split wrote this folder."""
    return split_path(data_dir).is_file()


def _check_replaceable(data_dir: Path, option: str) -> None:
    """Raise a UserError if an option would replace a published split that the user kept."""
    if keeps_published_split(data_dir):
        raise UserError(
            f"{data_dir} keeps the published split of its source (--keep-split), which {option} "
            "would replace; leave the option out, or prepare another --data without --keep-split"
        )


def has_searched_duplicates(data_dir: Path) -> bool:
    """Return True if the groups come from a duplicate search or from phantoms' known groups."""
    audit = read_audit(data_dir)
    return bool(audit.get("phantom") or audit.get("duplicates"))


def is_phantom(data_dir: Path) -> bool:
    """Return True if the slices of this folder are generated phantoms."""
    return (data_dir / "CSV" / "phantoms.csv").exists()


def read_ranges(data_dir: Path) -> dict[str, list[float]]:
    """Return the ranges of values that prepare.py found for files without a declared bit depth."""
    return read_audit(data_dir).get("value_ranges", {})


def compare_ranges(trained: Ranges, data_dir: Path) -> list[str]:
    """Return warnings if files of this folder are scaled otherwise than its own scale.

    Args:
        trained: Ranges of values in training.
        data_dir: Folder that prepare.py wrote.
    """
    warnings = []
    for kind, (low, high) in read_ranges(data_dir).items():
        if kind not in trained:
            warnings.append(
                f"BRIGHTNESS: {kind} without a declared bit depth are scaled by {low:g} to "
                f"{high:g}, the range of this data; there were none in training"
            )
        elif [low, high] != list(trained[kind]):
            black, white = trained[kind]
            warnings.append(
                f"BRIGHTNESS: {kind} without a declared bit depth are scaled as in training, by "
                f"{black:g} to {white:g}, and clipped; the range of this data is {low:g} to "
                f"{high:g}"
            )
    return warnings


def find_related(table: pd.DataFrame, rows: pd.DataFrame) -> np.ndarray:
    """Return for each row whether its group has a training slice in the table, bool [N]."""
    train_groups = set(table["group"][table["split"] == "train"])
    return rows["group"].isin(train_groups).to_numpy()


def record_split(table: pd.DataFrame) -> dict[str, list[str]]:
    """Return the split of each distinct image, in the form that checkpoints store."""
    distinct = table.drop_duplicates("sha256")
    return {"sha256": distinct["sha256"].tolist(), "split": distinct["split"].tolist()}


def assign_split(table: pd.DataFrame, record: dict[str, list[str]]) -> pd.DataFrame:
    """Return the table with the split that a run recorded; "" for images not in that run."""
    known = dict(zip(record["sha256"], record["split"], strict=True))
    return table.assign(split=table["sha256"].map(known).fillna(""))


def compute_fingerprint(table: pd.DataFrame) -> str:
    """Return a hash of content, label and split of all rows in order; resuming compares it."""
    rows = table[["sha256", "label", "split"]].to_csv(index=False, lineterminator="\n")
    return hashlib.sha256(rows.encode()).hexdigest()


def check_complete(
    table: pd.DataFrame, record: dict[str, list[str]], split: str, data_dir: Path, run: str
) -> None:
    """Check that the table still has every slice that a run had in a split.

    Raises:
        UserError: Slices are missing.
    """
    recorded = zip(record["sha256"], record["split"], strict=True)
    wanted = {digest for digest, name in recorded if name == split}
    missing = wanted - set(table["sha256"])
    if missing:
        raise UserError(
            f"{data_dir}: {len(missing)} of the {len(wanted)} {split} slices of run {run} are "
            "missing; run prepare.py on the source of that run, or evaluate other data with "
            "--split all"
        )


def list_classes(table: pd.DataFrame) -> list[str]:
    """Return the class names in the order of the network's outputs."""
    return sorted(table["label"].unique())


def load_slices(
    table: pd.DataFrame,
    splits: Sequence[str],
    data_dir: Path,
    classes: list[str],
    image_size: int,
    device: torch.device,
    *,
    ranges: Ranges | None = None,
    limit_mib: int | None = None,
    reserved_mib: float = 0.0,
    n_processes: int = 1,
) -> list[SliceSource]:
    """Load the slices of each split to the device, or to the host, or leave them on disk.

    Args:
        table: From `load_table`.
        splits: Values of the column `split`; `all` takes every row.
        data_dir: The folder that the table's paths are relative to.
        classes: Class names in the order of the outputs.
        image_size: Side of the slices, px.
        device: Device of the batches.
        ranges: As for `open_pixels`.
        limit_mib: Memory for slices, on the device as on the host; None: half of what is free.
        reserved_mib: Memory of the device that will be allocated before the first step.
        n_processes: Processes of this run on this machine, which share the host's memory.

    Raises:
        UserError: As `take_slices`.
    """
    needed_mib = sum(count_bytes(table, split, image_size) for split in splits) / 2**20
    host_mib = limit_mib or memory_budget.measure_host_budget_mib(n_processes)
    device_mib = memory_budget.measure_device_budget_mib(device, limit_mib, reserved_mib)
    in_memory, on_device = needed_mib <= host_mib, needed_mib <= device_mib
    shortage = "the slices need %.0f MiB, the limit of the %s is %.0f (--memory-mib): %s"
    if not in_memory:
        log.info(shortage, needed_mib, "host", host_mib, "read from disk")
    elif not on_device:
        log.info(shortage, needed_mib, "device", device_mib, "kept in the memory of the host")
    sources: list[SliceSource] = []
    for split in splits:
        slices = take_slices(
            table, split, data_dir, classes, image_size, ranges=ranges, in_memory=in_memory
        )
        if isinstance(slices, MemorySlices) and not on_device:
            sources.append(slices.keep_on_host(device))
        else:
            sources.append(slices.to(device))
    return sources


def take_slices(
    table: pd.DataFrame,
    split: str,
    data_dir: Path,
    classes: list[str],
    image_size: int,
    *,
    ranges: Ranges | None = None,
    in_memory: bool = True,
) -> MemorySlices | DiskSlices:
    """Open the slices of one split on the CPU.

    Args:
        table: From `load_table`.
        split: A value of the column `split`, or `all` for every row.
        data_dir: The folder that the table's paths are relative to.
        classes: Class names in the order of the outputs.
        image_size: Side of the slices, px.
        ranges: As for `open_pixels`.
        in_memory: Hold all slices in memory; otherwise read them from the cache batch by batch.

    Raises:
        UserError: The split is empty, or as `open_pixels`.
    """
    rows = _select(table, split)
    if rows.empty:
        raise UserError(f"{data_dir}: no slice in the {split} split; run prepare.py again")
    pixels, brightness, row_of = open_pixels(
        table, data_dir, image_size, ranges=ranges, in_memory=in_memory
    )
    indices = np.array([row_of[digest] for digest in rows["sha256"]])
    labels = torch.tensor([classes.index(label) for label in rows["label"]])
    if in_memory:
        own = torch.from_numpy(pixels[indices]).unsqueeze(1)
        return MemorySlices(own, labels, brightness[indices])
    assert isinstance(pixels, np.memmap)
    return DiskSlices(pixels, indices, labels, brightness[indices])


def _select(table: pd.DataFrame, split: str) -> pd.DataFrame:
    return table if split == "all" else table[table["split"] == split]


def count_bytes(table: pd.DataFrame, split: str, image_size: int) -> int:
    """Return the memory that the slices of a split need, bytes."""
    return len(_select(table, split)) * image_size**2


def compute_class_weights(labels: Tensor, n_classes: int) -> Tensor:
    """Compute weights [K] inverse to the class frequencies, with a mean of 1 over the slices.

    A class without slices has weight 0.
    """
    counts = torch.bincount(labels, minlength=n_classes).float()
    return torch.where(counts > 0, len(labels) / (n_classes * counts.clamp(min=1)), 0.0)
