"""Open an archive or folder and list its images as entries that are safe to write.

Errors in a source are found before the first file is written.
"""

import contextlib
import functools
import gzip
import lzma
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

from common.file_starts import describe_start
from helper import UserError
from imaging.kinds import FORMATS, START_BYTES, find_kind, is_image_file, read_first_bytes

MAX_FILE_MIB = 128
_SYSTEM_FILES = {"__MACOSX", "Thumbs.db", "desktop.ini"}
_ZIP_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
_OTHER_METHODS = {9: "Deflate64", 93: "Zstandard", 95: "xz", 98: "PPMd"}
_ZIP_UTF8 = 0x800  # flag: the name is UTF-8
_ARCHIVE_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".rar", ".7z", ".bz2", ".xz")
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
    `container` names the file of which this image is one of several, or a volume.
    """

    name: str
    size: int
    place: int
    read: Callable[[], bytes] = field(repr=False, compare=False)
    peek: Callable[[], bytes] = field(default=bytes, repr=False, compare=False)
    container: str = ""

    @property
    def origin(self) -> str:
        """The name of the file in the source."""
        return self.container or self.name

    @property
    def file_name(self) -> str:
        """The last part of the name."""
        return PurePosixPath(self.name).name


@dataclass(frozen=True)
class Source:
    """The images of a source sorted by name, the names of its other files, and all its folders."""

    entries: list[Entry]
    others: list[str]
    folders: list[str] = field(default_factory=list)


@contextlib.contextmanager
def open_source(
    path: Path, skip: Path | None = None, *, follow_links: bool = False
) -> Iterator[Source]:
    """Open a .zip, .tar, .tar.gz (by content) or folder and list its images.

    Args:
        path: The archive or folder.
        skip: A folder inside the source folder to leave out.
        follow_links: Follow links that leave the source folder, too.

    Raises:
        UserError: The source is missing, not an archive, truncated, encrypted or has no images; an
            entry points outside the folder or is a link or device; an image is over the size limit.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give the archive or its unpacked folder")
    with contextlib.ExitStack() as stack:
        try:
            found: list[Entry | str]
            if path.is_dir():
                found = list(_walk_folder(path, skip, follow_links))
            elif (start := read_first_bytes(path)).startswith(b"PK"):
                found = list(_walk_zip(path, stack.enter_context(zipfile.ZipFile(path))))
            else:
                found = list(_walk_tar(path, stack.enter_context(_open_tar(path, start))))
        except _DAMAGE as error:
            raise _damaged(path, error) from error
        folders = [each for each in found if isinstance(each, str) and not _is_hidden(each)]
        visible = [each for each in found if isinstance(each, Entry) and not _is_hidden(each.name)]
        entries = [entry for entry in visible if is_image_file(entry.file_name, entry.peek)]
        entries.sort(key=lambda entry: (entry.name, entry.place))
        if not entries:
            raise UserError(
                f"{path}: no images in it ({count_suffixes([e.name for e in visible]) or 'empty'}; "
                f"formats: {', '.join(FORMATS)}); {_advise_without_images(visible)}"
            )
        for entry in entries:
            if entry.size > MAX_FILE_MIB * 2**20:
                raise UserError(
                    f"{path}: {entry.name} is {entry.size / 2**20:.0f} MiB, over the limit of "
                    f"{MAX_FILE_MIB} MiB per image; leave it out"
                )
        images = {entry.name for entry in entries}
        others = sorted(entry.name for entry in visible if entry.name not in images)
        yield Source(entries, others, folders)


def count_suffixes(names: Sequence[str]) -> str:
    """Count files by suffix, with an example of each: `3 .txt (a.txt), 1 without suffix (b)`."""
    by_suffix: dict[str, list[str]] = {}
    for name in names:
        by_suffix.setdefault(PurePosixPath(name).suffix.lower() or "without suffix", []).append(
            name
        )
    counts = sorted(by_suffix.items(), key=lambda item: -len(item[1]))
    return ", ".join(f"{len(found)} {suffix} ({found[0]})" for suffix, found in counts)


def _advise_without_images(others: Sequence[Entry]) -> str:
    """Return what to do with a source without images."""
    archives = [each.name for each in others if each.name.lower().endswith(_ARCHIVE_SUFFIXES)]
    if archives:
        return f"unpack the archives in it, such as {archives[0]}, and give their folder"
    return "give the archive or folder of class folders"


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part in _SYSTEM_FILES for part in name.split("/"))


