"""Keep the published split of a source (`--keep-split`), and measure how far it leaks.

The split is read from folders such as Training and Testing (`preparation.layout`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from common.portable_names import quote
from helper import UserError
from preparation.folder_kinds import list_first
from preparation.splits import SPLITS, split_off_val

BY_PRECEDENCE = ("test", "val", "train")  # identical files stay in the first of these
LINKS = {  # by rising distance
    "identical": "sha256",
    "duplicate": "duplicate_set",
    "related": "group",
    "patient": "patient",
}


def choose_split(
    earlier: Mapping[str, Any], published: Mapping[str, str], data_dir: Path, *, keep_split: bool
) -> bool:
    """Return whether a data folder keeps a published split; a folder remembers its choice.

    Args:
        earlier: Audit of the data folder, {} if it is new.
        published: Published split by path, of the images in the source.
        data_dir: The data folder, for errors.
        keep_split: Whether `--keep-split` is given now.

    Raises:
        UserError: `--keep-split` is given, and the source has no published split, or the folder
            was prepared without the option.
    """
    is_kept = bool((earlier.get("published_split") or {}).get("kept"))
    if not keep_split or is_kept:
        return is_kept
    if earlier:
        raise UserError(
            f"{data_dir} was prepared with a split by groups, which --keep-split would replace; "
            "choose another --data"
        )
    if not published:
        raise UserError(
            "--keep-split: no folder of the source is named as a published split (such as "
            "Training and Testing, or train, valid and test); leave the option out"
        )
    return True


def keep_split(
    frame: pd.DataFrame, published: Mapping[str, str], where: Path, seed: int
) -> npt.NDArray[np.str_]:
    """Return the published split of each image of a manifest.

    Test images stay as they are. A file outside test (or, in training, outside val) that repeats
    one of its files byte for byte has no split, as every content has only one. Without published
    val images, whole groups of training images become val.

    Args:
        frame: path, label, sha256, mean and group of each image.
        published: Published split by path, "" for images that are left out.
        where: The source, for errors.
        seed: Chooses val, if none is published.

    Returns:
        train, val or test; "" for unreadable images and for repeated ones.

    Raises:
        UserError: An image has no published split, there are no training or no test images, or a
            class is missing in one of the splits.
    """
    readable, splits = frame["mean"].notna(), _list_splits(frame, published)
    missing = frame["path"][readable & ~frame["path"].isin(list(published))].tolist()
    if missing:
        raise UserError(
            f"{where}: {len(missing)} images are in no folder of the published split "
            f"({list_first(missing)}); leave them out by --exclude, or prepare another --data "
            "without --keep-split"
        )
    counts = splits.value_counts()
    for name in ("train", "test"):
        if name not in counts:
            found = ", ".join(f"{split} {counts[split]}" for split in SPLITS if split in counts)
            raise UserError(
                f"{where}: the published split has no {name} images (only {found}), and none are "
                "invented; rename the folder that is meant as such, or leave out --keep-split"
            )
    rank = splits.map({name: place for place, name in enumerate((*BY_PRECEDENCE, ""))})
    splits = splits.where(rank == rank.groupby(frame["sha256"]).transform("min"), "")
    if "val" not in counts:
        train = splits == "train"
        rows = frame[train]
        splits[train] = split_off_val(rows["label"].to_numpy(), rows["group"].to_numpy(), seed)
    for label in sorted(set(frame["label"][readable])):
        for name in SPLITS:
            if not ((frame["label"] == label) & (splits == name)).any():
                raise UserError(
                    f"{where}: the published split leaves class {label} without {name} images; "
                    f"give --exclude {quote(Path(label))}, or leave out --keep-split"
                )
    return splits.to_numpy(dtype=str)


def measure_leak(
    frame: pd.DataFrame, published: Mapping[str, str], *, kept: bool
) -> dict[str, Any] | None:
    """Count the held-out images of a published split that are related to other ones outside it.

    Args:
        frame: The manifest.
        published: Published split by path.
        kept: Whether the data folder keeps this split.

    Returns:
        Numbers of images by split, the held-out split (test, else val), and how many of its images
        have a byte-identical file, a duplicate, an image of their group and one of their patient
        outside it; how many files are left out as repetitions. None without a published split.
    """
    splits = _list_splits(frame, published)
    if not (splits != "").any():
        return None
    held_out = "test" if (splits == "test").any() else "val"
    inside, outside = frame[splits == held_out], frame[~splits.isin([held_out, ""])]
    leak = {
        kind: int((inside[column].isin(set(outside[column]) - {""})).sum())
        for kind, column in LINKS.items()
    }
    return {
        "kept": kept,
        "images": {name: int((splits == name).sum()) for name in SPLITS},
        "held_out": held_out,
        "leak": leak,
        "left_out": int(((frame["split"] == "") & (splits != "")).sum()) if kept else 0,
    }


def _list_splits(frame: pd.DataFrame, published: Mapping[str, str]) -> "pd.Series[str]":
    """Return the published split of each row, "" for unreadable images."""
    rows = zip(frame["path"], frame["mean"].notna(), strict=True)
    found = [published.get(path, "") if readable else "" for path, readable in rows]
    return pd.Series(found, frame.index, dtype=str)


def describe_split(measured: Mapping[str, Any]) -> list[str]:
    """Return lines on a published split and its leak, from `measure_leak`."""
    images, held_out, leak = measured["images"], measured["held_out"], measured["leak"]
    counts = ", ".join(f"{name} {count}" for name, count in images.items() if count)
    lines = [
        f"published split ({counts}) kept"
        if measured["kept"]
        else f"published split ({counts}) dissolved: the images are split anew by groups; "
        "--keep-split keeps it"
    ]
    n_images = images[held_out]
    found = [
        f"{leak[kind]} ({leak[kind] / n_images:.0%}) have {words} outside it"
        for kind, words in (
            ("duplicate", f"a duplicate ({leak['identical']} of them byte for byte)"),
            ("related", "an image of their group"),
            ("patient", "an image of their patient"),
        )
        if n_images and leak[kind]
    ]
    if found:
        lines.append(
            f"the published split leaks: of its {n_images} {held_out} images, {', '.join(found)}; "
            "figures on it are too high"
        )
    elif n_images:
        lines.append(f"none of its {n_images} {held_out} images is known to be related to others")
    if measured["left_out"]:
        lines.append(
            f"{measured['left_out']} files that repeat val or test images byte for byte are in no "
            "split"
        )
    return lines
