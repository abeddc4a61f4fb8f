"""Outputs for slices that the networks were not trained on, and calibration fitted on them.

A run stores those of its val split, a run with --folds those of all slices: each slice is predicted
by the network whose test split it was in. Of several runs, the slices that all of them held out are
used: every network then gives an output for a slice that it was not trained on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from evaluation import ood
from evaluation.calibration import Calibrated, apply_calibration, fit_calibration
from evaluation.intervals import FloatArray, IntArray

MIN_GROUPS = 20  # fewer determine no temperature, see the simulation in docs/evaluation.md
CROSS_FITS = 5


@dataclass(frozen=True)
class HeldOut:
    """Outputs of M networks for N slices.

    Attributes:
        path: [N] paths in the data folder.
        sha256: [N] of the files.
        labels: [N] class ids.
        groups: [N] ids.
        folds: [N] number of the fold, from 1; 0 for a val split.
        logits: [M, N, K].
        distances: [M, N] from the training slices in multiples of each network's OOD threshold;
            NaN if a network has no OOD reference.
    """

    path: NDArray[np.str_]
    sha256: NDArray[np.str_]
    labels: IntArray
    groups: NDArray[np.str_]
    folds: IntArray
    logits: FloatArray
    distances: NDArray[np.float64]

    @classmethod
    def of_rows(
        cls,
        rows: pd.DataFrame,
        labels: IntArray,
        logits: FloatArray,
        distances: NDArray[np.float64],
        folds: IntArray | None = None,
    ) -> "HeldOut":
        """Return the outputs for rows of the manifest; arguments as the attributes."""
        path, sha256, groups = (rows[key].to_numpy(str) for key in ("path", "sha256", "group"))
        if folds is None:
            folds = np.zeros(len(rows), np.int64)
        return cls(path, sha256, labels, groups, folds, logits, distances)

    @property
    def n_groups(self) -> int:
        """Number of groups."""
        return len(np.unique(self.groups))

    def take(self, rows: NDArray[Any]) -> "HeldOut":
        """Return the outputs for some slices, by position or mask."""
        by_slice = {name: getattr(self, name)[rows] for name in BY_SLICE}
        logits, distances = self.logits[:, rows], self.distances[:, rows]
        return replace(self, **by_slice, logits=logits, distances=distances)

    def to_record(self) -> dict[str, Any]:
        """Return plain values for JSON and checkpoints; unknown distances are None."""
        record = {field.name: getattr(self, field.name).tolist() for field in fields(self)}
        has_distances = bool(np.isfinite(self.distances).all())
        return {**record, "distances": record["distances"] if has_distances else None}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "HeldOut":
        """Return the outputs that `to_record` was called on.

        Raises:
            KeyError, TypeError, ValueError: The record is damaged.
        """
        text = (np.array(record[name], dtype=str) for name in ("path", "sha256", "groups"))
        path, sha256, groups = text
        labels, folds = (np.array(record[name], dtype=np.int64) for name in ("labels", "folds"))
        logits = np.array(record["logits"], dtype=np.float32)
        distances = np.full(logits.shape[:2], np.nan)
        if record["distances"] is not None:
            distances = np.array(record["distances"], dtype=np.float64)
        sizes = {logits.shape[1], *map(len, (path, sha256, groups, labels, folds))}
        is_valid = logits.ndim == 3 and np.isfinite(logits).all() and len(sizes) == 1
        if not is_valid or distances.shape != logits.shape[:2]:
            raise ValueError("outputs of different lengths, or not finite")
        return cls(path, sha256, labels, groups, folds, logits, distances)

    def fit(self, classes: Sequence[str]) -> dict[str, Any]:
        """Fit temperature, prediction sets and thresholds, see `fit_calibration`."""
        return fit_calibration(self.logits, self.labels, self.groups, classes)

    def fit_ood_threshold(self) -> float | None:
        """Fit the threshold of the mean distance over the networks; None without distances."""
        distances = self.distances.mean(axis=0)
        if not np.isfinite(distances).all():
            return None
        return ood.fit_threshold(distances, self.groups)


BY_SLICE = ("path", "sha256", "labels", "groups", "folds")


def combine(runs: Sequence[HeldOut]) -> HeldOut:
    """Join the networks of several runs on the slices that all of them held out.

    Folds and groups are those of the first run. A slice whose label differs is left out.
    """
    keys = [pd.MultiIndex.from_arrays([run.path, run.sha256, run.labels]) for run in runs]
    common = keys[0]
    for other in keys[1:]:
        common = common.intersection(other)
    aligned = [run.take(own.get_indexer(common)) for run, own in zip(runs, keys, strict=True)]
    logits = np.concatenate([run.logits for run in aligned])
    distances = np.concatenate([run.distances for run in aligned])
    return replace(aligned[0], logits=logits, distances=distances)


def cross_fit(
    held_out: HeldOut, logits: FloatArray, folds: IntArray, classes: Sequence[str]
) -> tuple[Calibrated, list[dict[str, Any]]]:
    """Calibrate the outputs of each fold by what is fitted on the other folds.

    No label of a fold is used for the calibration of its outputs, so that coverage and calibration
    errors are not those of the slices that were fitted.

    Args:
        held_out: Outputs that are fitted.
        logits: [M, N, K] to calibrate.
        folds: [N] numbers, of `held_out.folds`.
        classes: K names.

    Returns:
        The calibrated outputs and the calibration of each fold.
    """
    parts, fitted, positions = [], [], []
    for fold in np.unique(folds):
        fitted.append(held_out.take(held_out.folds != fold).fit(classes))
        positions.append(np.flatnonzero(folds == fold))
        parts.append(apply_calibration(fitted[-1], logits[:, positions[-1]]))
    order = np.argsort(np.concatenate(positions))
    return Calibrated.concatenate(parts).take(order), fitted


def draw_folds(groups: Iterable[str]) -> NDArray[np.int64]:
    """Divide groups at random into CROSS_FITS folds of equally many, with a fixed seed: [N]."""
    codes = np.unique(np.array(list(groups)), return_inverse=True)[1]
    order = np.random.default_rng(0).permutation(codes.max() + 1)
    return 1 + order[codes] % CROSS_FITS
