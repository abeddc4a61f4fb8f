"""Check that the images of a data folder are still those that prepare.py listed."""

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

SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Changes:
    """Paths of changed, missing and added images below the data folder, each sorted."""

    changed: list[str]
    missing: list[str]
    added: list[str]

    def __len__(self) -> int:
        return len(self.changed) + len(self.missing) + len(self.added)

    def describe(self, data_dir: Path) -> str:
        """Return one line: how many, which ones, and what to do."""
        kinds = {name: paths for name, paths in vars(self).items() if paths}
        counts = ", ".join(f"{len(paths)} {name}" for name, paths in kinds.items())
        names = [path for paths in kinds.values() for path in paths]
        rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        if (data_dir / "CSV" / "phantoms.csv").exists():
            remedy = f"delete {data_dir} and run prepare.py --phantom again"
        else:
            images, folder = (shlex.quote(str(part)) for part in (data_dir / "Images", data_dir))
            restore = "put them back" if self.changed or self.missing else "move them away"
            remedy = (
                f"{restore}, or accept the images as they are by "
                f"python prepare.py {images} --data {folder}"
            )
        return (
            f"{data_dir}: {counts} since prepare.py ran "
            f"({', '.join(names[:SHOWN])}{rest}); {remedy}"
        )


def find_changes(data_dir: Path, listed: pd.DataFrame) -> Changes:
    """Compare files on disk with rows of the manifest, by sha256.

    Args:
        data_dir: The folder that the paths are relative to.
        listed: path and sha256 of images; other images on disk are `added`.
    """

    def check_file(path: str, sha256: str) -> str:
        try:
            content = (data_dir / path).read_bytes()
        except FileNotFoundError:
            return "missing"
        return "" if hashlib.sha256(content).hexdigest() == sha256 else "changed"

    paths = listed["path"].tolist()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        states = list(pool.map(check_file, paths, listed["sha256"]))
    changed, missing = (
        sorted(path for path, state in zip(paths, states, strict=True) if state == wanted)
        for wanted in ("changed", "missing")
    )
    return Changes(changed, missing, sorted(set(list_images(data_dir)) - set(paths)))


def check_all(data_dir: Path) -> None:
    """Raise a UserError if the images of a data folder differ from its manifest."""
    changes = find_changes(data_dir, load_manifest(data_dir))
    if len(changes):
        raise UserError(changes.describe(data_dir))


def check_used(data_dir: Path, used: Collection[str]) -> None:
    """Raise a UserError if `used` images differ from the manifest; log images not in it."""
    listed = load_manifest(data_dir)
    changes = find_changes(data_dir, listed[listed["path"].isin(set(used))])
    if changes.changed or changes.missing:
        raise UserError(Changes(changes.changed, changes.missing, []).describe(data_dir))
    if added := sorted(set(changes.added) - set(listed["path"])):
        names = ", ".join(added[:SHOWN])
        log.info("note: %s: %d images are not listed and not used: %s", data_dir, len(added), names)
