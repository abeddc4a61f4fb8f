"""Whether the pictures of a data folder are still those that prepare.py listed."""

import hashlib
import os
import shlex
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from helper import UserError, log
from preparation.manifest import list_images, load_manifest

SHOWN = 5  # names in a line


@dataclass(frozen=True)
class Changes:
    """Pictures below the data folder by what became of them, each sorted."""

    changed: list[str]
    missing: list[str]
    added: list[str]

    def __len__(self) -> int:
        return len(self.changed) + len(self.missing) + len(self.added)

    def describe(self, data_dir: Path) -> str:
        """How many, which ones, and how to go on."""
        counts, names = [], []
        for kind in ("changed", "missing", "added"):
            found = getattr(self, kind)
            counts += [f"{len(found)} {kind}"] if found else []
            names += found
        rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        if (data_dir / "CSV" / "phantoms.csv").exists():
            way_on = f"delete {data_dir} and make phantoms anew by prepare.py --phantom"
        else:
            images, folder = (shlex.quote(str(part)) for part in (data_dir / "Images", data_dir))
            back = "put them back" if self.changed or self.missing else "move them away"
            way_on = (
                f"{back}, or take the pictures as they are by "
                f"python prepare.py {images} --data {folder}"
            )
        return (
            f"{data_dir}: {', '.join(counts)} since prepare.py ran "
            f"({', '.join(names[:SHOWN])}{rest}); {way_on}"
        )


def find_changes(data_dir: Path, listed: pd.DataFrame) -> Changes:
    """Compare the disk with rows of the manifest, by sha256.

    Args:
        data_dir: The folder that the paths begin at.
        listed: path and sha256 of pictures.

    Returns:
        What is changed or missing of these rows; what is added to all of them.
    """

    def look(path: str, sha256: str) -> str:
        try:
            content = (data_dir / path).read_bytes()
        except FileNotFoundError:
            return "missing"
        return "" if hashlib.sha256(content).hexdigest() == sha256 else "changed"

    paths = listed["path"].tolist()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(look, paths, listed["sha256"]))
    changed, missing = (
        sorted(path for path, kind in zip(paths, found, strict=True) if kind == wanted)
        for wanted in ("changed", "missing")
    )
    return Changes(changed, missing, sorted(set(list_images(data_dir)) - set(paths)))


def check_all(data_dir: Path) -> None:
    """Make sure that a folder holds what the manifest lists, and nothing else, before training.

    Raises:
        UserError: Pictures were changed, removed or added; says which.
    """
    changes = find_changes(data_dir, load_manifest(data_dir))
    if len(changes):
        raise UserError(changes.describe(data_dir))


def check_used(data_dir: Path, used: Collection[str]) -> None:
    """Make sure that some pictures are those of the manifest; what was added is a note.

    Args:
        data_dir: The folder.
        used: Their paths below it.

    Raises:
        UserError: Some of them were changed or removed; says which.
    """
    listed = load_manifest(data_dir)
    rows = listed[listed["path"].isin(set(used))]
    changes = find_changes(data_dir, rows)
    if changes.changed or changes.missing:
        raise UserError(Changes(changes.changed, changes.missing, []).describe(data_dir))
    added = sorted(set(changes.added) - set(listed["path"]))
    if added:
        names = ", ".join(added[:SHOWN])
        log.info(
            "note: %s: %d pictures are not listed, and not used: %s", data_dir, len(added), names
        )
