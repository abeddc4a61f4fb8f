"""Replace the files of a source that hold several pictures by their pictures."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath

from tqdm import tqdm

from imaging.grayscale import ImageError
from imaging.kinds import START_BYTES
from imaging.pages import Page, may_hold_several, unpack
from imaging.reader import count_frames
from imaging.volumes import Stated, VolumeOptions, count_slices, find_volume_kind, read_stated
from preparation.folder_kinds import strip_suffix
from preparation.sources import Entry


@dataclass
class Unpacked:
    """The pictures of a source.

    Attributes:
        entries: An entry for each picture, sorted by name.
        n_files: Files of several pictures.
        n_pictures: Pictures in them.
        n_empty: Empty slices of volumes, which are left out.
        damaged: Why the later pictures of a file are lost, by the name of the file.
    """

    entries: list[Entry] = field(default_factory=list)
    n_files: int = 0
    n_pictures: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    n_empty: int = 0

    def describe(self) -> list[str]:
        """Return lines on files of several pictures."""
        lines = [
            f"{name}: its later pictures cannot be read ({reason})"
            for name, reason in self.damaged.items()
        ]
        if self.n_files:
            lines.append(
                f"{self.n_files} files hold several pictures, {self.n_pictures} in all: each "
                "becomes a file of its own, and those of one file stay in one group"
            )
        if self.n_empty:
            lines.append(f"{self.n_empty} empty slices of NIfTI volumes are left out")
        return lines


def unpack_entries(entries: Sequence[Entry], options: VolumeOptions | None = None) -> Unpacked:
    """Replace each file of several pictures, and each volume, by an entry for each picture.

    A file that is damaged from its first picture on stays as it is, and is counted as unreadable
    when it is read.
    """
    unpacked = Unpacked()
    last = _LastFile(options)
    for entry in tqdm(
        sorted(entries, key=lambda entry: entry.place),
        desc="looking for pages",
        unit="file",
        disable=None,
        leave=False,
    ):
        pages = _list_pages(entry, last, unpacked)
        unpacked.entries += pages or [entry]
        if len(pages) > 1:
            unpacked.n_files += 1
            unpacked.n_pictures += len(pages)
    unpacked.entries.sort(key=lambda entry: (entry.name, entry.place))
    return unpacked


def read_stated_facts(
    entries: Sequence[Entry], options: VolumeOptions | None = None
) -> dict[str, Stated]:
    """Return class, patient and outline of each entry that states one itself: MATLAB files."""
    found: dict[str, Stated] = {}
    for entry in sorted(entries, key=lambda entry: entry.place):  # compressed tars are slow else
        if find_volume_kind(entry.peek()) == "MATLAB":
            with contextlib.suppress(ImageError):  # reported when the file is measured
                found[entry.name] = read_stated(entry.read(), "MATLAB", options)
    return found


def _list_pages(entry: Entry, last: "_LastFile", unpacked: Unpacked) -> list[Entry]:
    """Return an entry for each picture of a file of several, else []."""
    start = entry.peek()
    if not may_hold_several(start):
        return []
    kind = find_volume_kind(start)
    content = entry.read()
    pages: list[Entry] = []
    try:
        if kind is not None:
            n_pictures, n_empty = count_slices(content, kind, last.options)
            unpacked.n_empty += n_empty
        elif (n_pictures := count_frames(content)) == 1:
            return []
        for number, page in enumerate(unpack(content, last.options), start=1):
            path = PurePosixPath(entry.name)
            place = f"_{number:04d}" if n_pictures > 1 else ""
            name = f"{strip_suffix(path.name)}{place}{page.suffix}"
            read = partial(last.read, entry, number)
            pages.append(
                Entry(
                    str(path.with_name(name)),
                    len(page.content),
                    entry.place,
                    read,
                    partial(_read_start, read),
                    container=entry.name,
                )
            )
    except ImageError as error:
        if pages:
            unpacked.damaged[entry.name] = error.reason
    return pages


def _read_start(read: partial[bytes]) -> bytes:
    return read()[:START_BYTES]


class _LastFile:
    """Unpacks the file of several pictures that is read at present, one picture after another."""

    def __init__(self, options: VolumeOptions | None) -> None:
        self.options = options
        self._name, self._number = "", 0
        self._pages: Iterator[Page] = iter(())

    def read(self, entry: Entry, number: int) -> bytes:
        """Return a picture; fast if it follows the one that was read last."""
        if (entry.name, number) != (self._name, self._number + 1):
            self._name, self._number = entry.name, 0
            self._pages = unpack(entry.read(), self.options)
        while self._number < number:
            page = next(self._pages)
            self._number += 1
        return page.content
