"""Files of one request: stored under safe names, unpacked, named as the client named them."""

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from starlette.datastructures import UploadFile

from helper import UserError
from imaging.kinds import is_image_file, read_first_bytes
from inference import archives, image_stream
from preparation.masks import find_mask_names
from preparation.sources import MAX_FILE_MIB, open_source

MAX_NAME = 1_000  # characters of a name that are kept
MAX_UNPACKED = 2_000  # files of an archive
MAX_UNPACKED_MIB = 1_024


@dataclass(frozen=True)
class Uploads:
    """The images of a request.

    Attributes:
        files: Paths of the images.
        names: The name of each image to show.
        roots: Folders and archives that the client sent, by those names.
        notes: Files that were passed over.
        errors: Names of the files that were not taken, with the reason.
    """

    files: list[Path]
    names: dict[Path, Path]
    roots: list[Path]
    notes: list[str]
    errors: list[tuple[str, str]]


@contextlib.contextmanager
def store(files: Sequence[UploadFile], folder: Path) -> Iterator[Uploads]:
    """Store the files of a request below a folder, and delete them at the end.

    A file that is too large, or an archive that is damaged, unsafe, too large or without images, is
    an error of its own; the others are taken.

    Raises:
        UserError: The only file was not taken.
    """
    with tempfile.TemporaryDirectory(dir=folder) as own, contextlib.ExitStack() as stack:
        names = save(files, Path(own, "files"))
        packed = [path for path, name in names.items() if is_packed(path, name)]
        passed_over = image_stream.PassedOver()
        plain = {path: name for path, name in names.items() if path not in packed}
        kept = leave_out_others(plain, passed_over)
        found = Uploads([], names, [], passed_over.describe(), [])
        for path in kept:
            if path.stat().st_size > MAX_FILE_MIB * 2**20:
                name = names[path].as_posix()
                found.errors.append((name, f"{name}: over the limit of {MAX_FILE_MIB} MiB a file"))
                continue
            found.files.append(path)
            if len(names[path].parts) > 1:
                found.roots.append(Path(names[path].parts[0]))
        for path, shown in number_equal({path: names[path] for path in packed}).items():
            try:
                check_archive(path)
                inside = stack.enter_context(archives.unpack([path], Path(own, "unpacked", "x")))
                found.files.extend(image_stream.find_files(inside.paths))
            except UserError as error:
                found.errors.append((shown.as_posix(), rename(str(error), path, shown)))
                continue
            found.names.update(
                {each: shown / name.relative_to(path) for each, name in inside.names.items()}
            )
            found.roots.append(shown)
            found.notes.extend(rename(note, path, shown) for note in inside.notes)
        if found.errors and len(files) == 1:
            raise UserError(found.errors[0][1])
        found.roots[:] = dict.fromkeys(found.roots)
        yield found


def save(files: Sequence[UploadFile], folder: Path) -> dict[Path, Path]:
    """Write the files of a request, and return the name of each to show.

    Each folder of the client has one of its own: DICOM series are found by folder.
    """
    names: dict[Path, Path] = {}
    numbers: dict[Path, int] = {}
    for place, file in enumerate(files):
        shown = clean_name(file.filename or "")
        number = numbers.setdefault(shown.parent, len(numbers))
        suffix = shown.suffix if re.fullmatch(r"\.\w{1,8}", shown.suffix, re.ASCII) else ""
        path = folder / f"{number}" / f"{place:05}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as target:
            shutil.copyfileobj(file.file, target)
        names[path] = shown
    return names


def is_packed(path: Path, shown: Path) -> bool:
    """Return whether a file is an archive; in a folder, by its suffix only.

    Office documents, and voxel files that begin with zeros, have the content of archives.
    """
    if shown.parent != Path():
        return shown.name.lower().endswith(archives.SUFFIXES)
    return archives.is_archive(path)


def number_equal(names: dict[Path, Path]) -> dict[Path, Path]:
    """Return the names with a number after those that occurred before."""
    taken = set(names.values())
    numbered: dict[Path, Path] = {}
    for path, name in names.items():
        shown, number = name, 1
        while shown in numbered.values() or (number > 1 and shown in taken):
            number += 1
            shown = name.with_stem(f"{name.stem} ({number})")
        numbered[path] = shown
    return numbered


def clean_name(name: str) -> Path:
    """Return the name that a client gave a file, as a relative path of printable characters."""
    text = "".join(letter for letter in name.replace("\\", "/") if letter.isprintable())
    parts = [part for part in PurePosixPath(text[-MAX_NAME:]).parts if part not in {"/", ".", ".."}]
    return Path(*parts) if parts else Path("file")


def leave_out_others(names: dict[Path, Path], passed_over: image_stream.PassedOver) -> list[Path]:
    """Return the files without those of dropped folders that are no images, or masks of tumours.

    Args:
        names: What the client calls each file; one without a folder is kept, whatever it is.
        passed_over: Takes the names of those left out.
    """
    kept = []
    by_folder: dict[Path, list[Path]] = {}
    for path, name in names.items():
        by_folder.setdefault(name.parent, []).append(path)
    for folder, paths in by_folder.items():
        masks = find_mask_names(folder.parts, [names[path].name for path in paths])
        for path in paths:
            file_name, shown = names[path].name, names[path].as_posix()
            if folder == Path():
                kept.append(path)
            elif not is_image_file(file_name, partial(read_first_bytes, path)):
                passed_over.others.append(shown)
            elif file_name in masks:
                passed_over.masks.append(shown)
            else:
                kept.append(path)
    return kept


def rename(line: str, path: Path, shown: Path) -> str:
    """Return a line about a file with the name that the client gave it."""
    return line.replace(str(path), shown.as_posix())


def check_archive(path: Path) -> None:
    """Raise a UserError for an archive that is not to be unpacked here."""
    with open_source(path) as source:
        n_files, n_bytes = len(source.entries), sum(entry.size for entry in source.entries)
    size = f"{path}: {n_files} images of {n_bytes / 2**20:.0f} MiB"
    if n_files > MAX_UNPACKED or n_bytes > MAX_UNPACKED_MIB * 2**20:
        raise UserError(
            f"{size}, over the limit of {MAX_UNPACKED} and {MAX_UNPACKED_MIB} MiB; use predict.py"
        )
    if n_bytes > shutil.disk_usage(path.parent).free:
        raise UserError(f"{size}, more than is free on the disk of this program")