def _check_name(where: Path, name: str) -> str:
    r"""Return the name without `./`; refuse unprintable ones and those outside the folder.

    Some programs on Windows write `\` between folders.
    """
    name = name.replace("\\", "/")
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        if where.is_dir():
            raise UserError(f"{where}: {name!r} begins like a drive of Windows; rename it")
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
    if "multiple disks" in reason:
        return UserError(f"{path}: one part of a split archive; unpack all parts, give the folder")
    return UserError(f"{path}: truncated or damaged ({reason}); download or copy it again")


def _walk_folder(root: Path, skip: Path | None, follow_links: bool) -> Iterator[Entry | str]:
    """List every visible file and folder below a folder, and follow links inside it."""
    inside, skipped = root.resolve(), skip.resolve() if skip else None

    def walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Entry | str]:
        for path in sorted(folder.iterdir()):
            relative = path.relative_to(root).as_posix()
            target = path.resolve()
            if _is_hidden(relative) or target == skipped:
                continue
            if path.is_symlink():
                if not path.exists():
                    raise UserError(f"{path} is a link to nothing; remove it")
                if not (follow_links or target.is_relative_to(inside)):
                    raise UserError(
                        f"{path} is a link that leaves the folder; remove it, or give "
                        "--follow-links"
                    )
            name = _check_name(root, relative)
            if path.is_dir():
                if target in above:
                    raise UserError(f"{path} is a link to a folder that holds it; remove it")
                yield name
                yield from walk(path, (*above, target))
            elif path.is_file():
                peek = functools.partial(read_first_bytes, path)
                yield Entry(name, path.stat().st_size, 0, path.read_bytes, peek)

    yield from walk(root, (inside,))


def _walk_zip(path: Path, archive: zipfile.ZipFile) -> Iterator[Entry | str]:
    for place, info in enumerate(archive.infolist()):
        name = _check_name(path, _decode_name(path, info))
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
            raise _unsafe(path, info.filename, "is a link or device")
        if info.flag_bits & 0x1:
            raise UserError(
                f"{path}: entry {info.filename!r} is encrypted; unpack it with its password and "
                "give the folder"
            )
        if info.orig_filename.endswith(("/", "\\")):
            yield name
            continue
        if info.compress_type not in _ZIP_METHODS:
            method = _OTHER_METHODS.get(info.compress_type, f"number {info.compress_type}")
            raise UserError(
                f"{path}: entry {info.filename!r} is compressed by the method {method}, which "
                "Python cannot read; unpack it with another program and give the folder"
            )
        opener = functools.partial(archive.open, info)
        yield _archived(path, name, info.file_size, place, opener)


def _decode_name(path: Path, info: zipfile.ZipInfo) -> str:
    """Return the name of an entry; without a stated encoding it is often UTF-8.

    Raises:
        UserError: A folder, which may be a class, has a name in an unknown encoding.
    """
    name = info.orig_filename
    if info.flag_bits & _ZIP_UTF8 or name.isascii():
        return name
    try:
        return name.encode("cp437").decode("utf-8")
    except UnicodeError:
        folder = name.replace("\\", "/").rpartition("/")[0]
        if folder.isascii():
            return name
        raise UserError(
            f"{path}: the encoding of the folder name {folder!r} is unknown; unpack the archive "
            "by hand, correct the name and give the folder"
        ) from None


def _open_tar(path: Path, start: bytes) -> tarfile.TarFile:
    if not start:
        raise UserError(f"{path}: empty file; download or copy it again")
    if kind := describe_start(start):
        raise UserError(f"{path}: {kind}, and give the archive or its unpacked folder")
    if find_kind(start):
        raise UserError(
            f"{path}: a single {find_kind(start)} image; give the folder of class folders"
        )
    is_gzip = start.startswith(b"\x1f\x8b")
    try:
        return tarfile.open(path, "r:gz") if is_gzip else tarfile.open(path, "r:")
    except (tarfile.ReadError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path}: not a .zip, .tar or .tar.gz archive, or truncated; give the downloaded "
            "archive or its unpacked folder"
        ) from error


def _walk_tar(path: Path, archive: tarfile.TarFile) -> Iterator[Entry | str]:
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
        if member.isdir():
            yield name
        else:
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
