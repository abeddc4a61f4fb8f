"""The headline: figures of each seed, the ensemble, random splits, and another set of slices."""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import fold_runs, headline
from experiments.known_patients import load_patients
from tests.support.builders import Capture, Patch


def test_class_pairs_are_used_in_both_directions() -> None:
    pairs = ["a=x", "b=y"]
    assert headline.orient_pairs(pairs, ["a", "b", "c"]) == pairs
    assert headline.orient_pairs(pairs, ["x", "y", "c"]) == ["x=a", "y=b"]


def test_a_cell_shows_a_number_with_its_interval() -> None:
    assert headline.format_cell({"value": 0.5, "ci95": [0.25, 0.75]}) == "0.5000 [0.250, 0.750]"
    assert headline.format_cell({"value": 0.5, "ci95": None}) == "0.5000"
    assert headline.format_cell({"value": None, "ci95": None}) == ""
    assert headline.format_cell(1.5) == "1.5000"
    assert headline.pick({"a": None}, ("a", "b")) is None
    assert headline.pick({"a": {"b": 2}}, ("a", "b")) == 2


def test_means_have_the_interval_of_their_groups() -> None:
    values = np.array([0.0, 1.0, 2.0, 5.0])
    alone = headline.describe_mean(values, range(4))
    half = 3.1824463 * values.std(ddof=1) / 2  # of Student's t with three degrees of freedom
    assert alone["value"] == 2.0
    assert alone["ci95"] == [0.0, pytest.approx(2 + half)]  # not below 0
    copies = headline.describe_mean(np.repeat(values, 3), np.repeat(range(4), 3))
    assert copies["ci95"] == pytest.approx(alone["ci95"])  # copies add nothing


def test_nll_and_set_size_are_read_from_the_predictions() -> None:
    table = pd.DataFrame(
        {
            **{"label": ["a", "b", "a"], "group": ["1", "2", "3"]},
            **{"p_a": ["1", "0.5", "0"], "p_b": ["0", "0.5", "1"]},
            **{"prediction_set": ["a", "a|b", ""], "needs_review": ["False", "True", "True"]},
        }
    )
    figures = headline.describe_means(table)
    assert figures["set_size"]["value"] == 1.0
    floor = -np.log(headline.SMALLEST_PROB)
    assert figures["nll"]["value"] == pytest.approx((np.log(2) + floor) / 3)
    unfitted = table.assign(prediction_set="", needs_review="")
    assert set(headline.describe_means(unfitted)) == {"nll"}


@pytest.mark.integration
def test_a_recipe_is_measured_by_patient(
    phantom_dir: Path, empty_dir: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    for module in (fold_runs, headline):
        monkeypatch.setattr(module, "FOLDS", 3)
    other, figures = empty_dir / "other", empty_dir / "figures.json"
    shutil.copytree(phantom_dir, other)
    options = ["--recipe", "--model net --image-size 32 --epochs 1", "--json", str(figures)]
    command = [str(phantom_dir), str(other), *options, "--seeds", "0", "--random-seeds"]
    assert headline.main(command) == 0
    found = json.loads(figures.read_text("utf-8"))
    assert list(found["own"]) == [phantom_dir.name, "other"]
    # the sets are the same, so each slice is predicted by the network that was not trained on it
    rows = found["own"]["other"]
    across = found["other"][f"other on {phantom_dir.name}"]
    assert across["seed 0"]["per slice"] == rows["seed 0"]["per slice"]
    check_folds(load_patients(other), Path("session/headline-other-0/split.csv"))

    command = [str(other), *options, "--seeds", "0", "1", "--random-seeds", "1"]
    assert headline.main(command) == 0
    rows = json.loads(figures.read_text("utf-8"))["own"]["other"]
    assert list(rows) == ["seed 0", "seed 1", "ensemble", "random images, seed 1"]
    for seed in (0, 1):
        table = pd.read_csv(f"results/headline-other-{seed}/predictions.csv")
        accuracy = (table["predicted"] == table["label"]).mean()
        assert rows[f"seed {seed}"]["per slice"]["value"] == pytest.approx(accuracy)
        assert rows[f"seed {seed}"]["training_s"] > 0
    assert rows["ensemble"]["n_patients"] == load_patients(other)["patient"].nunique()
    assert "| random images, seed 1 |" in capsys.readouterr().out
    assert headline.main(command) == 0
    assert "epoch" not in capsys.readouterr().out  # nothing is trained again

    path = other / "CSV" / "images.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.assign(patient="new-" + table["patient"]).to_csv(path, index=False)
    check_unknown_patients(phantom_dir, f"headline-{phantom_dir.name}-0", other)


def check_folds(slices: pd.DataFrame, split_file: Path) -> None:
    """Check that the fold of each patient is the one that tests its slices."""
    folds = slices["patient"].map(headline.find_folds(slices, split_file)).to_numpy()
    splits = pd.read_csv(split_file).set_index("path").loc[slices["path"]]
    for fold in (1, 2, 3):
        assert np.array_equal(folds == fold, splits[f"fold_{fold}"] == "test")


def check_unknown_patients(trained: Path, name: str, tested: Path) -> None:
    """Check that slices of patients who are in no fold are predicted by all networks."""
    options = argparse.Namespace(threads=1)
    probs, predicted = headline.average_unseen(trained, name, tested, [], options)
    paths = [Path("session") / name / f"fold_{fold}" / "best.pt" for fold in (1, 2, 3)]
    options_of_each = {"device": "cpu", "batch_size": 64, "threads": 1}
    parts = [
        headline.predict_checkpoint(path, "all", tested, **options_of_each)  # type: ignore[arg-type]
        for path in paths
    ]
    assert np.allclose(probs, np.mean([part.calibrated.probs for part in parts], axis=0))
    assert len(probs) == len(predicted.rows)
