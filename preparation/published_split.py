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
from preparation.tables import read_table

BY_PRECEDENCE = ("test", "val", "train")  # identical files stay in the first of these
LINKS = {  # by rising distance
    "identical": "sha256",
    "duplicate": "duplicate_set",
    "related": "group",
    "patient": "patient",
}


def split_path(data_dir: Path) -> Path:
    """Return the table of the published split that a data folder keeps; absent in other folders."""
    return data_dir / "CSV" / "published_split.csv"


def choose_split(
    data_dir: Path, published: Mapping[str, str], *, keep_split: bool, is_prepared: bool
) -> bool:
    """Return whether a data folder keeps a published split; a folder remembers its choice.

    Args:
        data_dir: The data folder.
        published: Published split by path, of the images in the source.
        keep_split: Whether `--keep-split` is given now.
        is_prepared: Whether the data folder has a manifest.

    Raises:
        UserError: `--keep-split` is given, and the source has no published split, or the folder
            was prepared without the option.
    """
    if split_path(data_dir).is_file() or not keep_split:
        return split_path(data_dir).is_file()
    if is_prepared:
        raise UserError(
            f"{data_dir} was prepared without --keep-split, and its split would be replaced; "
            "choose another --data"
        )
    if not published:
        raise UserError(
            "--keep-split: no folder of the source is named as a published split (such as "
            "Training and Testing, or train, valid and test); leave the option out"
        )
    return True


def recall_split(
    data_dir: Path, digests: Mapping[str, str], published: Mapping[str, str]
) -> dict[str, str]:
    """Return the published split of all images of a data folder that keeps one.

    Args:
        data_dir: The data folder; its table tells the split of images that the source lacks. A file
            that was moved is found by its content.
        digests: SHA-256 by path of all images.
        published: Published split by path, of the images in the source.
    """
    if not split_path(data_dir).is_file():
        return dict(published)
    table = read_table(split_path(data_dir), ("path", "sha256", "split"), "restore it")
    by_file = table.set_index(["path", "sha256"])["split"].to_dict()
    rank = table["split"].map({name: place for place, name in enumerate(BY_PRECEDENCE)})
    first = table.assign(rank=rank).sort_values("rank").drop_duplicates("sha256")
    by_content = first.set_index("sha256")["split"].to_dict()
    found = {
        path: by_file.get((path, digest)) or by_content.get(digest, "")
        for path, digest in digests.items()
    }
    return {path: split for path, split in found.items() if split} | dict(published)


def format_split(frame: pd.DataFrame, published: Mapping[str, str]) -> str:
    """Return the content of the table of a published split."""
    table = frame[["path", "sha256"]].assign(split=_list_splits(frame, published))
    return table[table["split"] != ""].to_csv(index=False, lineterminator="\n")


def keep_split(
    frame: pd.DataFrame,
    published: Mapping[str, str],
    where: Path,
    seed: int,
    earlier: Mapping[str, str] | None = None,
) -> npt.NDArray[np.str_]:
    """Return the published split of each image of a manifest.

    Test images stay as they are. A file outside test (or, in training, outside val) that repeats
    one of its files byte for byte has no split, as every content has only one. Without published
    val images, whole groups of training images become val, the same as in an earlier run.

    Args:
        frame: path, label, sha256, mean and group of each image.
        published: Published split by path.
        where: The source, for errors.
        seed: Chooses val, if none is published.
        earlier: Split of an earlier run by sha256.

    Returns:
        train, val or test; "" for unreadable images and for repeated ones.

    Raises:
        UserError: An image has no published split, there are no training or no test images, or a
            class is missing in one of the splits.
    """
    readable, splits = frame["mean"].notna(), _list_splits(frame, published)
    missing = frame["path"][readable & (splits == "")].tolist()
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
        before = rows["sha256"].map(earlier or {})
        splits[train] = (
            before.where(before == "val", "train")
            if (before == "val").any()
            else split_off_val(rows["label"].to_numpy(), rows["group"].to_numpy(), seed)
        )
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
    """Count the test and val images of a published split that are related to earlier parts of it.

    Args:
        frame: The manifest.
        published: Published split by path.
        kept: Whether the data folder keeps this split.

    Returns:
        Numbers of images by split; for test (against train and val) and val (against train), how
        many images have a byte-identical file, a duplicate, an image of their group and one of
        their patient there; how many files are left out as repetitions. None without a published
        split.
    """
    splits = _list_splits(frame, published)
    if not (splits != "").any():
        return None
    leaks = {}
    for held_out, others in (("test", ("train", "val")), ("val", ("train",))):
        inside, outside = frame[splits == held_out], frame[splits.isin(others)]
        leaks[held_out] = {
            kind: int((inside[column].isin(set(outside[column]) - {""})).sum())
            for kind, column in LINKS.items()
        }
    return {
        "kept": kept,
        "images": {name: int((splits == name).sum()) for name in SPLITS},
        "leak": leaks,
        "left_out": int(((frame["split"] == "") & (splits != "")).sum()) if kept else 0,
    }


def _list_splits(frame: pd.DataFrame, published: Mapping[str, str]) -> "pd.Series[str]":
    """Return the published split of each row, "" for unreadable images."""
    rows = zip(frame["path"], frame["mean"].notna(), strict=True)
    found = [published.get(path, "") if readable else "" for path, readable in rows]
    return pd.Series(found, frame.index, dtype=str)


def describe_split(measured: Mapping[str, Any]) -> list[str]:
    """Return lines on a published split and its leak, from `measure_leak`."""
    images = measured["images"]
    counts = ", ".join(f"{name} {count}" for name, count in images.items() if count)
    advice = "; --keep-split keeps it" if images["train"] and images["test"] else ""
    lines = [
        f"published split ({counts}) kept"
        if measured["kept"]
        else f"published split ({counts}) dissolved: the images are split anew by groups{advice}"
    ]
    for held_out, others in (("test", "train and val"), ("val", "train")):
        n_images, leak = images[held_out], measured["leak"][held_out]
        found = [
            f"{leak[kind]} ({leak[kind] / n_images:.0%}) have {words}"
            for kind, words in (
                ("duplicate", f"a duplicate ({leak['identical']} of them byte for byte)"),
                ("related", "an image of their group"),
                ("patient", "an image of their patient"),
            )
            if n_images and leak[kind]
        ]
        if found:
            lines.append(
                f"the published split leaks: of its {n_images} {held_out} images, "
                f"{', '.join(found)} in {others}; figures on it are too high"
            )
        elif n_images and images["train"]:
            lines.append(
                f"none of its {n_images} {held_out} images is known to be related to {others}"
            )
    if measured["left_out"]:
        lines.append(
            f"{measured['left_out']} files that repeat val or test images byte for byte are in no "
            "split"
        )
    return lines
