"""Distillation: folds, predictions of the three, and the share of the gap."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import dataset
from experiments import distillation, fold_runs
from tests.support.builders import Capture, Patch


def test_each_slice_is_tested_once(phantom_dir: Path, tmp_path: Path) -> None:
    folders = distillation.write_folds(phantom_dir, tmp_path, seed=0)
    tested: list[str] = []
    for folder in folders.values():
        table = dataset.load_table(folder)
        held_out = dataset.load_table(folder / "test")
        assert set(held_out["sha256"]) == set(table.loc[table["split"] == "test", "sha256"])
        assert not set(held_out["group"]) & set(table.loc[table["split"] != "test", "group"])
        tested += list(held_out["sha256"])
    assert sorted(tested) == sorted(dataset.load_table(phantom_dir)["sha256"])


def test_differences_are_paired_and_the_gap_is_shared() -> None:
    slices = pd.DataFrame(
        {
            "group": ["a", "b", "c", "d"],
            **{"nll single": [1.0, 2.0, 3.0, 4.0], "hit single": [1.0, 0.0, 0.0, 1.0]},
            **{"nll student": [0.9, 1.9, 2.9, 3.9], "hit student": [1.0, 0.0, 0.0, 1.0]},
            **{"nll ensemble": [0.6, 1.6, 2.6, 3.6], "hit ensemble": [1.0, 1.0, 0.0, 1.0]},
        }
    )
    figures = distillation.compare(slices)
    assert figures["single"]["NLL"]["value"] == 2.5
    difference = figures["student minus single"]["NLL"]
    assert np.allclose([difference["value"], *difference["ci95"]], -0.1)  # the same in each group
    assert figures["ensemble minus single"]["accuracy"]["value"] == 0.25
    assert figures["share of the gap"]["NLL"]["value"] == pytest.approx(0.25)
    assert figures["share of the gap"]["accuracy"]["value"] == 0.0
    same = slices.assign(**{f"{key} ensemble": slices[f"{key} single"] for key in ("nll", "hit")})
    assert distillation.compare(same)["share of the gap"]["NLL"]["value"] is None


@pytest.mark.integration
def test_three_runs_of_a_fold_are_compared(
    phantom_dir: Path, empty_dir: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    for module in (fold_runs, distillation):
        monkeypatch.setattr(module, "FOLDS", 3)
    target = empty_dir / "figures.json"
    command = [str(phantom_dir), "--recipe", "--model net --image-size 32 --epochs 1"]
    command += ["--folds", "1", "--json", str(target)]
    assert distillation.main(command) == 0
    figures = json.loads(target.read_text("utf-8"))
    name = f"distillation-{phantom_dir.name}-0-1"
    table = pd.read_csv(f"results/{name}-single/predictions.csv")
    accuracy = (table["predicted"] == table["label"]).mean()
    assert figures["single"]["accuracy"]["value"] == pytest.approx(accuracy)
    assert 0 < figures["ensemble"]["NLL"]["value"] < 3
    assert {each.name for each in Path("session").glob(f"{name}-*")} == {
        f"{name}-{kind}" for kind in ("single", "teacher", "student")
    }
    assert "share of the gap" in capsys.readouterr().out
    assert distillation.main(command) == 0
    assert "epoch" not in capsys.readouterr().out  # nothing is trained again
