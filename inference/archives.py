"""Images in archives: unpacked one at a time to a temporary folder, named as in the archive."""

import contextlib
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from common.atomic_files import UNFINISHED
from common.portable_names import make_portable
from helper import UserError
from preparation.masks import find_mask_names
from preparation.sources import Entry, open_source

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_NAME = 60  # characters of a file name that are kept; the number before it makes it unique


@dataclass(frozen=True)
class Unpacked:
    """Paths to read, and the names of those that were unpacked.

    Attributes:
        paths: Files and folders; a folder in place of each archive.
        names: `ARCHIVE/inside/path` of each unpacked file.
        notes: What was passed over in the archives.
    """

    paths: list[Path]
    names: dict[Path, Path]
    notes: list[str] = field(default_factory=list)


def is_archive(path: Path) -> bool:
    """Return whether a file is an archive, by its suffix or its content."""
    if not path.is_file():
        return False
    if path.name.lower().endswith(SUFFIXES):
        return True
    with contextlib.suppress(OSError, EOFError, zlib.error):  # a damaged file is reported when read
        with path.open("rb") as stream:
            if stream.read(4) == b"PK\3\4":
                return True
        return tarfile.is_tarfile(path)
    return False


@contextlib.contextmanager
def unpack(paths: Sequence[Path], beside: Path) -> Iterator[Unpacked]:
    """Unpack the images of all archives among the paths; they are deleted at the end.

    Args:
        paths: Files, folders and archives.
        beside: The temporary folder is created in the folder of this file.

    Raises:
        UserError: An archive is damaged, encrypted or unsafe, has no images, or needs more space
            than the disk has.
    """
    archives = [path for path in paths if is_archive(path)]
    if not archives:
        yield Unpacked(list(paths), {})
        return
    beside.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside.parent, prefix=UNFINISHED) as temporary:
        names: dict[Path, Path] = {}
        folders: dict[Path, Path] = {}
        notes: list[str] = []
        for number, path in enumerate(archives):
            folders[path] = Path(temporary, f"{number}")
            with open_source(path) as source:
                entries, lines = _leave_out_masks(source.entries)
                if source.others:
                    lines.append(
                        f"{len(source.others)} files are not images and are passed over, such as "
                        f"{source.others[0]}"
                    )
                notes += [f"{path}: {line}" for line in lines]
                names |= _write(entries, path, folders[path])
        yield Unpacked([folders.get(path, path) for path in paths], names, notes)


def _write(entries: Sequence[Entry], archive: Path, folder: Path) -> dict[Path, Path]:
    """Write the images of an archive, and return the name of each."""
    needed = sum(entry.size for entry in entries)
    if needed > shutil.disk_usage(folder.parent).free:
        raise UserError(
            f"{archive}: its images need {needed / 2**20:.0f} MiB unpacked, more than is free in "
            f"{folder.parent.parent}; give --out on another disk"
        )
    parents = [PurePosixPath(entry.name).parent for entry in entries]
    numbers = {parent: number for number, parent in enumerate(dict.fromkeys(parents))}
    targets = [
        folder
        / f"{numbers[parent]:06}"
        / f"{place:07}_{make_portable(entry.file_name)[-MAX_NAME:]}"
        for place, (entry, parent) in enumerate(zip(entries, parents, strict=True))
    ]
    # a compressed tar is read forwards only
    for target, entry in sorted(zip(targets, entries, strict=True), key=lambda pair: pair[1].place):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(entry.read())
    return {target: archive / entry.name for target, entry in zip(targets, entries, strict=True)}


def _leave_out_masks(entries: Sequence[Entry]) -> tuple[list[Entry], list[str]]:
    """Return the entries without masks of tumours, by their names, unless all are; and a note."""
    by_folder: dict[PurePosixPath, list[Entry]] = {}
    for entry in entries:
        by_folder.setdefault(PurePosixPath(entry.name).parent, []).append(entry)
    masks = {
        str(folder / name)
        for folder, inside in by_folder.items()
        for name in find_mask_names(folder.parts, [entry.file_name for entry in inside])
    }
    kept = [entry for entry in entries if entry.name not in masks]
    if not kept or len(kept) == len(entries):
        return list(entries), []
    n_masks = len(entries) - len(kept)
    note = f"{n_masks} masks of tumours, by their names, were passed over, such as {min(masks)}"
    return kept, [note]
