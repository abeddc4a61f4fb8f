"""Predictions of checkpoints on a split: one network, pooled folds or an ensemble.

The split stored in a checkpoint shows whether it was trained on a slice or on a duplicate.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import dataset
import helper
import model
from common.portable_names import quote
from evaluation import baselines, calibration
from evaluation.metrics import softmax
from helper import UserError
from loading.image_source import SliceSource
from modeling import checkpoint as checkpoints
from modeling import forward
from modeling.precision import keep_freed_memory
from preparation import integrity

LEAKY_SPLIT = (
    "LEAKY SPLIT (--split-by image): duplicates of one slice are in both training and test; "
    "these figures measure the leak, not the classifier"
)
DUPLICATES_UNKNOWN = (
    "UNCHECKED: this data was not searched for duplicates. They may be in both training and test, "
    "so these figures are likely too high; run prepare.py again"
)
PHANTOM = "PHANTOM: generated slices; the figures do not apply to patients"


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
        calibrated: Calibrated outputs [N, K].
        raw_probs: [N, K], plain softmax of the logits.
        baseline_hits: For each baseline [N] the share of checkpoints whose baseline is right.
        related: [N] whether a related slice is in the training split.
        warnings: Shown above the metrics.
        member_slices: Each network with its own slices; empty for an ensemble.
        is_ensemble: Whether all checkpoints predicted every slice and their mean is taken.
        n_training_slices: Distinct training slices among which copies of other data were searched;
            None: no search.
    """

    path: Path
    checkpoints: list[dict[str, Any]]
    rows: pd.DataFrame
    labels: np.ndarray
    calibrated: calibration.Calibrated
    raw_probs: np.ndarray
    baseline_hits: dict[str, np.ndarray]
    related: np.ndarray
    warnings: list[str]
    member_slices: list[MemberSlices]
    is_ensemble: bool = False
    n_training_slices: int | None = None

    @property
    def classes(self) -> list[str]:
        """The class names in the order of the outputs."""
        return list(self.checkpoints[0]["classes"])

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
            calibrated=self.calibrated.take(positions),
            raw_probs=self.raw_probs[positions],
            baseline_hits={name: hits[positions] for name, hits in self.baseline_hits.items()},
            related=self.related[positions],
            member_slices=[],
        )


def predict_run(path: Path, split: str, data: Path | None, **options: Any) -> Predictions:
    """Predict with a checkpoint, or with all folds of a run with --folds.

    Args:
        path: best.pt, or the folder of a run with --folds.
        split: `test`, `val`, `train` or `all`.
        data: Another folder that prepare.py wrote; None: the data of the run.
        options: `device`, `batch_size`, `threads` of `predict_checkpoint`.

    Raises:
        UserError: As `predict_checkpoint`; or folds are incomplete or overlap, or a split other
            than `test` is given for folds.
    """
    paths = list_fold_checkpoints(path)
    if not paths:
        return predict_checkpoint(path, split, data, **options)
    if split != "test":
        raise UserError(
            f"{path}: each fold is evaluated on the slices that it was not trained on; leave out "
            "--split, or give the best.pt of one fold"
        )
    return pool_folds(path, [predict_checkpoint(fold, split, data, **options) for fold in paths])


def list_fold_checkpoints(run_dir: Path) -> list[Path]:
    """Return the best.pt of every fold of a run with --folds; empty for any other path.

    Raises:
        UserError: A fold is missing or has not finished an epoch.
    """
    if not run_dir.is_dir() or not (run_dir / "config.json").is_file():
        return []
    n_folds = json.loads((run_dir / "config.json").read_text("utf-8"))["data"].get("folds") or 0
    paths = [run_dir / f"fold_{fold}" / "best.pt" for fold in range(1, n_folds + 1)]
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"{path} is missing; continue with python main.py --resume {quote(run_dir)}"
            )
    return paths


def predict_checkpoint(
    path: Path, split: str, data: Path | None, *, device: str, batch_size: int, threads: int
) -> Predictions:
    """Load one checkpoint and predict the slices of a split.

    Raises:
        UserError: No epoch is finished, slices are missing, a class is not in the checkpoint, or
            logits are NaN or infinite.
    """
    checkpoint = checkpoints.load_run(path)
    if not checkpoint["best"]:
        raise UserError(
            f"{path}: no epoch is finished; continue with "
            f"python main.py --resume {quote(path.parent)}"
        )
    keep_freed_memory()
    helper.set_threads(threads or checkpoint["threads"])
    on_device = helper.resolve_device(device)
    network = checkpoints.restore_model(checkpoint, path).to(on_device)
    data_dir = data or Path(checkpoint["data"])
    table = dataset.assign_split(dataset.load_table(data_dir), checkpoint["split"])
    rows = select_rows(table, checkpoint, split, data_dir)
    integrity.check_used(data_dir, set(rows["path"]))
    image_size, classes = network.preprocess.image_size, checkpoint["classes"]
    [slices] = dataset.load_slices(table, [split], data_dir, classes, image_size, on_device)
    logits = forward.predict_logits(network, slices.iterate(batch_size))[0].numpy()
    n_bad = int((~np.isfinite(logits)).any(axis=1).sum())
    if n_bad:
        raise UserError(
            f"{path}: {n_bad} of {len(logits)} images have logits that are NaN or infinite; "
            "use another checkpoint or train again with a lower learning rate"
        )
    labels = slices.labels.cpu().numpy()
    assert slices.brightness is not None
    baseline_hits = baselines.score_baselines(checkpoint["baselines"], slices.brightness, labels)
    return Predictions(
        path=path,
        checkpoints=[checkpoint],
        rows=rows.reset_index(drop=True),
        labels=labels,
        calibrated=calibration.apply_calibration(checkpoint.get("calibration"), logits),
        raw_probs=softmax(logits),
        baseline_hits={name: hits.astype(float) for name, hits in baseline_hits.items()},
        related=dataset.find_related(table, rows) & (split in {"test", "val"}),
        warnings=list_warnings(checkpoint, table, split, data_dir),
        member_slices=[MemberSlices(network, slices)],
    )


