"""Check that the images of a data folder are still those that prepare.py listed.

A file is hashed once. Afterwards its size and times are compared, as git does.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from common.atomic_files import write_text
from common.cache_folder import list_cache_folders
from common.portable_names import quote
from helper import UserError, log
from preparation.manifest import list_images, load_manifest

SHOWN = 5  # names in a message
MIN_AGE_NS = 3_000_000_000  # longer than the resolution of modification times on FAT, 2 s

# sha256, size in bytes, times of the last change of content and of status in ns. Programs can set
# the first time back, but not the second. On Windows the second is the time of creation.
Verified = tuple[str, int, int, int]


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
            images, folder = (quote(part) for part in (data_dir / "Images", data_dir))
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
    """Compare files on disk with rows of the manifest.

    A file is hashed unless it was hashed before and has the size and times that it had then. The
    results are stored in the cache folder, else in the user's one.

    Args:
        data_dir: The folder that the paths are relative to.
        listed: path and sha256 of images; other images on disk are `added`.
    """
    known = _read_verified(data_dir)
    now_ns = time.time_ns()

    def check_file(path: str, sha256: str) -> tuple[str, Verified | None]:
        """Return the state of a file, and what to store of it if it is unchanged and not new."""
        try:
            status = (data_dir / path).stat()
            found = (sha256, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if known.get(path) == found:
                return "", found
            content = (data_dir / path).read_bytes()
        except FileNotFoundError:
            return "missing", None
        if hashlib.sha256(content).hexdigest() != sha256:
            return "changed", None
        # a file that is written again at once could keep its time
        return "", found if now_ns - status.st_mtime_ns > MIN_AGE_NS else None

    paths = listed["path"].tolist()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(check_file, paths, listed["sha256"]))
    verified = {path: found for path, (_, found) in zip(paths, results, strict=True) if found}
    if any(known.get(path) != found for path, found in verified.items()):
        _write_verified(data_dir, known | verified)
    changed, missing = (
        sorted(path for path, (state, _) in zip(paths, results, strict=True) if state == wanted)
        for wanted in ("changed", "missing")
    )
    return Changes(changed, missing, sorted(set(list_images(data_dir)) - set(paths)))


def _verified_paths(data_dir: Path) -> list[Path]:
    return [folder / "verified.json" for folder in list_cache_folders(data_dir)]


def _read_verified(data_dir: Path) -> dict[str, Verified]:
    """Read what earlier checks stored; empty if there is nothing, or it is damaged."""
    known: dict[str, Verified] = {}
    for path in reversed(_verified_paths(data_dir)):
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            known |= {
                name: (sha256, size, changed_ns, status_ns)
                for name, (sha256, size, changed_ns, status_ns) in json.loads(
                    path.read_text("utf-8")
                ).items()
            }
    return known


def _write_verified(data_dir: Path, verified: dict[str, Verified]) -> None:
    for path in _verified_paths(data_dir):
        with contextlib.suppress(OSError):  # else all files are hashed again next time
            write_text(path, json.dumps(verified))
            return


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
