"""What is fitted on val when training ends and stored in best.pt."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch

import dataset
from modeling import checkpoint
from runs.post_hoc import REFERENCE_SLICES, choose_reference, fit_post_hoc
from tests.support.builders import Run


def test_the_ood_reference_has_one_slice_per_duplicate_set() -> None:
    rows = pd.DataFrame({"duplicate_set": ["a", "a", "b", "c", "b"]})
    assert choose_reference(rows).tolist() == [0, 2, 3]
    many = pd.DataFrame({"duplicate_set": range(3 * REFERENCE_SLICES)})
    chosen = choose_reference(many)
    assert len(set(chosen.tolist())) == REFERENCE_SLICES
    assert (chosen[0], chosen[-1]) == (0, len(many) - 1)


def test_the_best_checkpoint_holds_calibration_and_reference(first_run: Run) -> None:
    best = checkpoint.load_run(first_run.root / "session/first/best.pt")
    split = pd.read_csv(first_run.root / "session/first/split.csv")
    reference = best["reference"]
    train = split[split["split"] == "train"]
    assert best["calibration"]["n_images"] == (split["split"] == "val").sum()
    assert len(reference["sha256"]) == train["duplicate_set"].nunique()
    assert set(reference["sha256"]) <= set(train["sha256"])
    assert len(reference["embeddings"]) == len(reference["labels"]) == len(reference["sha256"])
    assert reference["embeddings"].float().norm(dim=1).sub(1).abs().max() < 1e-2


def test_calibration_counts_groups_not_duplicate_sets(trained: Run) -> None:
    path = Path("session/first/best.pt")
    best = checkpoint.load_run(path)
    data_dir, classes, side = Path(best["data"]), best["classes"], best["preprocess"]["image_size"]
    table = dataset.assign_split(dataset.load_table(data_dir), best["split"])
    slices = {
        name: dataset.take_slices(table, name, data_dir, classes, side) for name in ("train", "val")
    }
    trainer: Any = SimpleNamespace(device=torch.device("cpu"), micro_batch=8, **slices)
    fit_post_hoc(path, trainer, table.assign(group="one"))
    assert table.loc[table["split"] == "val", "duplicate_set"].nunique() > 1
    assert checkpoint.load_run(path)["calibration"]["n_groups"] == 1
