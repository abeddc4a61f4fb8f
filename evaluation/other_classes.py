"""Slices of classes that a model lacks: kept out of the metrics, and counted by prediction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from evaluation.calibration import Calibrated


@dataclass(frozen=True)
class OtherClasses:
    """Outputs for N slices whose class the model lacks.

    Attributes:
        rows: Their manifest rows.
        logits: [M, N, K] of M networks that are averaged.
    """

    rows: pd.DataFrame
    logits: np.ndarray

    @staticmethod
    def stack(parts: "Sequence[OtherClasses | None]") -> "OtherClasses | None":
        """Join the outputs of several networks for the slices that all of them predicted."""
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        keys = [pd.Index(part.rows["path"]) for part in known]
        common = keys[0]
        for other in keys[1:]:
            common = common.intersection(other, sort=False)
        places = [own.get_indexer(common) for own in keys]
        logits = [part.logits[:, place] for part, place in zip(known, places, strict=True)]
        rows = known[0].rows.iloc[places[0]].reset_index(drop=True)
        return OtherClasses(rows, np.concatenate(logits))

    @staticmethod
    def concatenate(parts: "Sequence[OtherClasses | None]") -> "OtherClasses | None":
        """Join the outputs of several networks, each for its own slices."""
        known = [part for part in parts if part is not None]
        if not known:
            return None
        rows = pd.concat([part.rows for part in known], ignore_index=True)
        return OtherClasses(rows, np.concatenate([part.logits for part in known], axis=1))


def summarise(
    others: OtherClasses, calibrated: Calibrated, classes: Sequence[str]
) -> dict[str, Any]:
    """Return `other_classes` of metrics.json.

    Args:
        others: The slices.
        calibrated: Their calibrated outputs [N, K].
        classes: K names.

    Returns:
        For each class that the model lacks: `n_images`; `predicted`: number of images by predicted
        class; `n_review`: number of them that need review by their prediction sets, null if no
        sets were fitted.
    """
    labels = others.rows["label"].to_numpy(dtype=str)
    predicted, review = calibrated.probs.argmax(axis=1), calibrated.needs_review
    return {
        str(label): {
            "n_images": int((labels == label).sum()),
            "predicted": {
                name: int((predicted[labels == label] == index).sum())
                for index, name in enumerate(classes)
            },
            "n_review": None if review is None else int(review[labels == label].sum()),
        }
        for label in np.unique(labels)
    }


def describe(summary: dict[str, Any] | None) -> list[str]:
    """Return a warning for each class that the model lacks."""
    lines = []
    for label, found in (summary or {}).items():
        counts = ", ".join(f"{name} {n}" for name, n in found["predicted"].items() if n)
        review = "" if found["n_review"] is None else f"; {found['n_review']} need review"
        lines.append(
            f"OTHER CLASSES: {found['n_images']} slices of {label} are in no metric, because the "
            f"model has no class of this name; predicted: {counts}{review}; if another name means "
            "the same, give --class-map"
        )
    return lines


def count_left_out(others: OtherClasses | None) -> list[str]:
    """Return a line for each class that the model lacks: its slices calibrate nothing."""
    if others is None:
        return []
    return [
        f"{count} slices of {label} are left out: the model has no such class"
        for label, count in others.rows["label"].value_counts().sort_index().items()
    ]
