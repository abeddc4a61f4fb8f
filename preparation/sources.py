"""A source of pictures, archive or folder, as a list of entries that are safe to write.

Everything that is wrong with a source is found here, before anything is written.
"""

import contextlib
import functools
import gzip
import lzma
import os
import re
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from helper import UserError
from imaging.dicom import START_BYTES
from imaging.reader import IMAGE_SUFFIXES, is_picture, read_start

MAX_FILE_MIB = 128
ALIASES = {"brain_glioma": "Glioma", "brain_menin": "Menin", "brain_tumor": "Tumor"}
_SYSTEM_FILES = {"__MACOSX", "Thumbs.db", "desktop.ini"}
_TAR_BLOCK = 512  # bytes; a tar ends with blocks of zeros
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # a way of packing that this Python has not
)


@dataclass(frozen=True)
class Entry:
    """A picture inside a source: its name there, size in bytes, place, and how to read it.

    `peek` reads its first START_BYTES alone.
    """

    name: str
    size: int
    place: int
    read: Callable[[], bytes] = field(repr=False, compare=False)
    peek: Callable[[], bytes] = field(default=bytes, repr=False, compare=False)


@dataclass(frozen=True)
class Source:
    """An opened source.

    `entries` are its pictures sorted by name; read them in the order of `place`, for a compressed
    tar is slow in any other. `others` names the files that are no pictures.
    """

    path: Path
    entries: list[Entry]
    others: list[str]


@dataclass(frozen=True)
class PlannedFile:
    """An entry and where it goes: `target` is relative to the data folder, in POSIX form."""

    entry: Entry
    label: str
    target: str


