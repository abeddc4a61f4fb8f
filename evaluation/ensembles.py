"""Predictions, and how those of several networks are joined: folds are pooled, runs averaged."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import model
from evaluation import calibration, fitted
from evaluation.fitted import Fitted
from evaluation.held_out import HeldOut, cross_fit
from evaluation.other_classes import OtherClasses
from helper import UserError
from loading.image_source import SliceSource

OUT_OF_FOLD = "the out-of-fold outputs of the other folds"


@dataclass(frozen=True)
class MemberSlices:
    """One network and the slices that it predicted."""

    network: model.Classifier
    slices: SliceSource


@dataclass(frozen=True)
class Predictions:
    """Predictions of one network, of several folds or of an ensemble.

    Attributes:
        path: The checkpoint, or the folder of folds.
        checkpoints: The content of each checkpoint used.
        rows: The manifest rows of the slices.
        labels: Class indices [N].
        logits: [M, N, K] of M networks that are averaged; M is 1 for one network and for folds.
        calibrated: Calibrated outputs [N, K].
        fitted: What the outputs were calibrated with. For folds, it is fitted again for each fold.
        calibrations: The calibrations in use: one, or one for each fold. Empty without any.
        folds: [N] number of the fold that a slice was held out in, from 1; 0: not in folds.
        distances: [M, N] OOD distances in multiples of the networks' thresholds; NaN: unknown.
        held_out: The out-of-fold outputs of all slices; None if these are not pooled folds.
        baseline_hits: For each baseline [N] the share of checkpoints whose baseline is right.
        related: [N] whether a related slice is in the training split.
        warnings: Shown above the metrics.
        member_slices: Each network with its own slices; empty for an ensemble.
        is_ensemble: Whether all checkpoints predicted every slice and their mean is taken.
        n_training_slices: Distinct training slices among which copies of other data were searched;
            None: no search.
        others: Slices of classes that the model lacks, which no metric counts.
    """

    path: Path
    checkpoints: list[dict[str, Any]]
    rows: pd.DataFrame
    labels: np.ndarray
    logits: np.ndarray
    calibrated: calibration.Calibrated
    fitted: Fitted
    calibrations: list[dict[str, Any]]
    folds: np.ndarray
    distances: np.ndarray
    held_out: HeldOut | None
    baseline_hits: dict[str, np.ndarray]
    related: np.ndarray
    warnings: list[str]
    member_slices: list[MemberSlices]
    is_ensemble: bool = False
    n_training_slices: int | None = None
    others: OtherClasses | None = None

    @property
    def classes(self) -> list[str]:
        """The class names in the order of the outputs."""
        return list(self.checkpoints[0]["classes"])

    @property
    def raw_probs(self) -> np.ndarray:
        """[N, K] plain softmax of the logits."""
        return calibration.average_softmax(self.logits)

    @property
    def correct(self) -> np.ndarray:
        """[N] whether the most probable class is the true one."""
        return self.calibrated.probs.argmax(axis=1) == self.labels

    @property
    def baselines(self) -> dict[str, float]:
        """Accuracies of the majority-class and brightness baselines on the same slices."""
        return {name: float(hits.mean()) for name, hits in self.baseline_hits.items()}

    def take(self, positions: np.ndarray) -> "Predictions":
        """Return the predictions of some of the slices, by position."""
        return replace(
            self,
            rows=self.rows.iloc[positions].reset_index(drop=True),
            labels=self.labels[positions],
            logits=self.logits[:, positions],
            calibrated=self.calibrated.take(positions),
            folds=self.folds[positions],
            distances=self.distances[:, positions],
            baseline_hits={name: hits[positions] for name, hits in self.baseline_hits.items()},
            related=self.related[positions],
            member_slices=[],
        )


def pool_folds(path: Path, parts: Sequence[Predictions]) -> Predictions:
    """Join the predictions of all folds, each calibrated on the outputs of the other folds.

    Raises:
        UserError: A slice is in more than one fold.
    """
    rows = pd.concat([part.rows for part in parts], ignore_index=True)
    if rows["path"].duplicated().any():
        raise UserError(f"{path}: its folds overlap; start a new run")
    folds = np.repeat(np.arange(1, len(parts) + 1), [len(part.labels) for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    logits = np.concatenate([part.logits for part in parts], axis=1)
    distances = np.concatenate([part.distances for part in parts], axis=1)
    held_out = HeldOut.of_rows(rows, labels, logits, distances, folds)
    calibrated, calibrations = cross_fit(held_out, logits, folds, parts[0].classes)
    return Predictions(
        path=path,
        checkpoints=[checkpoint for part in parts for checkpoint in part.checkpoints],
        rows=rows,
        labels=labels,
        logits=logits,
        calibrated=calibrated,
        fitted=Fitted(None, 1.0, OUT_OF_FOLD),
        calibrations=calibrations,
        folds=folds,
        distances=distances,
        held_out=held_out,
        baseline_hits={
            name: np.concatenate([part.baseline_hits[name] for part in parts])
            for name in parts[0].baseline_hits
        },
        related=np.concatenate([part.related for part in parts]),
        warnings=[
            *dict.fromkeys(line for part in parts for line in part.warnings),
            f"pooled over {len(parts)} folds: each slice is predicted once, by the network that "
            "was not trained on its fold",
        ],
        member_slices=[member for part in parts for member in part.member_slices],
        others=OtherClasses.concatenate([part.others for part in parts]),
    )


def align(runs: Sequence[Predictions]) -> list[Predictions]:
    """Restrict the predictions of several runs to their common slices, in one order.

    Raises:
        UserError: Their classes differ, or they have no slice in common.
    """
    first = runs[0]
    for other in runs[1:]:
        if other.classes != first.classes:
            raise UserError(
                f"{other.path} was trained on {', '.join(other.classes)}, {first.path} on "
                f"{', '.join(first.classes)}; compare runs of the same classes"
            )
    keys = [pd.MultiIndex.from_frame(run.rows[["path", "sha256"]]) for run in runs]
    common = keys[0]
    for other_keys in keys[1:]:
        common = common.intersection(other_keys)
    if not len(common):
        raise UserError(
            f"{', '.join(str(run.path) for run in runs)}: no slice is in the test split of all of "
            "them; train them on the same data with the same --split-by and --split-seed, or use "
            "--folds"
        )
    common = common.sort_values()
    return [run.take(own.get_indexer(common)) for run, own in zip(runs, keys, strict=True)]


def average_predictions(runs: Sequence[Predictions], file: Path | None = None) -> Predictions:
    """Average the probabilities of aligned runs, calibrated on slices that all of them held out.

    Pooled folds are calibrated fold by fold, see `pool_folds`. Without such slices each network
    keeps its own temperature, and nothing else is fitted.

    Args:
        runs: Predictions of the same slices.
        file: Calibration of all networks, instead of what the runs store.

    Raises:
        UserError: A calibration is missing, damaged, or for other networks.

    Source: Lakshminarayanan et al. 2017, Simple and scalable predictive uncertainty estimation
    using deep ensembles.
    """
    stacked = stack(runs)
    named = [fitted.Run(run.path, run.checkpoints) for run in runs]
    if not any(run.held_out for run in runs):
        return calibrate(stacked, fitted.find_fitted(named, file))
    if file is not None:
        raise UserError(
            f"--calibration {file}: the slices of runs with --folds are predicted and calibrated "
            "out of fold; give --data and --split all, or leave it out"
        )
    held_out = [
        run.held_out or fitted.load_held_out(each) for run, each in zip(runs, named, strict=True)
    ]
    common, reason = fitted.find_common(named, held_out)
    calibrated = calibration.Calibrated(np.mean([run.calibrated.probs for run in runs], axis=0))
    calibrations: list[dict[str, Any]] = []
    if common is not None:
        calibrated, calibrations = cross_fit(common, stacked.logits, stacked.folds, stacked.classes)
    return replace(
        stacked,
        calibrated=calibrated,
        calibrations=calibrations,
        fitted=Fitted(None, 1.0, reason or OUT_OF_FOLD),
    )


def stack(parts: Sequence[Predictions]) -> Predictions:
    """Join the outputs of several networks for the same slices; nothing is calibrated.

    Their split is train if one of the networks was trained on them.
    """
    first, searched = parts[0], [part.n_training_slices for part in parts]
    is_train = np.any([part.rows["split"] == "train" for part in parts], axis=0)
    return replace(
        first,
        rows=first.rows.assign(split=np.where(is_train, "train", first.rows["split"])),
        checkpoints=[checkpoint for part in parts for checkpoint in part.checkpoints],
        logits=np.concatenate([part.logits for part in parts]),
        distances=np.concatenate([part.distances for part in parts]),
        baseline_hits={
            name: np.mean([part.baseline_hits[name] for part in parts], axis=0)
            for name in first.baseline_hits
        },
        related=np.any([part.related for part in parts], axis=0),
        warnings=list(dict.fromkeys(line for part in parts for line in part.warnings)),
        member_slices=[],
        is_ensemble=True,
        n_training_slices=None if None in searched else first.n_training_slices,
        others=OtherClasses.stack([part.others for part in parts]),
    )


def calibrate(predictions: Predictions, found: Fitted) -> Predictions:
    """Return the predictions with other calibrated outputs."""
    n_fitted = int(predictions.rows["sha256"].isin(found.slices).sum())
    seen = (
        f"SEEN: the calibration was fitted on {n_fitted} of these {len(predictions.labels)} slices"
    )
    return replace(
        predictions,
        calibrated=calibration.apply_calibration(found.calibration, predictions.logits),
        fitted=found,
        calibrations=[found.calibration] if found.calibration and found.has_sets else [],
        warnings=[*predictions.warnings, *([seen] if n_fitted else [])],
    )
