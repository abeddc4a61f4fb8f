"""Distillation: folds, predictions of the three, and the share of the gap."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import dataset
from experiments import distillation, fold_runs
from preparation.manifest import write_manifest
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
    assert figures["share of the gap"]["accuracy"]["value"] is None  # its interval contains 0
    worse = slices.assign(**{"nll ensemble": slices["nll single"] + 0.4})
    assert distillation.compare(worse)["share of the gap"]["NLL"]["value"] is None


@pytest.mark.integration
def test_three_runs_of_a_fold_are_compared(
    phantom_dir: Path, empty_dir: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    for module in (fold_runs, distillation):
        monkeypatch.setattr(module, "FOLDS", 3)
    copied = empty_dir / "copied"
    shutil.copytree(phantom_dir, copied)
    table = dataset.load_table(copied)
    first = Path(table["path"][0])
    twin = first.with_name("twin.png")  # the same bytes under another name
    shutil.copyfile(copied / first, copied / twin)
    more = table.iloc[:1].assign(path=twin.as_posix())
    write_manifest(pd.concat([table, more], ignore_index=True), copied)
    target = empty_dir / "figures.json"
    command = [str(copied), "--recipe", "--model net --image-size 32 --epochs 1"]
    command += ["--folds", "3", "--json", str(target)]
    assert distillation.main(command) == 0
    figures = json.loads(target.read_text("utf-8"))
    found = pd.concat(
        pd.read_csv(f"results/distillation-copied-0-{fold}-single/predictions.csv")
        for fold in (1, 2, 3)
    )
    assert len(found) == 61
    accuracy = (found["predicted"] == found["label"]).mean()
    assert figures["single"]["accuracy"]["value"] == pytest.approx(accuracy)
    assert 0 < figures["ensemble"]["NLL"]["value"] < 3
    assert len(list(Path("session").iterdir())) == 9
    assert "share of the gap" in capsys.readouterr().out
    assert distillation.main(command) == 0
    assert "epoch" not in capsys.readouterr().out  # nothing is trained again