@contextlib.contextmanager
def open_source(path: Path, skip: Path | None = None) -> Iterator[Source]:
    """Open a .zip, .tar or compressed .tar by what it is, or a folder, and list its pictures.

    Args:
        path: The archive or folder.
        skip: A folder inside the source folder that is no part of it.

    Raises:
        UserError: Nothing there, no archive, cut short, encrypted, without pictures; a name that
            leaves the folder, a link or a device inside it, a picture over the size limit.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give the archive or its unpacked folder")
    with contextlib.ExitStack() as stack:
        try:
            if path.is_dir():
                found = list(_walk_folder(path, skip))
            elif _is_zip(path):
                found = list(_walk_zip(path, stack.enter_context(zipfile.ZipFile(path))))
            else:
                found = list(_walk_tar(path, stack.enter_context(_open_tar(path))))
        except _DAMAGE as error:
            raise _damaged(path, error) from error
        shown = [entry for entry in found if not _is_hidden(entry.name)]
        entries = [entry for entry in shown if is_picture(_file_name(entry), entry.peek)]
        entries.sort(key=lambda entry: (entry.name, entry.place))
        if not entries:
            raise UserError(
                f"{path}: no pictures in it ({len(shown)} other files; wanted are "
                f"{' '.join(IMAGE_SUFFIXES)}); give the archive or folder of class folders"
            )
        for entry in entries:
            if entry.size > MAX_FILE_MIB * 2**20:
                raise UserError(
                    f"{path}: {entry.name} is {entry.size / 2**20:.0f} MiB, over the limit of "
                    f"{MAX_FILE_MIB} MiB a picture; leave it out"
                )
        pictures = {entry.name for entry in entries}
        others = sorted(entry.name for entry in shown if entry.name not in pictures)
        yield Source(path, entries, others)


def plan_files(
    entries: Sequence[Entry], where: Path, use_aliases: bool = True
) -> list[PlannedFile]:
    """Decide class and file name of every picture; the same entries give the same plan.

    The class is the picture's parent folder, so that Training/ and Testing/ above merge. The
    publisher's three names are replaced by ALIASES when the source holds no other class. A name
    taken within the class, also on file systems blind to case, gets `_2`, `_3`, ...

    Raises:
        UserError: A picture outside class folders, fewer than two classes, or class folders
            that some file systems take for one.
    """
    parents = {entry.name: PurePosixPath(entry.name).parent for entry in entries}
    _check_folders(parents, where)
    classes = sorted({parent.name for parent in parents.values()})
    aliases = ALIASES if use_aliases and set(classes) <= set(ALIASES) else {}
    planned: list[PlannedFile] = []
    originals = {(parents[entry.name].name, fold_name(_file_name(entry))) for entry in entries}
    taken: set[tuple[str, str]] = set()
    for entry in entries:
        name, label = _file_name(entry), parents[entry.name].name
        plain = PurePosixPath(name)
        number = 1
        while (label, fold_name(name)) in taken or (
            number > 1 and (label, fold_name(name)) in originals
        ):
            number += 1
            name = f"{plain.stem}_{number}{plain.suffix}"
        taken.add((label, fold_name(name)))
        label = aliases.get(label, label)
        planned.append(PlannedFile(entry, label, f"Images/{label}/{name}"))
    return planned


def fold_name(name: str) -> str:
    """A name as the least exact file system compares it: blind to case and to composed accents."""
    folded = unicodedata.normalize("NFC", name).casefold()
    return unicodedata.normalize("NFC", folded)


def check_clashes(planned: Sequence[PlannedFile], present: Sequence[str], data_dir: Path) -> None:
    """Refuse a plan whose paths differ only by case from files that are there already.

    Raises:
        UserError: Names the first of them.
    """
    by_fold = {fold_name(part): part for path in present for part in _with_folder(path)}
    for file in planned:
        for part in _with_folder(file.target):
            there = by_fold.get(fold_name(part), part)
            if there != part:
                raise UserError(
                    f"{data_dir / there} exists, and {part} of the source is the same on some "
                    "systems; choose another --data, or give it one name"
                )


def _check_folders(parents: dict[str, PurePosixPath], where: Path) -> None:
    folders = set(parents.values())
    for name, folder in parents.items():
        if not folder.name:
            raise UserError(
                f"{where}: {name} is in no class folder; put every picture into a folder named "
                "as its class"
            )
    for folder in sorted(folders):
        if inside := next((other for other in folder.parents if other in folders), None):
            raise UserError(
                f"{where}: folder {inside} holds pictures and folder {folder} inside it too; "
                "which is the class? Keep the pictures of a class in one of them"
            )
    classes = sorted({folder.name for folder in folders})
    first: dict[str, str] = {}
    for label in classes:
        if label[0] in "=+-@" or "|" in label:
            raise UserError(
                f"{where}: class folder {label!r} would be a formula in a spreadsheet, or two "
                "names in a list; rename it"
            )
        if first.setdefault(fold_name(label), label) != label:
            raise UserError(
                f"{where}: class folders {first[fold_name(label)]} and {label} are one folder on "
                "some systems; give them one name"
            )
    if len(classes) < 2:
        raise UserError(
            f"{where}: one class only ({classes[0]}); a classifier needs two or more class folders"
        )


def _with_folder(path: str) -> tuple[str, str]:
    return str(PurePosixPath(path).parent), path


def _file_name(entry: Entry) -> str:
    return PurePosixPath(entry.name).name


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part in _SYSTEM_FILES for part in name.split("/"))


def _check_name(where: Path, name: str) -> str:
    """The name without `./`; refuses what leaves the folder or could not be written down."""
    if "\\" in name or name.startswith("/") or re.match("[A-Za-z]:", name):
        raise UserError(f"{where}: entry {name!r} is no plain path; unpack it by hand and look")
    if ".." in name.split("/"):
        raise UserError(f"{where}: entry {name!r} leaves the folder; unpack it by hand and look")
    # control characters, half characters (bytes that are no text), line and paragraph ends
    if {unicodedata.category(character) for character in name} & {"Cc", "Cs", "Zl", "Zp"}:
        raise UserError(f"{where}: entry {name!r} has characters that are no text; rename it")
    return PurePosixPath(name).as_posix()


def _damaged(path: Path, error: BaseException) -> UserError:
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    return UserError(f"{path}: cut short or damaged ({reason}); download or copy it again")


def _reader(path: Path, name: str, size: int, opener: Callable[[], IO[bytes]]) -> bytes:
    """The first `size` bytes of an archive's entry, or an error where it has fewer."""
    try:
        with opener() as stream:
            content = stream.read(size)
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    if len(content) != size:
        raise _damaged(path, EOFError(f"{name} ends early"))
    return content


