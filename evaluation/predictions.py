"""Predictions of checkpoints on a split: one network, pooled folds or an ensemble.

The split stored in a checkpoint shows whether it was trained on a slice or on a duplicate.
"""

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import dataset
import helper
import model
from evaluation import baselines, calibration, fitted, ood
from evaluation.class_names import ClassNames, match_classes
from evaluation.ensembles import MemberSlices, Predictions, calibrate, pool_folds, stack
from evaluation.other_classes import OtherClasses
from helper import UserError
from loading.image_source import SliceSource
from modeling import activation_stats, forward, members
from modeling import checkpoint as checkpoints
from modeling.precision import keep_freed_memory
from preparation import integrity

LEAKY_SPLIT = (
    "LEAKY SPLIT (--split-by image): duplicates of one slice are in both training and test; "
    "these figures measure the leak, not the classifier"
)
PUBLISHED_SPLIT = (
    "PUBLISHED SPLIT (--keep-split): it was not made by groups of this program; prepare.py says "
    "how many of its test images are related to others"
)
DUPLICATES_UNKNOWN = (
    "UNCHECKED: this data was not searched for duplicates. They may be in both training and test, "
    "so these figures are likely too high; run prepare.py again"
)
KNOWN, OTHERS = "known classes", "other classes"
PHANTOM = "PHANTOM: generated slices; the figures do not apply to patients"


def predict_run(
    path: Path, split: str, data: Path | None, file: Path | None = None, /, **options: Any
) -> Predictions:
    """Predict with a checkpoint, or with all folds of a run with --folds.

    Folds predict the slices of their run out of fold, and other data as an ensemble.

    Args:
        path: best.pt, or the folder of a run.
        split: `test`, `val`, `train` or `all`.
        data: Another folder that prepare.py wrote; None: the data of the run.
        file: Calibration to use instead of that of the run.
        options: `device`, `batch_size`, `threads`, `class_map` of `predict_checkpoint`.

    Raises:
        UserError: As `predict_checkpoint`; or folds are incomplete or overlap, or a split or
            calibration is given that folds do not have.
    """
    paths = members.list_checkpoints(path)
    if not members.is_folds(path):
        predicted = predict_checkpoint(paths[0], split, data, **options)
        if file is None:
            return predicted
        run = fitted.Run(paths[0], predicted.checkpoints)
        return calibrate(predicted, fitted.find_fitted([run], file))
    if split == "all" and data is not None:
        return predict_ensemble(path, data, file, **options)
    if split != "test":
        raise UserError(
            f"{path}: each fold is evaluated on the slices that it was not trained on; leave out "
            "--split, give --data and --split all for other slices, or give the best.pt of one fold"
        )
    if file:
        raise UserError(
            f"{path}: its own slices are predicted out of fold, and calibrated likewise; give "
            "--calibration with --data and --split all"
        )
    return predict_out_of_fold(path, data, **options)


def predict_out_of_fold(path: Path, data: Path | None, **options: Any) -> Predictions:
    """Predict each slice by the network of a run with --folds that was not trained on its fold.

    Raises:
        UserError: As `predict_checkpoint`; or folds are incomplete or overlap.
    """
    paths = members.list_checkpoints(path)
    return pool_folds(path, [predict_checkpoint(fold, "test", data, **options) for fold in paths])


def predict_ensemble(
    path: Path, data: Path | None, file: Path | None = None, **options: Any
) -> Predictions:
    """Predict all slices of a folder by the average of the networks of a run with --folds.

    Raises:
        UserError: As `predict_checkpoint`, or its calibration is missing or damaged.
    """
    paths = members.list_checkpoints(path)
    stacked = stack([predict_checkpoint(each, "all", data, **options) for each in paths])
    found = fitted.find_fitted([fitted.Run(path, stacked.checkpoints)], file)
    return calibrate(replace(stacked, path=path), found)


