"""The road from the manifest to slices: table, splits, pixels that are decoded once."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from common.atomic_files import atomic_path, clear_unfinished, lock
from helper import UserError, describe_error, log
from imaging.orientation import fit_slice
from imaging.reader import READER_VERSION, read_grey
from loading.image_source import MemorySlices, PixelFile, Slices, StoredSlices
from preparation.audit import read_audit
from preparation.manifest import load_manifest
from preparation.splits import check_disjoint, split_folds, split_groups, split_images

CACHE_FOLDER = "cache"
CHUNK_SLICES = 512  # decoded before they are written


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
    table: pd.DataFrame,
    split: str,
    data_dir: Path,
    classes: list[str],
    image_size: int,
    *,
    in_memory: bool = True,
) -> Slices:
    """The slices of one split.

    Args:
        table: Of `load_table`.
        split: A name in the table's column `split`, or `all` for every row.
        data_dir: The folder that the table's paths begin at.
        classes: Class names in the order of the outputs.
        image_size: Side of the slices, px.
        in_memory: Hold them all; else they are read from the cache batch by batch.

    Raises:
        UserError: The split is empty, or a picture is missing, or, when it is decoded, changed or
            unreadable.
    """
    rows = table if split == "all" else table[table["split"] == split]
    if rows.empty:
        raise UserError(f"{data_dir}: no slice in the {split} split; run prepare.py again")
    pixels, position = open_pixels(table, data_dir, image_size, in_memory=in_memory)
    places = np.array([position[digest] for digest in rows["sha256"]])
    labels = torch.tensor([classes.index(label) for label in rows["label"]])
    if not in_memory:
        assert isinstance(pixels, np.memmap)
        file = PixelFile(Path(str(pixels.filename)), pixels.offset, image_size)
        return StoredSlices(file, places, labels)
    return MemorySlices(torch.from_numpy(pixels[places]).unsqueeze(1), labels)


def count_bytes(table: pd.DataFrame, splits: tuple[str, ...], image_size: int) -> int:
    """What the slices of some splits take in memory."""
    return int(table["split"].isin(splits).sum()) * image_size**2


def open_pixels(
    table: pd.DataFrame, data_dir: Path, image_size: int, *, in_memory: bool = True
) -> tuple[np.ndarray, dict[str, int]]:
    """Every distinct picture of the table at one size, decoded once and kept on disk.

    The cache is keyed by the content of the pictures, the size and the reader's version: moving
    files or dividing them otherwise does not touch it.

    Args:
        table: Of `load_table`.
        data_dir: The folder that the table's paths begin at.
        image_size: Side of the pictures, px.
        in_memory: Whether memory may hold them all where the cache cannot be kept.

    Returns:
        Pixels, uint8 [distinct pictures, S, S], and the position of each sha256 among them.

    Raises:
        UserError: A picture is missing, changed or unreadable, or there is no place for them.
    """
    sources = dict(zip(table["sha256"], table["path"], strict=True))
    digests = sorted(sources)
    key = hashlib.sha256("\n".join([str(READER_VERSION), str(image_size), *digests]).encode())
    path = data_dir / CACHE_FOLDER / f"{image_size}px-{key.hexdigest()[:16]}.npy"
    position = {digest: row for row, digest in enumerate(digests)}
    for name in sources.values():
        if not (data_dir / name).is_file():
            raise UserError(f"{data_dir / name}: No such file; run prepare.py again")
    paths = [data_dir / sources[digest] for digest in digests]
    shape = (len(paths), image_size, image_size)
    if not _is_whole(path, shape):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with lock(path.parent):  # who comes second finds the cache of the first
                if not _is_whole(path, shape):
                    clear_unfinished(path.parent, path.suffix)
                    _write_cache(path, paths, digests, shape)
        except OSError as error:
            if not in_memory:
                raise UserError(
                    f"{path}: cannot be written ({describe_error(error)}), and the slices exceed "
                    "the memory for them; make room there, or raise --memory-mib"
                ) from error
            log.info("pixel cache not kept (%s): decoded again next time", describe_error(error))
            return np.concatenate(list(_decode(paths, digests, image_size))), position
    return np.load(path, mmap_mode="r"), position


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether a cache is there and of this shape; one that was cut short is made anew."""
    try:
        return np.load(path, mmap_mode="r").shape == shape
    except (OSError, ValueError, EOFError):
        return False


def _write_cache(
    path: Path, paths: list[Path], digests: list[str], shape: tuple[int, int, int]
) -> None:
    """Decode into an .npy file, a chunk at a time: memory is of a chunk, not of the whole."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for pixels in _decode(paths, digests, shape[1]):
            file.write(pixels.data)


def _decode(paths: list[Path], digests: list[str], image_size: int) -> Iterator[np.ndarray]:
    """Read, check and resize every picture, on all cores: uint8 [chunk, S, S] after another."""

    def decode(row: int) -> np.ndarray:
        try:
            content = paths[row].read_bytes()
        except OSError as error:
            raise UserError(f"{describe_error(error)}; run prepare.py again") from error
        if hashlib.sha256(content).hexdigest() != digests[row]:
            raise UserError(f"{paths[row]}: changed since prepare.py ran; run prepare.py again")
        return fit_slice(read_grey(content), image_size)

    rows = range(len(paths))
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(paths), desc="decoding", unit="slice", disable=None) as bar,
    ):
        for start in rows[::CHUNK_SLICES]:
            chunk = []
            for pixels in pool.map(decode, rows[start : start + CHUNK_SLICES]):
                chunk.append(pixels)
                bar.update()
            yield np.stack(chunk)


def is_phantom(data_dir: Path) -> bool:
    """Whether the slices of this folder are generated: prepare.py then left their truth there."""
    return (data_dir / "CSV" / "phantoms.csv").exists()


def compute_class_weights(labels: Tensor, n_classes: int) -> Tensor:
    """Weights [K] inverse to the class frequencies, 1 on average over the slices.

    A class without slices has weight 0.
    """
    counts = torch.bincount(labels, minlength=n_classes).float()
    return torch.where(counts > 0, len(labels) / (n_classes * counts.clamp(min=1)), 0.0)