def _walk_folder(root: Path, skip: Path | None) -> Iterator[Entry]:
    """Every visible file below a folder; links may point inside it, and only files are followed."""
    inside, skipped = root.resolve(), skip.resolve() if skip else None
    for folder, folders, names in os.walk(root, onerror=_raise):
        here = Path(folder)
        for name in sorted(folders + names):
            path = here / name
            relative = path.relative_to(root).as_posix()
            if _is_hidden(relative) or path.resolve() == skipped:
                continue
            if path.is_symlink() and not (path.exists() and path.resolve().is_relative_to(inside)):
                raise UserError(f"{path} is a link that leaves the folder; remove it")
            _check_name(root, relative)
            if path.is_file():
                peek = functools.partial(read_start, path)
                yield Entry(relative, path.stat().st_size, 0, path.read_bytes, peek)
        folders[:] = sorted(
            name for name in folders if not _is_hidden(name) and (here / name).resolve() != skipped
        )


def _raise(error: OSError) -> None:
    raise error


def _is_zip(path: Path) -> bool:
    with path.open("rb") as stream:
        start = stream.read(4)
    if not start:
        raise UserError(f"{path}: empty file; download or copy it again")
    return start.startswith(b"PK")


def _walk_zip(path: Path, archive: zipfile.ZipFile) -> Iterator[Entry]:
    for place, info in enumerate(archive.infolist()):
        name = _check_name(path, info.orig_filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
            raise UserError(
                f"{path}: entry {info.filename!r} is a link or device; unpack it by hand and look"
            )
        if info.flag_bits & 0x1:
            raise UserError(
                f"{path}: entry {info.filename!r} is encrypted; unpack it with its password and "
                "give the folder"
            )
        if not info.is_dir():

            def read(size: int = info.file_size, info: zipfile.ZipInfo = info) -> bytes:
                return _reader(path, info.filename, size, lambda: archive.open(info))

            peek = functools.partial(read, min(START_BYTES, info.file_size))
            yield Entry(name, info.file_size, place, read, peek)


def _open_tar(path: Path) -> tarfile.TarFile:
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    try:
        return tarfile.open(path, "r:gz") if packed else tarfile.open(path, "r:")
    except (tarfile.ReadError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path}: no .zip, .tar or .tar.gz archive, or cut short; give the downloaded archive "
            "or its unpacked folder"
        ) from error


def _walk_tar(path: Path, archive: tarfile.TarFile) -> Iterator[Entry]:
    members = archive.getmembers()  # reads the archive to its end
    stream = archive.fileobj
    assert stream is not None
    stream.seek(archive.offset)
    if stream.read(_TAR_BLOCK) != bytes(_TAR_BLOCK):
        raise tarfile.ReadError("it does not end as a tar does")
    while stream.read(2**20):  # a compressed one has its checksum at the end
        pass
    for place, member in enumerate(members):
        name = _check_name(path, member.name)
        if member.issym() or member.islnk():
            raise UserError(f"{path}: entry {member.name!r} is a link; unpack it by hand and look")
        if not member.isfile() and not member.isdir():
            raise UserError(
                f"{path}: entry {member.name!r} is no plain file; unpack it by hand and look"
            )
        if member.isfile():

            def read(size: int = member.size, member: tarfile.TarInfo = member) -> bytes:
                return _reader(path, member.name, size, lambda: _extract(archive, member))

            peek = functools.partial(read, min(START_BYTES, member.size))
            yield Entry(name, member.size, place, read, peek)


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    stream = archive.extractfile(member)
    assert stream is not None
    return stream
