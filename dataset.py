"""The road from the manifest to slices on the device: table, splits, cached pixels, batches."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from helper import UserError, atomic_path, build_generator, describe_error, log
from imaging.audit import read_audit
from imaging.manifest import load_manifest
from imaging.read import READER_VERSION, read_grey, resize_grey
from imaging.split import check_disjoint, split_folds, split_groups, split_images

CACHE_FOLDER = "cache"


@dataclass(frozen=True)
class Slices:
    """Slices of one split on the device.

    Attributes:
        pixels: uint8 [N, 1, S, S].
        labels: Class indices [N].
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Slices":
        """The same slices on another device."""
        return Slices(self.pixels.to(device), self.labels.to(device))

    def count_steps(self, batch_size: int) -> int:
        """Batches an epoch."""
        return -(-len(self) // batch_size)

    def iterate(self, batch_size: int) -> Iterator[Tensor]:
        """Every slice once, in order: pixels [B, 1, S, S]."""
        return iter(self.pixels.split(batch_size))

    def shuffle(self, batch_size: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every slice once, in the order of this seed and epoch: pixels and labels.

        Batches differ by one slice at most: a last batch of one would break batch norm and weigh
        its slice more than others.
        """
        order = torch.randperm(len(self), generator=build_generator(seed, "order", epoch))
        for rows in order.to(self.labels.device).tensor_split(self.count_steps(batch_size)):
            yield self.pixels[rows], self.labels[rows]


def load_table(
    data_dir: Path, split_by: str = "group", split_seed: int | None = None
) -> pd.DataFrame:
    """The readable rows of the manifest with the split of this run.

    Args:
        data_dir: What prepare.py wrote.
        split_by: `group`, or `image` for the leaky split.
        split_seed: Divide anew with this seed; None takes the manifest's split (for `image`, 0).

    Raises:
        UserError: The manifest is missing or faulty, or a group is in two splits.
    """
    table = _load_readable(data_dir)
    if split_by == "image":
        table["split"] = split_images(table["sha256"], table["label"], split_seed or 0)
        return table
    if split_seed is not None:
        table["split"] = split_groups(table["label"], table["group"], split_seed)
    check_disjoint(table["group"], table["split"])
    return table


def load_fold_tables(
    data_dir: Path, split_by: str, split_seed: int | None, n_folds: int
) -> list[pd.DataFrame]:
    """The readable rows of the manifest, divided anew for each fold of a cross-validation.

    Raises:
        UserError: As `load_table`, or a class has too few groups for so many folds.
    """
    table = _load_readable(data_dir)
    units = table["sha256"] if split_by == "image" else table["group"]
    divisions = split_folds(table["label"], units, n_folds, split_seed or 0)
    return [table.assign(split=splits) for splits in divisions]


def _load_readable(data_dir: Path) -> pd.DataFrame:
    table = load_manifest(data_dir)
    return table[table["width"] > 0].reset_index(drop=True)


def has_found_copies(data_dir: Path) -> bool:
    """Whether the groups of this folder rest on a search for copies, or on known truth."""
    audit = read_audit(data_dir)
    return bool(audit.get("phantom") or audit.get("copies"))


def find_relatives(table: pd.DataFrame, rows: pd.DataFrame) -> np.ndarray:
    """Which of the rows share a group with a training slice of the table, bool [N]: the leak."""
    learnt = set(table["group"][table["split"] == "train"])
    return rows["group"].isin(learnt).to_numpy()


def record_split(table: pd.DataFrame) -> dict[str, list[str]]:
    """A run's own assignment, as the checkpoint keeps it: each distinct picture and its split."""
    distinct = table.drop_duplicates("sha256")
    return {"sha256": distinct["sha256"].tolist(), "split": distinct["split"].tolist()}


def compute_fingerprint(table: pd.DataFrame) -> str:
    """A hash of the rows in their order: content, label and split; what a resumed run rests on."""
    rows = table[["sha256", "label", "split"]].to_csv(index=False)
    return hashlib.sha256(rows.encode()).hexdigest()


def assign_split(table: pd.DataFrame, record: dict[str, list[str]]) -> pd.DataFrame:
    """The table with the assignment of a run; pictures that the run did not know have none."""
    known = dict(zip(record["sha256"], record["split"], strict=True))
    return table.assign(split=table["sha256"].map(known).fillna(""))


def check_complete(
    table: pd.DataFrame, record: dict[str, list[str]], split: str, data_dir: Path, run: str
) -> None:
    """Make sure that every slice which a run had in a split is still there.

    Raises:
        UserError: Some are not; says how many.
    """
    recorded = zip(record["sha256"], record["split"], strict=True)
    wanted = {digest for digest, name in recorded if name == split}
    missing = wanted - set(table["sha256"])
    if missing:
        raise UserError(
            f"{data_dir}: {len(missing)} of the {len(wanted)} {split} slices of run {run} are not "
            "there; run prepare.py on the source of that run, or evaluate other data by --split all"
        )


def list_classes(table: pd.DataFrame) -> list[str]:
    """The class names in the order of the network's outputs."""
    return sorted(table["label"].unique())


def take_slices(
    table: pd.DataFrame, split: str, data_dir: Path, classes: list[str], image_size: int
) -> Slices:
    """The slices of one split, in memory.

    Args:
        table: Of `load_table`.
        split: A name in the table's column `split`, or `all` for every row.
        data_dir: The folder that the table's paths begin at.
        classes: Class names in the order of the outputs.
        image_size: Side of the slices, px.

    Raises:
        UserError: The split is empty, or a picture is missing, or, when it is decoded, changed or
            unreadable.
    """
    rows = table if split == "all" else table[table["split"] == split]
    if rows.empty:
        raise UserError(f"{data_dir}: no slice in the {split} split; run prepare.py again")
    pixels, position = open_pixels(table, data_dir, image_size)
    taken = pixels[[position[digest] for digest in rows["sha256"]]]
    labels = [classes.index(label) for label in rows["label"]]
    return Slices(torch.from_numpy(taken).unsqueeze(1), torch.tensor(labels))


def open_pixels(
    table: pd.DataFrame, data_dir: Path, image_size: int
) -> tuple[np.ndarray, dict[str, int]]:
    """Every distinct picture of the table at one size, decoded once and kept on disk.

    The cache is keyed by the content of the pictures, the size and the reader's version: moving
    files or dividing them otherwise does not touch it.

    Returns:
        Pixels, uint8 [distinct pictures, S, S], and the position of each sha256 among them.
    """
    sources = dict(zip(table["sha256"], table["path"], strict=True))
    digests = sorted(sources)
    key = hashlib.sha256("\n".join([str(READER_VERSION), str(image_size), *digests]).encode())
    path = data_dir / CACHE_FOLDER / f"{image_size}px-{key.hexdigest()[:16]}.npy"
    position = {digest: row for row, digest in enumerate(digests)}
    for name in sources.values():
        if not (data_dir / name).is_file():
            raise UserError(f"{data_dir / name}: No such file; run prepare.py again")
    if path.exists():
        return np.load(path, mmap_mode="r"), position
    pixels = _decode([data_dir / sources[digest] for digest in digests], digests, image_size)
    try:
        with atomic_path(path) as temporary:
            np.save(temporary, pixels)
    except OSError as error:
        log.info("pixel cache not kept (%s): decoded again next time", describe_error(error))
    return pixels, position


def _decode(paths: list[Path], digests: list[str], image_size: int) -> np.ndarray:
    """Read, check and resize every picture, on all cores."""
    pixels = np.empty((len(paths), image_size, image_size), np.uint8)

    def decode(row: int) -> None:
        try:
            content = paths[row].read_bytes()
        except OSError as error:
            raise UserError(f"{describe_error(error)}; run prepare.py again") from error
        if hashlib.sha256(content).hexdigest() != digests[row]:
            raise UserError(f"{paths[row]}: changed since prepare.py ran; run prepare.py again")
        pixels[row] = resize_grey(read_grey(content), image_size)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(decode, range(len(paths)))
        for _ in tqdm(done, "decoding", len(paths), unit="slice", disable=None):
            pass
    return pixels


def is_phantom(data_dir: Path) -> bool:
    """Whether the slices of this folder are generated: prepare.py then left their truth there."""
    return (data_dir / "CSV" / "phantoms.csv").exists()


def compute_class_weights(labels: Tensor, n_classes: int) -> Tensor:
    """Weights [K] inverse to the class frequencies, 1 on average over the slices.

    A class without slices has weight 0.
    """
    counts = torch.bincount(labels, minlength=n_classes).float()
    return torch.where(counts > 0, len(labels) / (n_classes * counts.clamp(min=1)), 0.0)
