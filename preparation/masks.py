"""Recognise masks of tumours among the images of a source."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from imaging.grayscale import ImageError
from imaging.reader import read_grey
from preparation.folder_kinds import (
    FolderKind,
    find_folder_kind,
    split_mask_name,
    strip_suffix,
)
from preparation.sources import Entry

MASK_LEVELS = 2  # grey values of a mask


def find_masks(entries: Sequence[Entry]) -> list[str]:
    """Return the names of the images that are masks: `benign (1)_mask.png` beside `benign (1).png`.

    A file whose name ends or begins like a mask, without a picture of that name beside it, is a
    mask if it has two grey values only. Such files are read for this.
    """
    stems: dict[PurePosixPath, set[str]] = defaultdict(set)
    for entry in entries:
        if not split_mask_name(entry.file_name):
            path = PurePosixPath(entry.name)
            stems[path.parent] |= _list_names(strip_suffix(path.name).casefold())
    masks: list[str] = []
    for entry in sorted(entries, key=lambda entry: entry.place):
        if start := split_mask_name(entry.file_name):
            is_twin = start in stems[PurePosixPath(entry.name).parent]
            if is_twin or _is_mask(entry):
                masks.append(entry.name)
    return masks


def find_mask_names(folders: Sequence[str], names: Sequence[str]) -> set[str]:
    """Return the files of one folder that are masks by the names of folders and files alone.

    Args:
        folders: The folder and those above it.
        names: Its files.
    """
    if any(find_folder_kind(folder) is FolderKind.MASKS for folder in folders):
        return set(names)
    starts = {name: start for name in names if (start := split_mask_name(name))}
    pictures = [strip_suffix(name).casefold() for name in names if name not in starts]
    known = {each for stem in pictures for each in _list_names(stem)} if starts else set()
    return {name for name, start in starts.items() if start in known}


def _list_names(stem: str) -> set[str]:
    """Return a file name without suffix, its starts before each `_`, and its end after the first.

    So a_1_mask is found beside a_1_t1 and mask_1 beside image_1.
    """
    parts = stem.split("_")
    starts = {"_".join(parts[:end]) for end in range(1, len(parts))}
    return {stem, *starts, "_".join(parts[1:])} - {""}


def _is_mask(entry: Entry) -> bool:
    try:
        return len(np.unique(read_grey(entry.read()))) <= MASK_LEVELS
    except ImageError:
        return False
