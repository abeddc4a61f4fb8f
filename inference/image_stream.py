"""Find image files and read them in batches, before the network needs them."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, TypeVar

from helper import UserError
from imaging.bit_depth import Ranges, ValueScaler
from imaging.dicom import read_dicom_patient, read_header
from imaging.grayscale import ImageError, Pixels
from imaging.kinds import FORMATS, is_dicom, is_image_file, read_first_bytes
from imaging.pages import may_hold_several
from imaging.reader import count_frames, read_frames
from imaging.volumes import VolumeOptions
from preparation.masks import find_mask_names
from preparation.sources import count_suffixes

Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class Picture(Generic[Prepared]):
    """One image of a file, or the reason why it cannot be read."""

    path: Path
    frame: int = 0  # from 1 in a file of several frames, else 0
    series: str = ""  # pseudonym of the DICOM series; the file name for other pages
    patient: str = ""  # pseudonym of the DICOM patient
    prepared: Prepared | None = None  # result of `prepare` in `read_batches`; None: unreadable
    error: str = ""
    note: str = ""  # on its brightness, see `ValueScaler`
    n_lost: int = 0  # later frames that cannot be read either

    @property
    def name(self) -> str:
        """The path as it was found, with `#FRAME` in a file of several frames."""
        return f"{self.path.as_posix()}#{self.frame}" if self.frame else self.path.as_posix()


@dataclass
class PassedOver:
    """Files in folders that are not read: no images, and masks of tumours."""

    others: list[str] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)

    def describe(self) -> list[str]:
        """Return lines that count them."""
        lines = []
        if self.others:
            kinds = count_suffixes(self.others)
            lines.append(f"files that are not images were passed over: {kinds}")
        if self.masks:
            lines.append(
                f"{len(self.masks)} masks of tumours, by their names, were passed over, such as "
                f"{self.masks[0]}"
            )
        return lines


def check_paths(paths: Sequence[Path], exclude: Path | None = None) -> None:
    """Check that all paths exist and that none is inside the output folder.

    Raises:
        UserError: One is missing, or inside `exclude`.
    """
    excluded = None if exclude is None else exclude.resolve()
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; name images or folders of images")
        if excluded is not None and path.resolve().is_relative_to(excluded):
            raise UserError(f"{path} is inside the output folder {exclude}; name another folder")


def find_files(
    paths: Sequence[Path], exclude: Path | None = None, passed_over: PassedOver | None = None
) -> Iterator[Path]:
    """Yield the image files of files and folders in the given order, folders sorted by name.

    A named file is always yielded; files in folders are chosen by `is_image_file`, without masks
    (in a folder such as masks, or called like a picture beside them). A file or folder that cannot
    be opened is yielded too and becomes an error when it is read. Links to folders are not
    followed.

    Args:
        paths: Files and folders (`check_paths`).
        exclude: Output folder, which is skipped.
        passed_over: Takes the names of the files in folders that are not read.

    Raises:
        UserError: No image was found.
    """
    excluded = None if exclude is None else exclude.resolve()
    passed_over = PassedOver() if passed_over is None else passed_over
    found = False
    for path in paths:
        for file in _walk_folder(path, excluded, passed_over) if path.is_dir() else [path]:
            found = True
            yield file
    if not found:
        content = count_suffixes([*passed_over.others, *passed_over.masks]) or "empty"
        raise UserError(
            f"{', '.join(map(str, paths))}: no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image "
            f"({content})"
        )


def _walk_folder(folder: Path, excluded: Path | None, passed_over: PassedOver) -> Iterator[Path]:
    unreadable: list[Path] = []
    for parent, folders, names in os.walk(
        folder, onerror=lambda error: unreadable.append(Path(str(error.filename)))
    ):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and Path(parent, name).resolve() != excluded
        )
        masks = find_mask_names(Path(parent).relative_to(folder).parts, names)
        for name in sorted(names):
            path = Path(parent, name)
            if not _is_image_file(path):
                passed_over.others += [] if name.startswith(".") else [path.as_posix()]
            elif name in masks:
                passed_over.masks.append(path.as_posix())
            else:
                yield path
    yield from unreadable


def _is_image_file(path: Path) -> bool:
    """Return whether a file of a folder is to be read; pipes and sockets are not."""
    if path.exists() and not path.is_file():
        return False
    try:
        return is_image_file(path.name, lambda: read_first_bytes(path))
    except OSError:
        return True  # the error is reported when the file is read


def read_batches(
    files: Iterable[Path],
    prepare: Callable[[Pixels], Prepared],
    batch_size: int,
    *,
    overlap: bool,
    ranges: Ranges | None = None,
    volumes: VolumeOptions | None = None,
) -> Iterator[list[Picture[Prepared]]]:
    """Read files on all cores and yield their images in order, in batches.

    Files of several frames are read lazily, so that memory holds a few batches at most.

    Args:
        files: Image files.
        prepare: Called with the pixels of each image, in the thread that reads it.
        batch_size: Images in a batch.
        overlap: Read ahead by one batch. On a CPU it would take cores from the network.
        ranges: For values without a declared bit depth (`imaging.bit_depth`).
        volumes: How NIfTI and MATLAB files are read.
    """
    remaining = iter(files)
    waiting: deque[list[Future[Iterable[Picture[Prepared]]]]] = deque()
    batch: list[Picture[Prepared]] = []
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        while True:
            while len(waiting) <= overlap:
                chunk = list(itertools.islice(remaining, batch_size))
                if not chunk:
                    break
                waiting.append(
                    [pool.submit(_read_file, path, prepare, ranges, volumes) for path in chunk]
                )
            if not waiting:
                break
            for future in waiting.popleft():
                for picture in future.result():
                    batch.append(picture)
                    if len(batch) == batch_size:
                        yield batch
                        batch = []
    finally:
        pool.shutdown(cancel_futures=True)  # a caller that stops does not wait for all files
    if batch:
        yield batch


def _read_file(
    path: Path,
    prepare: Callable[[Pixels], Prepared],
    ranges: Ranges | None,
    volumes: VolumeOptions | None,
) -> Iterable[Picture[Prepared]]:
    """Return the images of a file; those of several frames as a lazy iterator."""
    picture: Picture[Prepared] = Picture(path)
    try:
        start = read_first_bytes(path)
        n_frames = count_frames(path, volumes) if may_hold_several(start) else 1
        series = path.name if n_frames > 1 else ""
        if is_dicom(start):
            picture = replace(picture, patient=read_dicom_patient(path))
            series = read_header(path).series or series
        picture = replace(picture, series=series)
        if n_frames > 1:
            return _read_frames(picture, n_frames, prepare, ranges, volumes)
        scaler = ValueScaler(ranges)
        pixels = next(iter(read_frames(path, scaler, volumes)))
        return [replace(picture, prepared=prepare(pixels), note=scaler.note)]
    except ImageError as error:
        return [replace(picture, error=error.reason)]
    except OSError as error:
        return [replace(picture, error=error.strerror or type(error).__name__)]


def _read_frames(
    picture: Picture[Prepared],
    n_frames: int,
    prepare: Callable[[Pixels], Prepared],
    ranges: Ranges | None,
    volumes: VolumeOptions | None,
) -> Iterator[Picture[Prepared]]:
    frame, scaler = 0, ValueScaler(ranges)
    try:
        for frame, pixels in enumerate(read_frames(picture.path, scaler, volumes), start=1):
            yield replace(picture, frame=frame, prepared=prepare(pixels), note=scaler.note)
    except ImageError as error:
        n_lost = n_frames - frame - 1
        more = f", and the {n_lost} frames after it are not read" if n_lost else ""
        yield replace(picture, frame=frame + 1, error=f"{error.reason}{more}", n_lost=n_lost)
