"""The answers of the page's interface, as JSON."""

import base64
import io
from collections.abc import Generator, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, Field

from helper import NOTICE
from inference.output_table import Row
from inference.pipeline import PredictedPicture, RowBuilder, predict_batches
from inference.predictor import SlicePredictor
from webapp.uploads import Uploads

PUBLISHED = {"Glioma", "Menin", "Tumor"}
HEALTHY = "There is no healthy class: the model names a tumour for any image."
FORCED = "The model names one of its classes for any image."


class Model(BaseModel):
    """What the page has to say about its networks."""

    notice: str
    runs: list[str]
    classes: list[str]
    limit: str = Field(description="what follows from the classes")
    warnings: list[str]
    heatmaps: str = Field(description="how often heat maps point at a tumour")


class Neighbour(BaseModel):
    """A training slice that is near in the network's feature space."""

    sha256: str
    label: str
    is_shown: bool = Field(description="whether /training/SHA256 has its picture")


class Result(BaseModel):
    """One slice, or the mean over a DICOM series or a patient."""

    kind: str = Field(description="slice, series or patient")
    file: str
    patient: str | None = Field(default=None, description="pseudonym of the DICOM patient")
    predicted: str | None = None
    confidence: float | None = None
    probabilities: dict[str, float] = Field(default={}, description="calibrated, by class")
    prediction_set: list[str] | None = Field(default=None, description="classes not ruled out")
    needs_review: bool | None = Field(default=None, description="null: not fitted")
    out_of_distribution: bool | None = Field(default=None, description="null: not fitted")
    distance: float | None = Field(default=None, description="in multiples of the threshold")
    review: str = Field(default="", description="what to do with the prediction, in words")
    note: str = ""
    error: str | None = None
    nearest: list[Neighbour] = []
    picture: str | None = Field(default=None, description="PNG in base64, for pictures=true")


class Answer(BaseModel):
    """The answer of /predict."""

    notice: str = NOTICE
    warnings: list[str]
    classes: list[str]
    notes: list[str] = Field(description="files that were passed over")
    results: list[Result]


def describe_model(predictor: SlicePredictor) -> Model:
    """Return what the page says about its networks."""
    return Model(
        notice=NOTICE,
        runs=[member.checkpoint["run"] for member in predictor.members],
        classes=predictor.classes,
        limit=HEALTHY if set(predictor.classes) <= PUBLISHED else FORCED,
        warnings=predictor.list_warnings(),
        heatmaps=predictor.describe_heatmaps(),
    )


def predict(
    predictor: SlicePredictor, uploads: Uploads, shown: set[str], with_pictures: bool
) -> Generator[list[Result]]:
    """Yield the results of uploaded images, batch by batch; series and patients at their end.

    Args:
        predictor: The networks.
        uploads: Images.
        shown: SHA-256 of the training slices that can be shown.
        with_pictures: Add the pictures.
    """
    builder = RowBuilder(predictor, uploads.roots)
    for batch in predict_batches(predictor, uploads.files, uploads.names):
        yield list(_join(builder.add(batch), batch, predictor, shown, with_pictures))
    yield [build_result(row, predictor.classes) for row in builder.close()]


def _join(
    rows: Sequence[Row],
    batch: Sequence[PredictedPicture],
    predictor: SlicePredictor,
    shown: set[str],
    with_pictures: bool,
) -> Iterator[Result]:
    """Yield the results of rows; those of series stand between those of the images."""
    remaining = list(batch)
    for row in rows:
        result = build_result(row, predictor.classes)
        if not remaining or row["file"] != remaining[0][0].name:
            yield result
            continue
        picture, prediction = remaining.pop(0)
        result.kind, result.note = "slice", picture.note
        if prediction is not None and picture.prepared is not None:
            result.distance = prediction.distance
            result.review = prediction.describe_review()
            result.nearest = [
                Neighbour(sha256=digest, label=label, is_shown=digest in shown)
                for digest, label in prediction.nearest
            ]
            if with_pictures:
                content = encode_png(picture.prepared.picture)
                result.picture = base64.b64encode(content).decode()
        yield result


def build_result(row: Row, classes: Sequence[str]) -> Result:
    """Return a row of predict.py's table as a result of a series or patient."""
    kind = "patient" if "#patient (" in row["file"] else "series"
    probs = {name: row[f"p_{name}"] for name in classes if row[f"p_{name}"] is not None}
    same = ("file", "patient", "predicted", "confidence", "prediction_set", "needs_review")
    values = {name: row[name] for name in (*same, "out_of_distribution", "error")}
    return Result(kind=kind, probabilities=probs, **{**values, "patient": row["patient"] or None})


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return a grey picture, uint8 [H, W], as a PNG file."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", compress_level=1)
    return content.getvalue()
