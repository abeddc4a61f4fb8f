"""Replace the files of a source that hold several pictures by their pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath

from tqdm import tqdm

from imaging.grayscale import ImageError
from imaging.kinds import START_BYTES
from imaging.pages import Page, may_hold_several, unpack
from imaging.reader import count_frames
from preparation.folder_kinds import strip_suffix
from preparation.sources import Entry


@dataclass
class Unpacked:
    """The pictures of a source.

    Attributes:
        entries: An entry for each picture, sorted by name.
        n_files: Files of several pictures.
        n_pictures: Pictures in them.
        damaged: Why the later pictures of a file are lost, by the name of the file.
    """

    entries: list[Entry] = field(default_factory=list)
    n_files: int = 0
    n_pictures: int = 0
    damaged: dict[str, str] = field(default_factory=dict)

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
        return lines


def unpack_entries(entries: Sequence[Entry]) -> Unpacked:
    """Replace each file of several pictures by an entry for each of its pictures.

    A file that is damaged from its first picture on stays as it is, and is counted as unreadable
    when it is read.
    """
    unpacked = Unpacked()
    last = _LastFile()
    for entry in tqdm(
        sorted(entries, key=lambda entry: entry.place),
        desc="looking for pages",
        unit="file",
        disable=None,
        leave=False,
    ):
        pages = _list_pages(entry, last, unpacked.damaged)
        unpacked.entries += pages or [entry]
        unpacked.n_files += bool(pages)
        unpacked.n_pictures += len(pages)
    unpacked.entries.sort(key=lambda entry: (entry.name, entry.place))
    return unpacked


def _list_pages(entry: Entry, last: "_LastFile", damaged: dict[str, str]) -> list[Entry]:
    """Return an entry for each picture of a file of several, else []."""
    if not may_hold_several(entry.peek()):
        return []
    content = entry.read()
    pages: list[Entry] = []
    try:
        if count_frames(content) == 1:
            return []
        for number, page in enumerate(unpack(content), start=1):
            path = PurePosixPath(entry.name)
            name = f"{strip_suffix(path.name)}_{number:04d}{page.suffix}"
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
            damaged[entry.name] = error.reason
    return pages


def _read_start(read: partial[bytes]) -> bytes:
    return read()[:START_BYTES]


class _LastFile:
    """Unpacks the file of several pictures that is read at present, one picture after another."""

    def __init__(self) -> None:
        self._name, self._number = "", 0
        self._pages: Iterator[Page] = iter(())

    def read(self, entry: Entry, number: int) -> bytes:
        """Return a picture; fast if it follows the one that was read last."""
        if (entry.name, number) != (self._name, self._number + 1):
            self._name, self._number = entry.name, 0
            self._pages = unpack(entry.read())
        while self._number < number:
            page = next(self._pages)
            self._number += 1
        return page.content
