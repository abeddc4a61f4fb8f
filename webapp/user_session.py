"""What each reader of app.py's page has before them: a file, a verdict, heat maps; many files."""

import contextlib
import dataclasses
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imaging.dicom import is_dicom, read_header
from imaging.grayscale import ImageError, Pixels
from imaging.reader import read_frames, read_start
from inference import image_stream, output_table
from inference.predictor import PreprocessedSlice, SliceClassifier, Verdict
from preparation.sources import MAX_FILE_MIB

BATCH_SIZE = 32
GONE = "no longer here; drop it again"


# ---- one slice


@dataclass
class Desk:
    """What lies before one reader: a file, one picture of it, and what is said of that.

    Attributes:
        turn: Counts what was laid here, so that a heat map which comes late is told from its own.
        name: The file as it was called where it came from.
        upload: Where it was uploaded to.
        path: Where it lies, while more of its frames may be asked for.
        frame: Which of them the picture is, from 1.
        n_frames: How many there are.
        slice: The picture; None: nothing lies here.
        verdict: On it.
        heatmaps: By class, fp32 [H, W] in 0..1.
        class_name: Whose heat map is wanted.
    """

    turn: int = 0
    name: str = ""
    upload: Path | None = None
    path: Path | None = None
    frame: int = 1
    n_frames: int = 1
    slice: PreprocessedSlice | None = None
    verdict: Verdict | None = None
    heatmaps: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    class_name: str = ""

    def clear(self) -> None:
        """Take the picture away."""
        self.turn += 1
        self.slice = self.verdict = None
        self.heatmaps, self.class_name = {}, ""

    def delete_file(self) -> None:
        """Keep no file for further frames."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
        self.path, self.frame, self.n_frames = None, 1, 1


def check_upload(path: Path, folder: Path) -> Path:
    """A file that a client names as dropped, as it really lies; it may be gone.

    Raises:
        ImageError: It does not lie in the folder of what is dropped, or is no file.
    """
    found = path.resolve()
    if not found.is_relative_to(folder.resolve()) or (found.exists() and not found.is_file()):
        raise ImageError("not dropped on this page")
    return found


def lay_file(desk: Desk, classifier: SliceClassifier, path: Path) -> None:
    """Judge the first picture of a file; the file is deleted unless it holds more of them.

    Raises:
        ImageError: It is gone, too large or no picture; its name is not told, it may be a
            patient's.
    """
    if path == desk.upload and desk.slice is not None and not path.exists():
        return  # dropped twice before it was answered: one content has one place
    desk.clear()
    desk.delete_file()
    own = path.with_name(secrets.token_hex(8))  # another reader may drop the same content
    try:
        path.rename(own)
    except FileNotFoundError:
        raise ImageError(GONE) from None
    desk.name, desk.upload, desk.path = path.name, path, own
    try:
        if own.stat().st_size > MAX_FILE_MIB * 2**20:
            raise ImageError(f"over the limit of {MAX_FILE_MIB} MiB a file")
        desk.n_frames = read_header(own).n_frames if is_dicom(read_start(own)) else 1
        lay_frame(desk, classifier, 1)
    finally:
        if desk.slice is None or desk.n_frames == 1:
            desk.delete_file()  # behind a frame that cannot be read none can be


def lay_frame(desk: Desk, classifier: SliceClassifier, number: int) -> None:
    """Judge one picture of the file on the desk, counted from 1.

    Raises:
        ImageError: It cannot be read, there are not so many, or the file is gone.
    """
    desk.clear()
    if desk.path is None or not desk.path.exists():
        raise ImageError(GONE)
    os.utime(desk.path)  # in use: `sweep` spares it
    desk.frame = number
    preprocessed = classifier.preprocess(read_frame(desk.path, number))
    desk.verdict = classifier.judge([preprocessed])[0]
    desk.class_name = desk.verdict.predicted
    desk.slice = preprocessed


def read_frame(path: Path, number: int) -> Pixels:
    """One picture of a file, counted from 1: uint8 [H, W].

    Raises:
        ImageError: It cannot be read, or there are not so many.
    """
    for current, pixels in enumerate(read_frames(path), start=1):
        if current == number:
            return pixels
    raise ImageError(f"it has no frame {number}")


def make_heatmap(desk: Desk, classifier: SliceClassifier) -> None:
    """Make the heat map of the class that is wanted, once; one that comes too late is dropped."""
    turn, preprocessed, class_name = desk.turn, desk.slice, desk.class_name
    if preprocessed is None or class_name in desk.heatmaps:
        return
    heatmap = classifier.explain(preprocessed, class_name)
    if desk.turn == turn:
        desk.heatmaps[class_name] = heatmap


# ---- many files


def judge_files(
    classifier: SliceClassifier, paths: Sequence[Path]
) -> Iterator[list[output_table.Row]]:
    """The rows of predict.py's table, a batch at a time; the files are deleted when they are read.

    Each file stands under its plain name; the slices of a DICOM series have one more row together.
    """
    tally = output_table.SeriesTally(classifier.classes)
    try:
        faults = [(path, _find_fault(path)) for path in paths]
        yield [
            output_table.describe_picture(path.name, None, fault, classifier.classes)
            for path, fault in faults
            if fault
        ]
        readable = [path for path, fault in faults if not fault]
        batches = image_stream.read_batches(
            readable, classifier.preprocess, BATCH_SIZE, overlap=classifier.device.type != "cpu"
        )
        for batch in batches:
            rows: list[output_table.Row] = []
            for picture, verdict in output_table.judge_batch(classifier, batch):
                own = dataclasses.replace(picture, path=Path(picture.path.name))
                rows += tally.add(own, verdict)
                row = output_table.describe_picture(
                    own.name, verdict, own.error, classifier.classes
                )
                rows.append(row)
            yield rows
        yield [{**row, "file": row["file"].removeprefix(".#")} for row in tally.close()]
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def _find_fault(path: Path) -> str:
    """Why a file is not even opened, else ""."""
    try:
        is_small = path.stat().st_size <= MAX_FILE_MIB * 2**20
    except FileNotFoundError:
        return GONE
    return "" if is_small else f"over the limit of {MAX_FILE_MIB} MiB a file"


# ---- what nobody comes back to


def sweep(folder: Path, age_s: float) -> None:
    """Delete the files in a folder and below that nobody has used for that long."""
    before_s = time.time() - age_s
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another deletes it, or a system keeps what is open
            if path.is_file() and path.stat().st_mtime < before_s:
                path.unlink()
