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

MAX_NAME = 200  # characters of a name that are kept
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
    """

    files: list[Path]
    names: dict[Path, Path]
    roots: list[Path]
    notes: list[str]


@contextlib.contextmanager
def store(files: Sequence[UploadFile], folder: Path) -> Iterator[Uploads]:
    """Store the files of a request below a folder, and delete them at the end.

    Raises:
        UserError: A file is too large; or an archive is damaged, unsafe, too large, or has no
            image.
    """
    with tempfile.TemporaryDirectory(dir=folder) as own:
        names: dict[Path, Path] = {}
        for number, file in enumerate(files):
            shown = clean_name(file.filename or "")
            # a folder for each folder of the client: DICOM series are found by folder
            suffix = shown.suffix if re.fullmatch(r"\.\w{1,8}", shown.suffix, re.ASCII) else ""
            path = Path(own, "files", f"{_number(shown, names)}", f"{number:05}{suffix}")
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as target:
                shutil.copyfileobj(file.file, target)
            names[path] = shown
        packed = [path for path in names if archives.is_archive(path)]
        for path in names:
            check_archive(path, names[path]) if path in packed else check_size(path, names[path])
        passed_over = image_stream.PassedOver()
        plain = {path: name for path, name in names.items() if path not in packed}
        single = leave_out_others(plain, passed_over)
        with archives.unpack([*single, *packed], Path(own, "unpacked", "x")) as unpacked:
            for path, name in unpacked.names.items():
                archive = next(each for each in packed if name.is_relative_to(each))
                names[path] = names[archive] / name.relative_to(archive)
            found = list(image_stream.find_files(unpacked.paths))
            roots = [Path(names[path].parts[0]) for path in single if len(names[path].parts) > 1]
            roots += [names[path] for path in packed]
            notes = [*passed_over.describe(), *unpacked.notes]
            for path in packed:
                notes = [note.replace(str(path), str(names[path])) for note in notes]
            yield Uploads(found, names, list(dict.fromkeys(roots)), notes)


def clean_name(name: str) -> Path:
    """Return the name that a client gave a file, as a relative path of printable characters."""
    text = "".join(letter for letter in name.replace("\\", "/") if letter.isprintable())
    parts = [part for part in PurePosixPath(text[-MAX_NAME:]).parts if part not in {"/", ".", ".."}]
    return Path(*parts) if parts else Path("file")


def _number(shown: Path, names: dict[Path, Path]) -> int:
    """Return the number of the client's folder of a file."""
    parents = list(dict.fromkeys(name.parent for name in names.values()))
    return parents.index(shown.parent) if shown.parent in parents else len(parents)


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


def check_size(path: Path, shown: Path) -> None:
    """Raise a UserError for a file that is over the limit of one file."""
    if path.stat().st_size > MAX_FILE_MIB * 2**20:
        raise UserError(f"{shown}: over the limit of {MAX_FILE_MIB} MiB a file")


def check_archive(path: Path, shown: Path) -> None:
    """Raise a UserError for an archive that is not to be unpacked here, without its path."""
    try:
        with open_source(path) as source:
            n_files, n_bytes = len(source.entries), sum(entry.size for entry in source.entries)
    except UserError as error:
        raise UserError(str(error).replace(str(path), str(shown))) from None
    if n_files > MAX_UNPACKED or n_bytes > MAX_UNPACKED_MIB * 2**20:
        raise UserError(
            f"{shown}: {n_files} images of {n_bytes / 2**20:.0f} MiB, over the limit of "
            f"{MAX_UNPACKED} and {MAX_UNPACKED_MIB} MiB; use predict.py"
        )