def predict_checkpoint(
    path: Path,
    split: str,
    data: Path | None,
    *,
    device: str,
    batch_size: int,
    threads: int,
    class_map: Iterable[str] = (),
    with_distances: bool = False,
) -> Predictions:
    """Load one checkpoint and predict the slices of a split.

    Args:
        path: best.pt.
        split: `test`, `val`, `train` or `all`.
        data: Another folder that prepare.py wrote; None: the data of the run.
        device: As for `--device`.
        batch_size: Slices in a forward pass.
        threads: CPU threads; 0: those of training.
        class_map: `OLD=NEW` for classes of the data that have another name in the model.
        with_distances: Also compute the OOD distances.

    Raises:
        UserError: No epoch is finished, slices are missing, class names do not fit, or logits are
            NaN or infinite.
    """
    checkpoint = members.load_best(path)
    keep_freed_memory()
    helper.set_threads(threads or checkpoint["threads"])
    on_device = helper.resolve_device(device)
    network = checkpoints.restore_model(checkpoint, path).to(on_device)
    data_dir = data or Path(checkpoint["data"])
    if data is None and not data_dir.is_dir():
        raise UserError(
            f"{data_dir}: the data folder of run {checkpoint['run']} is missing; if it moved, add "
            "--data DIR"
        )
    table = dataset.assign_split(dataset.load_table(data_dir), checkpoint["split"])
    selected = select_rows(table, checkpoint, split, data_dir)
    integrity.check_used(data_dir, set(selected["path"]))
    image_size, classes = network.preprocess.image_size, checkpoint["classes"]
    names = match_classes(set(selected["label"]), classes, class_map, data_dir)
    rows, other_rows = divide_by_class(selected, names)
    parts, marked = mark_parts(table, rows, other_rows, classes)
    ranges = dataset.read_ranges(data_dir) | network.preprocess.value_ranges
    slices, *other_slices = dataset.load_slices(
        marked, parts, data_dir, classes, image_size, on_device, ranges=ranges
    )
    with contextlib.ExitStack() as hooks:
        stats = None
        if with_distances:
            stats = hooks.enter_context(activation_stats.record_activation_stats(network))
        logits = _predict_finite(network, slices, batch_size, path)
    others = None
    if other_slices:
        other_logits = _predict_finite(network, other_slices[0], batch_size, path)
        others = OtherClasses(other_rows.reset_index(drop=True), other_logits[None])
    labels = slices.labels.cpu().numpy()
    assert slices.brightness is not None
    baseline_hits = baselines.score_baselines(checkpoint["baselines"], slices.brightness, labels)
    own = fitted.get_own(checkpoint)
    distances = np.full((1, len(labels)), np.nan)
    if stats is not None:
        distances[0] = ood.measure_distances(checkpoint.get("reference"), stats.collect().numpy())
    return Predictions(
        path=path,
        checkpoints=[checkpoint],
        rows=rows.reset_index(drop=True),
        labels=labels,
        logits=logits[None],
        calibrated=calibration.apply_calibration(own.calibration, logits),
        fitted=own,
        calibrations=[own.calibration] if own.calibration else [],
        folds=np.zeros(len(labels), np.int64),
        distances=distances,
        held_out=None,
        baseline_hits={name: hits.astype(float) for name, hits in baseline_hits.items()},
        related=dataset.find_related(table, rows) & (split in {"test", "val"}),
        warnings=[*list_warnings(checkpoint, table, split, data_dir), *names.describe()],
        member_slices=[MemberSlices(network, slices)],
        others=others,
    )


def _predict_finite(
    network: model.Classifier, slices: SliceSource, batch_size: int, path: Path
) -> np.ndarray:
    """Return the logits [N, K] of slices.

    Raises:
        UserError: Some are NaN or infinite; names the checkpoint.
    """
    logits = forward.predict_logits(network, slices.iterate(batch_size))[0].numpy()
    n_bad = int((~np.isfinite(logits)).any(axis=1).sum())
    if n_bad:
        raise UserError(
            f"{path}: {n_bad} of {len(logits)} images have logits that are NaN or infinite; "
            "use another checkpoint or train again with a lower learning rate"
        )
    return logits


def select_rows(
    table: pd.DataFrame, checkpoint: dict[str, Any], split: str, data_dir: Path
) -> pd.DataFrame:
    """Select the rows of a split as the run recorded it.

    Raises:
        UserError: Slices of the split are missing, or there are none.
    """
    rows = table if split == "all" else table[table["split"] == split]
    if split != "all":
        dataset.check_complete(table, checkpoint["split"], split, data_dir, checkpoint["run"])
    if rows.empty:
        raise UserError(f"{data_dir}: no slice in the {split} split; run prepare.py again")
    return rows


def divide_by_class(rows: pd.DataFrame, names: ClassNames) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of the model's classes, with its names, and those of other classes."""
    is_other = rows["label"].isin(names.others)
    known = rows[~is_other]
    return known.assign(label=known["label"].map(names.by_label)), rows[is_other]


def mark_parts(
    table: pd.DataFrame, known: pd.DataFrame, others: pd.DataFrame, classes: list[str]
) -> tuple[list[str], pd.DataFrame]:
    """Return the names of the parts to load, and the table with them as its split.

    All rows stay in the table, so that evaluations of any part share one pixel cache. A slice of
    another class has no id; it gets that of the first class, which nothing uses.
    """
    marked = table.assign(split="")
    marked.loc[known.index, ["split", "label"]] = known.assign(split=KNOWN)[["split", "label"]]
    marked.loc[others.index, ["split", "label"]] = (OTHERS, classes[0])
    return [KNOWN, OTHERS] if len(others) else [KNOWN], marked


def list_warnings(
    checkpoint: dict[str, Any], table: pd.DataFrame, split: str, data_dir: Path
) -> list[str]:
    """List the warnings that apply to metrics of this checkpoint on this split."""
    warnings = []
    if checkpoint["phantom"] or dataset.is_phantom(data_dir):
        warnings.append(PHANTOM)
    if checkpoint["config"]["data"]["split_by"] == "image":
        warnings.append(LEAKY_SPLIT)
    if dataset.keeps_published_split(data_dir):
        warnings.append(PUBLISHED_SPLIT)
    if not dataset.has_searched_duplicates(data_dir):
        warnings.append(DUPLICATES_UNKNOWN)
    warnings += dataset.compare_ranges(checkpoint["preprocess"]["value_ranges"], data_dir)
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
