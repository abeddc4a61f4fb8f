"""Pictures on their way to a verdict: found, read ahead of the network, in batches."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from helper import UserError
from imaging.dicom import is_dicom, read_header
from imaging.grayscale import ImageError, Pixels
from imaging.reader import is_picture, read_frames, read_start

Made = TypeVar("Made")


@dataclass(frozen=True)
class Picture(Generic[Made]):
    """A picture of a file, or why there is none.

    Attributes:
        path: The file.
        frame: Its number from 1 where the file holds several, else 0.
        series: Pseudonym of the DICOM series, "" where there is none.
        made: What was made of the pixels; None where they cannot be read.
        error: Why not, else "".
        n_lost: Frames that come after it and cannot be read either.
    """

    path: Path
    frame: int
    series: str
    made: Made | None
    error: str
    n_lost: int = 0

    @property
    def name(self) -> str:
        """The file as it was found, with `#FRAME` where it holds several."""
        return f"{self.path.as_posix()}#{self.frame}" if self.frame else self.path.as_posix()


def find_files(paths: Sequence[Path], leave_out: Path | None = None) -> Iterator[Path]:
    """Every picture in files and folders, as they come; within a folder sorted by name.

    A file that is named is taken whatever it is called; within folders those are that
    `imaging.reader.is_picture` knows. A folder or file that cannot be opened is given too, and
    becomes an error when it is read. Links to folders are not followed.

    Args:
        paths: Files and folders.
        leave_out: A folder that is passed over, for it is written into.

    Raises:
        UserError: At once where a path is not there or is the folder that is written into; at the
            end where no picture was found.
    """
    written = None if leave_out is None else leave_out.resolve()
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; name pictures or folders of them")
        if written is not None and path.resolve().is_relative_to(written):
            raise UserError(f"{path} lies where is written to ({leave_out}); name another folder")
    return _walk(paths, written)


def _walk(paths: Sequence[Path], skipped: Path | None) -> Iterator[Path]:
    found = False
    for path in paths:
        for file in _walk_folder(path, skipped) if path.is_dir() else [path]:
            found = True
            yield file
    if not found:
        raise UserError(
            f"{', '.join(map(str, paths))}: no JPEG, PNG, TIFF, BMP or DICOM picture in it"
        )


def _walk_folder(folder: Path, skipped: Path | None) -> Iterator[Path]:
    closed: list[Path] = []
    for place, folders, names in os.walk(
        folder, onerror=lambda error: closed.append(Path(str(error.filename)))
    ):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and Path(place, name).resolve() != skipped
        )
        for name in sorted(names):
            path = Path(place, name)
            if _is_wanted(path):
                yield path
    yield from closed


def _is_wanted(path: Path) -> bool:
    """Whether a file in a folder is to be judged; pipes and sockets are no files."""
    if path.exists() and not path.is_file():
        return False
    try:
        return is_picture(path.name, lambda: read_start(path))
    except OSError:
        return True  # what cannot be opened is named when it is read


def read_batches(
    files: Iterable[Path],
    make: Callable[[Pixels], Made],
    batch_size: int,
    *,
    overlap: bool,
) -> Iterator[list[Picture[Made]]]:
    """Read files on all cores and give their pictures in order, some at a time.

    A file of many frames is read as it is given away, so that memory holds a few batches whatever
    comes.

    Args:
        files: Of `find_files`.
        make: What to make of the pixels, in the thread that read them.
        batch_size: Pictures in a batch.
        overlap: Read the next batch while this one is judged. On a CPU the readers would only take
            the cores from the network.
    """
    remaining = iter(files)
    waiting: deque[list[Future[Iterable[Picture[Made]]]]] = deque()
    batch: list[Picture[Made]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while True:
            while len(waiting) <= overlap:
                chunk = list(itertools.islice(remaining, batch_size))
                if not chunk:
                    break
                waiting.append([pool.submit(_read_file, path, make) for path in chunk])
            if not waiting:
                break
            for future in waiting.popleft():
                for picture in future.result():
                    batch.append(picture)
                    if len(batch) == batch_size:
                        yield batch
                        batch = []
    if batch:
        yield batch


def _read_file(path: Path, make: Callable[[Pixels], Made]) -> Iterable[Picture[Made]]:
    """The pictures of a file; those of several frames are still to be read."""
    series = ""
    try:
        if is_dicom(read_start(path)):
            header = read_header(path)
            series = header.series
            if header.n_frames > 1:
                return _read_frames(path, header.n_frames, series or path.name, make)
        pixels = next(iter(read_frames(path)))
        return [Picture(path, 0, series, make(pixels), "")]
    except ImageError as error:
        return [Picture(path, 0, series, None, error.reason)]
    except OSError as error:
        return [Picture(path, 0, series, None, error.strerror or type(error).__name__)]


def _read_frames(
    path: Path, n_frames: int, series: str, make: Callable[[Pixels], Made]
) -> Iterator[Picture[Made]]:
    frame = 0
    try:
        for frame, pixels in enumerate(read_frames(path), start=1):
            yield Picture(path, frame, series, make(pixels), "")
    except ImageError as error:
        n_lost = n_frames - frame - 1
        reason = (
            f"{error.reason}, and the {n_lost} frames after it are not read"
            if n_lost
            else error.reason
        )
        yield Picture(path, frame + 1, series, None, reason, n_lost)
