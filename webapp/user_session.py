"""State and actions of one user of the page: an uploaded file, its prediction, its heat maps."""

import contextlib
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imaging.bit_depth import ValueScaler
from imaging.grayscale import ImageError, Pixels
from imaging.reader import count_frames, read_frames
from inference.image_stream import Picture
from inference.output_table import Row
from inference.pipeline import RowBuilder, predict_batches
from inference.predictor import Prediction, PreprocessedSlice, SlicePredictor
from preparation.sources import MAX_FILE_MIB

FILE_DELETED = "the file was deleted; drop it again"


# ---- one slice


@dataclass
class Session:
    """The file of one user, one image of it and the prediction."""

    version: int = 0  # increases with each image: a late heat map of another one is discarded
    name: str = ""  # original name of the file
    upload: Path | None = None  # where it was uploaded to
    path: Path | None = None  # where it is now; None unless it has several frames
    frame: int = 1  # of the image, from 1
    n_frames: int = 1
    slice: PreprocessedSlice | None = None
    prediction: Prediction | None = None
    note: str = ""  # on the brightness of the image
    heatmaps: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # [H, W] in 0..1
    class_name: str = ""  # of the displayed heat map

    def clear(self) -> None:
        """Remove the image and its results."""
        self.version += 1
        self.slice = self.prediction = None
        self.note = ""
        self.heatmaps, self.class_name = {}, ""

    def delete_file(self) -> None:
        """Delete the file."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
        self.path, self.frame, self.n_frames = None, 1, 1


def check_upload(path: Path, folder: Path) -> Path:
    """Resolve the path that a client names as its upload; the file may be deleted already.

    Raises:
        ImageError: The path is outside the upload folder, or is not a file.
    """
    found = path.resolve()
    if not found.is_relative_to(folder.resolve()) or (found.exists() and not found.is_file()):
        raise ImageError("not uploaded on this page")
    return found


def open_file(session: Session, predictor: SlicePredictor, path: Path) -> None:
    """Predict the first image of a file, and delete the file unless it has more frames.

    Raises:
        ImageError: The file is deleted, too large or not an image. The message omits its name,
            which may be that of a patient.
    """
    if path == session.upload and session.slice is not None and not path.exists():
        return  # the same content was dropped twice before the first prediction
    session.clear()
    session.delete_file()
    own = path.with_name(secrets.token_hex(8))  # another user may upload the same content
    try:
        path.rename(own)
    except FileNotFoundError:
        raise ImageError(FILE_DELETED) from None
    session.name, session.upload, session.path = path.name, path, own
    try:
        if fault := _find_fault(own):
            raise ImageError(fault)
        session.n_frames = count_frames(own)
        open_frame(session, predictor, 1)
    finally:
        if session.slice is None or session.n_frames == 1:
            session.delete_file()


def open_frame(session: Session, predictor: SlicePredictor, number: int) -> None:
    """Predict one frame of the open file, counted from 1.

    Raises:
        ImageError: It does not exist or cannot be read, or the file is deleted.
    """
    session.clear()
    if session.path is None or not session.path.exists():
        raise ImageError(FILE_DELETED)
    os.utime(session.path)  # protects it from `delete_old_files`
    session.frame = number
    scaler = ValueScaler(predictor.value_ranges)
    preprocessed = predictor.preprocess(_read_frame(session.path, number, scaler))
    session.note = scaler.note
    session.prediction = predictor.predict([preprocessed])[0]
    session.class_name = session.prediction.predicted
    session.slice = preprocessed


def _read_frame(path: Path, number: int, scaler: ValueScaler) -> Pixels:
    for current, pixels in enumerate(read_frames(path, scaler), start=1):
        if current == number:
            return pixels
    raise ImageError(f"it has no frame {number}")


def _find_fault(path: Path) -> str:
    """Return why a file is not opened at all, else ""."""
    try:
        is_large = path.stat().st_size > MAX_FILE_MIB * 2**20
    except FileNotFoundError:
        return FILE_DELETED
    return f"over the limit of {MAX_FILE_MIB} MiB a file" if is_large else ""


def make_heatmap(session: Session, predictor: SlicePredictor) -> None:
    """Compute the heat map of the chosen class once; discard it if the image was replaced."""
    version, preprocessed, class_name = session.version, session.slice, session.class_name
    if preprocessed is None or class_name in session.heatmaps:
        return
    heatmap = predictor.explain(preprocessed, class_name)
    if session.version == version:
        session.heatmaps[class_name] = heatmap


# ---- many files


def predict_files(predictor: SlicePredictor, paths: Sequence[Path]) -> Iterator[list[Row]]:
    """Yield the rows of predict.py's table, batch by batch, and delete the files at the end.

    Rows have plain file names; each DICOM series has a row too.
    """
    builder = RowBuilder(predictor)
    try:
        faults = {path: _find_fault(path) for path in paths}
        refused = [path for path in paths if faults[path]]
        yield builder.add(
            [(Picture(Path(path.name), error=faults[path]), None) for path in refused]
        )
        for batch in predict_batches(predictor, [path for path in paths if not faults[path]]):
            renamed = [(replace(each, path=Path(each.path.name)), found) for each, found in batch]
            yield builder.add(renamed)
        yield [{**row, "file": row["file"].removeprefix(".#")} for row in builder.close()]
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def delete_old_files(folder: Path, age_s: float) -> None:
    """Delete the files below a folder that were not used for `age_s` seconds."""
    before_s = time.time() - age_s
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # deleted by others, or locked while open
            if path.is_file() and path.stat().st_mtime < before_s:
                path.unlink()