def pool_folds(path: Path, folds: Sequence[Predictions]) -> Predictions:
    """Join the predictions of all folds.

    Raises:
        UserError: A slice is in more than one fold.
    """
    rows = pd.concat([fold.rows for fold in folds], ignore_index=True)
    if rows["path"].duplicated().any():
        raise UserError(f"{path}: its folds overlap; start a new run")
    return Predictions(
        path=path,
        checkpoints=[checkpoint for fold in folds for checkpoint in fold.checkpoints],
        rows=rows,
        labels=np.concatenate([fold.labels for fold in folds]),
        calibrated=calibration.Calibrated.concatenate([fold.calibrated for fold in folds]),
        raw_probs=np.concatenate([fold.raw_probs for fold in folds]),
        baseline_hits={
            name: np.concatenate([fold.baseline_hits[name] for fold in folds])
            for name in folds[0].baseline_hits
        },
        related=np.concatenate([fold.related for fold in folds]),
        warnings=[
            *dict.fromkeys(line for fold in folds for line in fold.warnings),
            f"pooled over {len(folds)} folds: each slice is predicted once, by the network that "
            "was not trained on its fold",
        ],
        member_slices=[member for fold in folds for member in fold.member_slices],
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


def average_predictions(members: Sequence[Predictions]) -> Predictions:
    """Average the calibrated probabilities of aligned members; no prediction sets are fitted.

    Source: Lakshminarayanan et al. 2017, Simple and scalable predictive uncertainty estimation
    using deep ensembles.
    """
    first, searched = members[0], [member.n_training_slices for member in members]
    return replace(
        first,
        checkpoints=[checkpoint for member in members for checkpoint in member.checkpoints],
        calibrated=calibration.Calibrated(
            np.mean([member.calibrated.probs for member in members], axis=0)
        ),
        raw_probs=np.mean([member.raw_probs for member in members], axis=0),
        baseline_hits={
            name: np.mean([member.baseline_hits[name] for member in members], axis=0)
            for name in first.baseline_hits
        },
        related=np.any([member.related for member in members], axis=0),
        warnings=list(dict.fromkeys(line for member in members for line in member.warnings)),
        member_slices=[],
        is_ensemble=True,
        n_training_slices=None if None in searched else first.n_training_slices,
    )


def select_rows(
    table: pd.DataFrame, checkpoint: dict[str, Any], split: str, data_dir: Path
) -> pd.DataFrame:
    """Select the rows of a split as the run recorded it.

    Raises:
        UserError: Slices of the split are missing, or a class is not in the checkpoint.
    """
    rows = table if split == "all" else table[table["split"] == split]
    if split != "all":
        dataset.check_complete(table, checkpoint["split"], split, data_dir, checkpoint["run"])
    unknown = sorted(set(rows["label"]) - set(checkpoint["classes"]))
    if unknown:
        raise UserError(
            f"{data_dir}: class {', '.join(unknown)} is not one of the checkpoint's classes, "
            f"{', '.join(checkpoint['classes'])}; rename or remove that folder"
        )
    return rows


def list_warnings(
    checkpoint: dict[str, Any], table: pd.DataFrame, split: str, data_dir: Path
) -> list[str]:
    """List the warnings that apply to metrics of this checkpoint on this split."""
    warnings = []
    if checkpoint["phantom"] or dataset.is_phantom(data_dir):
        warnings.append(PHANTOM)
    if checkpoint["config"]["data"]["split_by"] == "image":
        warnings.append(LEAKY_SPLIT)
    if not dataset.has_searched_duplicates(data_dir):
        warnings.append(DUPLICATES_UNKNOWN)
    n_known = int((table["split"] != "").sum())
    n_train = int((table["split"] == "train").sum())
    if split in {"train", "val"}:
        warnings.append(
            f"SEEN: the run was trained, or its best epoch chosen, on these {split} slices"
        )
    elif split == "all" and n_known:
        warnings.append(
            f"SEEN: {n_known} of these {len(table)} slices belong to the run; it was trained on "
            f"{n_train}"
        )
    return warnings


def describe_leak(predictions: Predictions) -> list[str]:
    """Return a warning if slices are related to training slices."""
    n_related = int(predictions.related.sum())
    if not n_related:
        return []
    return [
        f"LEAK: {n_related} of these {len(predictions.labels)} slices have a duplicate or related "
        "slice in the training split of the run; the figures are too high"
    ]
