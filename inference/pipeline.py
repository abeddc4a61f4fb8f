"""Predict files batch by batch: read, predict, build table rows, save heat maps."""

import hashlib
import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from common import atomic_files, fonts
from explanation.overlay import draw_overlay
from helper import NOTICE
from imaging.volumes import VolumeOptions
from inference import image_stream
from inference.image_stream import Picture
from inference.output_table import Counts, Row, build_row
from inference.patients import PatientAggregator
from inference.predictor import Prediction, PreprocessedSlice, SlicePredictor
from inference.series import SeriesAggregator

BATCH_SIZE = 32
MAX_NAME_BYTES = 255
LINE_CHARACTERS = 100  # fit below the narrowest overlay
PredictedPicture = tuple[Picture[PreprocessedSlice], Prediction | None]


def predict_batches(
    predictor: SlicePredictor,
    files: Iterable[Path],
    names: Mapping[Path, Path] | None = None,
    volumes: VolumeOptions | None = None,
) -> Iterator[list[PredictedPicture]]:
    """Yield the images of files in order with their predictions, None for unreadable ones.

    Args:
        predictor: The networks.
        files: Image files.
        names: Paths to show instead of those of some files.
        volumes: How NIfTI and MATLAB files are read.

    Raises:
        UserError: A network returns logits that are NaN or infinite.
    """
    batches = image_stream.read_batches(
        files,
        predictor.preprocess,
        BATCH_SIZE,
        overlap=predictor.device.type != "cpu",
        ranges=predictor.value_ranges,
        volumes=volumes,
    )
    for batch in batches:
        if names:
            batch = [replace(each, path=names.get(each.path, each.path)) for each in batch]
        readable = [picture.prepared for picture in batch if picture.prepared is not None]
        predictions = iter(predictor.predict(readable) if readable else [])
        yield [
            (picture, None if picture.prepared is None else next(predictions)) for picture in batch
        ]


class RowBuilder:
    """Builds the rows of images, DICOM series and patients, and counts those of images.

    Args:
        predictor: The networks.
        roots: Folders and archives that were given, for patients by folder; None: no patient rows.
    """

    def __init__(self, predictor: SlicePredictor, roots: Sequence[Path] | None = None) -> None:
        self.counts = Counts()
        self._classes = predictor.classes
        self._series = SeriesAggregator(predictor.classes, predictor.rule)
        self._patients = None if roots is None else PatientAggregator(predictor.rule, roots)

    def add(self, batch: list[PredictedPicture]) -> list[Row]:
        """Return a batch's rows, and the series rows of the folders that it completes."""
        rows: list[Row] = []
        for picture, prediction in batch:
            rows += self._series.add(picture, prediction)
            if self._patients is not None:
                self._patients.add(picture, prediction)
            rows.append(build_row(picture, prediction, self._classes))
            self.counts.add(rows[-1], picture.note)
        return rows

    def close(self) -> list[Row]:
        """Return the rows of the series of the last folder, and those of all patients."""
        return self._series.close() + (self._patients.close() if self._patients else [])


def save_heatmap(
    folder: Path,
    predictor: SlicePredictor,
    picture: Picture[PreprocessedSlice],
    prediction: Prediction,
) -> None:
    """Save an image beside its heat map for the predicted class, under its own path in `folder`."""
    preprocessed = picture.prepared
    assert preprocessed is not None
    heatmap = predictor.explain(preprocessed, prediction.predicted)
    warnings = predictor.list_warnings()
    evidence = textwrap.wrap(predictor.describe_heatmaps(), LINE_CHARACTERS)
    names = fonts.choose_names(predictor.classes)
    lines = [*predictor.describe_prediction(prediction, names), *warnings, *evidence, NOTICE]
    parts = [part.replace("..", "__") for part in picture.path.parts if part != picture.path.anchor]
    frame = f"#{picture.frame}" if picture.frame else ""
    path = folder.joinpath(*parts[:-1], _shorten(f"{parts[-1]}{frame}.png"))
    with atomic_files.atomic_path(path) as temporary:
        draw_overlay(preprocessed.picture, heatmap, lines).save(temporary)


def _shorten(name: str) -> str:
    """Cut the name of a PNG file to the limit of file systems; a hash keeps it unique."""
    content = os.fsencode(name)
    if len(content) <= MAX_NAME_BYTES:
        return name
    digest = hashlib.sha256(content).hexdigest()[:8]
    start = content[: MAX_NAME_BYTES - 16].decode(errors="ignore")
    return f"{start}-{digest}.png"
