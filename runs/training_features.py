"""Store the features of the training slices with a run, to find their copies in other data."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

import dataset
from args import TrainConfig
from duplicates.result_file import load_duplicates, save_duplicates
from evaluation.training_copies import FEATURES_FILE
from helper import log
from preparation.manifest import cache_path


def save_training_features(
    config: TrainConfig, tables: Sequence[pd.DataFrame], data_dir: Path, run_dir: Path
) -> None:
    """Write the features of one training slice of each duplicate set to session/RUN/features.npz.

    They are taken from the cache of the duplicate search. Without it, as for phantoms, nothing is
    written.

    Args:
        config: Options of the run.
        tables: Manifest with the splits of the run, or of each of its folds.
        data_dir: The folder of these slices.
        run_dir: session/RUN.
    """
    if dataset.is_phantom(data_dir):
        return
    # duplicates of a training slice can be in other splits if files are split
    unit = "sha256" if config.data.split_by == "image" else "duplicate_set"
    rows = pd.concat([table[table["split"] == "train"] for table in tables])
    digests = rows.drop_duplicates(unit)["sha256"]
    known = load_duplicates(cache_path(data_dir))
    if known is None or not set(known.digests).issuperset(digests):
        log.info(
            "note: %s lacks features of these slices, so evaluate.py cannot find their copies in "
            "other data; run prepare.py again and resume this run",
            cache_path(data_dir),
        )
        return
    save_duplicates(known.restrict(digests), run_dir / FEATURES_FILE)
