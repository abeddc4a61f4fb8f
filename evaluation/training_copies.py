"""Search other data for copies of the slices that a run was trained on.

A run stores the features of its distinct training slices in session/RUN/features.npz, so its data
folder is not needed.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common.portable_names import quote
from duplicates.clustering import STRONG_SCORE
from duplicates.finder import Duplicates
from duplicates.result_file import load_duplicates
from duplicates.set_comparison import compare_sets
from evaluation.ensembles import Predictions
from evaluation.intervals import describe, estimate_ratio
from helper import UserError
from preparation.manifest import cache_path

FEATURES_FILE = "features.npz"


def mark_copies(predictions: Predictions, data_dir: Path) -> Predictions:
    """Mark slices that do not belong to the run and are copies of training slices as `related`.

    If the features of one side are missing, a warning says that the search was not made.

    Args:
        predictions: Of a run on any data.
        data_dir: The folder of these data.
    """
    digests = predictions.rows["sha256"].to_numpy(dtype=str)
    others = set(digests[_is_other(predictions)])
    if not others:
        return predictions
    try:
        trained = _load_trained(predictions)
        own = _load_slices(data_dir, others)
    except UserError as error:
        line = f"OTHER DATA: copies of training slices were not searched for: {error}"
        return replace(predictions, warnings=[*predictions.warnings, line])
    compared = compare_sets(own, trained)
    linked = compared.pairs[compared.scores >= STRONG_SCORE, 0]
    is_copy = np.isin(digests, np.array(own.digests, dtype=str)[linked])
    return replace(
        predictions,
        related=predictions.related | is_copy,
        n_training_slices=len(trained.digests),
    )


def summarise(predictions: Predictions) -> dict[str, Any] | None:
    """Return `copies_of_training` of metrics.json; None if copies were not searched for.

    `accuracy_without` is that of the slices that neither belong to the run nor are copies.
    """
    if predictions.n_training_slices is None:
        return None
    is_other = _is_other(predictions)
    is_copy = is_other & predictions.related
    rest = np.flatnonzero(is_other & ~is_copy)
    groups = predictions.rows["group"].to_numpy()[rest]
    return {
        "n": int(is_copy.sum()),
        "n_checked": int(is_other.sum()),
        "share": float(is_copy.sum() / is_other.sum()),
        "n_training_slices": predictions.n_training_slices,
        "accuracy_without": describe(estimate_ratio(predictions.correct[rest]), groups),
    }


def _is_other(predictions: Predictions) -> np.ndarray:
    """Return which slices belong to no split of the run, bool [N]."""
    known = {sha256 for each in predictions.checkpoints for sha256 in each["split"]["sha256"]}
    return ~predictions.rows["sha256"].isin(known).to_numpy()


def _load_trained(predictions: Predictions) -> Duplicates:
    """Load the features of the slices that the networks were trained on.

    Raises:
        UserError: There are none, or they are of another version or another run.
    """
    folder = predictions.path if predictions.path.is_dir() else predictions.path.parent
    paths = [folder / FEATURES_FILE, folder.parent / FEATURES_FILE]  # of all folds in the latter
    path = next((path for path in paths if path.is_file()), paths[0])
    stored = load_duplicates(path)
    train = {
        sha256
        for each in predictions.checkpoints
        for sha256, split in zip(each["split"]["sha256"], each["split"]["split"], strict=True)
        if split == "train"
    }
    trained = sorted(train.intersection(stored.digests)) if stored else []
    if stored is None or not trained:
        data_dir = Path(predictions.checkpoints[0]["data"])
        raise UserError(
            f"{path} is missing, or of another version or run; run python prepare.py "
            f"{quote(data_dir)} --data {quote(data_dir)} and then python main.py --resume "
            f"{quote(path.parent)}"
        )
    return stored.restrict(trained)


def _load_slices(data_dir: Path, digests: set[str]) -> Duplicates:
    """Load the features of slices of a data folder.

    Raises:
        UserError: Some are not in its cache.
    """
    known = load_duplicates(cache_path(data_dir))
    if known is None or not digests.issubset(known.digests):
        raise UserError(
            f"the cache of {data_dir} lacks their features; run python prepare.py "
            f"{quote(data_dir)} --data {quote(data_dir)}"
        )
    return known.restrict(digests)
