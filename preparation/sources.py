"""Open an archive or folder and list its images as entries that are safe to write.

Errors in a source are found before the first file is written.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from helper import UserError
from imaging.dicom import START_BYTES
from imaging.reader import IMAGE_SUFFIXES, is_image_file, read_first_bytes

MAX_FILE_MIB = 128
_SYSTEM_FILES = {"__MACOSX", "Thumbs.db", "desktop.ini"}
_TAR_BLOCK = 512  # bytes; a tar ends with blocks of zeros
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError),
    EOFError,
    NotImplementedError,  # a compression method that this Python lacks
)


@dataclass(frozen=True)
class Entry:
    """An image of a source: path inside it, bytes, position in the archive, and how to read it.

    `peek` reads the first START_BYTES alone. Compressed tars are slow unless read by `place`.
    """

    name: str
    size: int
    place: int
    read: Callable[[], bytes] = field(repr=False, compare=False)
    peek: Callable[[], bytes] = field(default=bytes, repr=False, compare=False)

    @property
    def file_name(self) -> str:
        """The last part of the name."""
        return PurePosixPath(self.name).name


@dataclass(frozen=True)
class Source:
    """The images of a source sorted by name, and the names of its other files."""

    entries: list[Entry]
    others: list[str]


@contextlib.contextmanager
def open_source(path: Path, skip: Path | None = None) -> Iterator[Source]:
    """Open a .zip, .tar, .tar.gz (by content) or folder and list its images.

    Args:
        path: The archive or folder.
        skip: A folder inside the source folder to leave out.

    Raises:
        UserError: The source is missing, not an archive, truncated, encrypted or has no images; an
            entry points outside the folder or is a link or device; an image is over the size limit.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give the archive or its unpacked folder")
    with contextlib.ExitStack() as stack:
        try:
            if path.is_dir():
                found = list(_walk_folder(path, skip))
            elif (start := read_first_bytes(path)).startswith(b"PK"):
                found = list(_walk_zip(path, stack.enter_context(zipfile.ZipFile(path))))
            else:
                found = list(_walk_tar(path, stack.enter_context(_open_tar(path, start))))
        except _DAMAGE as error:
            raise _damaged(path, error) from error
        visible = [entry for entry in found if not _is_hidden(entry.name)]
        entries = [entry for entry in visible if is_image_file(entry.file_name, entry.peek)]
        entries.sort(key=lambda entry: (entry.name, entry.place))
        if not entries:
            raise UserError(
                f"{path}: no images in it ({len(visible)} other files; expected suffixes: "
                f"{' '.join(IMAGE_SUFFIXES)}); give the archive or folder of class folders"
            )
        for entry in entries:
            if entry.size > MAX_FILE_MIB * 2**20:
                raise UserError(
                    f"{path}: {entry.name} is {entry.size / 2**20:.0f} MiB, over the limit of "
                    f"{MAX_FILE_MIB} MiB per image; leave it out"
                )
        images = {entry.name for entry in entries}
        others = sorted(entry.name for entry in visible if entry.name not in images)
        yield Source(entries, others)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part in _SYSTEM_FILES for part in name.split("/"))


def _check_name(where: Path, name: str) -> str:
    """Return the name without `./`; refuse unprintable ones and those outside the folder."""
    if "\\" in name or name.startswith("/") or re.match("[A-Za-z]:", name):
        raise _unsafe(where, name, "is not a relative path")
    if ".." in name.split("/"):
        raise _unsafe(where, name, "points outside the folder")
    # control characters, lone surrogates (undecodable bytes), line and paragraph separators
    if {unicodedata.category(character) for character in name} & {"Cc", "Cs", "Zl", "Zp"}:
        raise UserError(f"{where}: entry {name!r} has unprintable characters; rename it")
    return PurePosixPath(name).as_posix()


def _unsafe(where: Path, name: str, reason: str) -> UserError:
    return UserError(f"{where}: entry {name!r} {reason}; unpack it by hand and inspect it")


def _damaged(path: Path, error: BaseException) -> UserError:
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    return UserError(f"{path}: truncated or damaged ({reason}); download or copy it again")


def _walk_folder(root: Path, skip: Path | None) -> Iterator[Entry]:
    """List every visible file below a folder; links may point inside it, to files only."""
    inside, skipped = root.resolve(), skip.resolve() if skip else None

    def fail(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(root, onerror=fail):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if (here / name).resolve() != skipped)
        for name in sorted(folders + names):
            path = here / name
            relative = path.relative_to(root).as_posix()
            if _is_hidden(relative):
                continue
            if path.is_symlink() and not (path.exists() and path.resolve().is_relative_to(inside)):
                raise UserError(f"{path} is a link that points outside the folder; remove it")
            _check_name(root, relative)
            if path.is_file():
                peek = functools.partial(read_first_bytes, path)
                yield Entry(relative, path.stat().st_size, 0, path.read_bytes, peek)
        folders[:] = [name for name in folders if not _is_hidden(name)]


def _walk_zip(path: Path, archive: zipfile.ZipFile) -> Iterator[Entry]:
    for place, info in enumerate(archive.infolist()):
        name = _check_name(path, info.orig_filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
            raise _unsafe(path, info.filename, "is a link or device")
        if info.flag_bits & 0x1:
            raise UserError(
                f"{path}: entry {info.filename!r} is encrypted; unpack it with its password and "
                "give the folder"
            )
        if not info.is_dir():
            opener = functools.partial(archive.open, info)
            yield _archived(path, name, info.file_size, place, opener)


def _open_tar(path: Path, start: bytes) -> tarfile.TarFile:
    if not start:
        raise UserError(f"{path}: empty file; download or copy it again")
    is_gzip = start.startswith(b"\x1f\x8b")
    try:
        return tarfile.open(path, "r:gz") if is_gzip else tarfile.open(path, "r:")
    except (tarfile.ReadError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path}: not a .zip, .tar or .tar.gz archive, or truncated; give the downloaded "
            "archive or its unpacked folder"
        ) from error


def _walk_tar(path: Path, archive: tarfile.TarFile) -> Iterator[Entry]:
    members = archive.getmembers()  # reads the archive to its end
    stream = archive.fileobj
    assert stream is not None
    stream.seek(archive.offset)
    if stream.read(_TAR_BLOCK) != bytes(_TAR_BLOCK):
        raise tarfile.ReadError("the end of the tar is missing")
    while stream.read(2**20):  # the checksum of a compressed archive is at its end
        pass
    for place, member in enumerate(members):
        name = _check_name(path, member.name)
        if not member.isfile() and not member.isdir():
            raise _unsafe(path, member.name, "is a link or device")
        if member.isfile():
            opener = functools.partial(archive.extractfile, member)
            yield _archived(path, name, member.size, place, opener)


def _archived(
    path: Path, name: str, size: int, place: int, opener: Callable[[], IO[bytes] | None]
) -> Entry:
    """Return an archive's entry; reading it fails if the content is damaged or too short."""

    def read(n_bytes: int = size) -> bytes:
        try:
            stream = opener()
            assert stream is not None  # tarfile returns None for links, which were refused
            with stream:
                content = stream.read(n_bytes)
        except _DAMAGE as error:
            raise _damaged(path, error) from error
        if len(content) != n_bytes:
            raise _damaged(path, EOFError(f"{name} ends early"))
        return content

    return Entry(name, size, place, read, functools.partial(read, min(START_BYTES, size)))
