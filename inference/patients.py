"""Combine the predictions of all slices of each patient into one row.

A patient is the pseudonym of DICOM files, else the folder of the images, if a given folder holds
several folders of images. A folder that is called like a sequence, a plane or a series belongs to
the folder above it; one that is called like a split or a class of the model is no patient. Only
sums are kept, so memory does not grow with the number of slices.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from evaluation.class_names import suggest
from evaluation.thresholds import Thresholds
from inference.image_stream import Picture
from inference.output_table import Row, describe_probs
from inference.predictor import Prediction
from preparation.folder_kinds import FolderKind, find_folder_kind

SERIES_FOLDER = re.compile(
    r"(series?|study|scan|stack|volume|sequence|ses|session|visit|timepoint|anat|mri?)"
    r"[ _.-]*\d*([ _.-].*)?",
    re.IGNORECASE,
)
CLASS_WORDS = {
    *("yes", "no", "positive", "negative", "normal", "abnormal", "healthy", "benign", "malignant"),
    *("tumor", "tumour", "notumor", "control", "controls", "cancer", "sick", "diseased"),
}
SERIES_KINDS = {FolderKind.SEQUENCE, FolderKind.PICTURES}


@dataclass
class _Patient:
    """Sums over the slices of one patient; a flag is None if one of them was not fitted."""

    total: NDArray[np.float64] | float = 0.0
    n_read: int = 0
    n_unread: int = 0
    needs_review: bool | None = False
    is_ood: bool | None = False

    def add(self, prediction: Prediction) -> None:
        self.total = self.total + prediction.probs
        self.n_read += 1
        self.needs_review = _worst(self.needs_review, prediction.needs_review)
        self.is_ood = _worst(self.is_ood, prediction.out_of_distribution)

    def build_row(self, name: str, patient: str, rule: Thresholds) -> Row:
        n_all = self.n_read + self.n_unread
        size = f"{self.n_read} of {n_all}" if self.n_unread else f"{n_all}"
        is_incomplete = self.n_unread > 0 and self.needs_review is not None
        return {
            "file": f"{name}#patient ({size} slices)",
            "patient": patient,
            **describe_probs(np.asarray(self.total) / self.n_read, rule),
            "prediction_set": None,
            "needs_review": True if is_incomplete else self.needs_review,
            "out_of_distribution": self.is_ood,
            "error": None,
        }


def _worst(first: bool | None, second: bool | None) -> bool | None:
    return None if first is None or second is None else first or second


class PatientAggregator:
    """Collects the slices of each patient and returns their rows at the end.

    The probabilities are the mean over all readable slices, as in `evaluation.patients`. A flag is
    true if it is true for one slice; an unreadable slice needs review.

    Args:
        rule: Chooses the predicted class.
        roots: The folders and archives that were given; "" for none.
    """

    def __init__(self, rule: Thresholds, roots: Sequence[Path]) -> None:
        self._rule = rule
        self._roots = sorted(roots, key=lambda path: -len(path.parts))
        self._patients: dict[str, _Patient] = {}
        self._folders: dict[str, tuple[Path, Path]] = {}  # root and folder by name of the patient

    def add(self, picture: Picture, prediction: Prediction | None) -> None:
        """Add an image.

        Args:
            picture: Any image; one without a patient or a folder of its own is not counted.
            prediction: None for an unreadable image.
        """
        name = picture.patient
        if not name:
            found = self._find_folder(picture.path)
            if found is None:
                return
            name = found[1].as_posix()
            self._folders[name] = found
        patient = self._patients.setdefault(name, _Patient())
        if prediction is None:
            patient.n_unread += 1 + picture.n_lost
        else:
            patient.add(prediction)

    def close(self) -> list[Row]:
        """Return the rows of all patients with several slices, one of them readable, and reset."""
        roots = [root for root, _ in self._folders.values()]
        rows = [
            patient.build_row(name, name, self._rule)
            for name, patient in self._patients.items()
            if patient.n_read
            and patient.n_read + patient.n_unread > 1
            and (name not in self._folders or roots.count(self._folders[name][0]) > 1)
        ]
        self._patients, self._folders = {}, {}
        return rows

    def _find_folder(self, path: PurePath) -> tuple[Path, Path] | None:
        """Return the given folder that a file is in, and the folder of its patient below it."""
        root = next((root for root in self._roots if path.is_relative_to(root)), None)
        if root is None:
            return None
        parts = path.relative_to(root).parts[:-1]
        while parts and _is_series(parts[-1]):
            parts = parts[:-1]
        if not parts or _is_split(parts[-1]) or _is_class(parts[-1], self._rule.classes):
            return None
        return root, root.joinpath(*parts)


def _is_series(folder: str) -> bool:
    """Return whether a folder holds a sequence, plane or series of one patient."""
    is_numbered = SERIES_FOLDER.fullmatch(folder) is not None
    return is_numbered or find_folder_kind(folder) in SERIES_KINDS


def _is_class(folder: str, classes: Sequence[str]) -> bool:
    plain = re.sub(r"[\W_]", "", folder).casefold()
    return plain in CLASS_WORDS or bool(suggest(folder, classes))


def _is_split(folder: str) -> bool:
    return folder.casefold() == "all" or find_folder_kind(folder) is FolderKind.SPLIT
