"""Recognise masks of tumours among the images of a source."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from imaging.grayscale import ImageError
from imaging.reader import read_grey
from preparation.folder_kinds import split_mask_name, strip_suffix
from preparation.sources import Entry

MASK_LEVELS = 2  # grey values of a mask


def find_masks(entries: Sequence[Entry]) -> list[str]:
    """Return the names of the images that are masks: `benign (1)_mask.png` beside `benign (1).png`.

    A file whose name ends like a mask, without a picture of that name beside it, is a mask if it
    has two grey values only. Such files are read for this.
    """
    stems: dict[PurePosixPath, set[str]] = defaultdict(set)
    for entry in entries:
        if not split_mask_name(entry.file_name):
            path = PurePosixPath(entry.name)
            stems[path.parent].add(strip_suffix(path.name).casefold())
    masks: list[str] = []
    for entry in entries:
        if start := split_mask_name(entry.file_name):
            beside = stems[PurePosixPath(entry.name).parent]
            if any(stem == start or stem.startswith(f"{start}_") for stem in beside) or _is_mask(
                entry
            ):
                masks.append(entry.name)
    return masks


def _is_mask(entry: Entry) -> bool:
    try:
        return len(np.unique(read_grey(entry.read()))) <= MASK_LEVELS
    except ImageError:
        return False
