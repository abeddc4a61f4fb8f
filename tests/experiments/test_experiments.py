"""The experiments: options, refusals, and that each command runs on small data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision

import dataset
from experiments import (
    calibration_bias,
    intensity,
    interval_coverage,
    label_errors,
    ood_rates,
    planted_duplicates,
    pointing_game,
    scaling,
)
from helper import UserError
from modeling import checkpoint as checkpoints
from preparation import integrity
from preparation.manifest import load_manifest, write_manifest
from tests.support.builders import Run, expect_refusal, make_data_folder

FIRST = "session/first/best.pt"


def read_figures(path: Path | str = "figures.json") -> dict[str, Any]:
    figures = json.loads(Path(path).read_text("utf-8"))
    assert {"cpu", "cores", "commit", "torch"} <= set(figures["environment"])
    return figures


def test_lesions_that_a_grid_can_hit_by_hand() -> None:
    lesions = torch.zeros(2, 6, 6, dtype=torch.bool)
    lesions[0, 1, 3] = True  # the centre of a cell of 2 x 2 px
    lesions[1, 0, 0] = True
    assert pointing_game.compute_ceiling(lesions, 3) == 0.5


def test_the_pointing_game_on_phantoms(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [FIRST, "--methods", "occlusion", "integrated_gradients", "--per-patient", "1"]
    assert pointing_game.main([*argv, "--json", "figures.json"]) == 0
    printed = capsys.readouterr().out
    assert "PHANTOM" in printed
    figures = read_figures()
    assert figures["n_images"] == figures["n_patients"]
    assert 0 < figures["baselines"]["random place"]["hit_rate"]["value"] < 0.5
    for method in ("occlusion", "integrated_gradients"):
        entry = figures["methods"][method]
        low, high = entry["hit_rate"]["ci95"]
        assert 0 <= low <= entry["hit_rate"]["value"] <= high <= 1
        assert 0 <= entry["random"]["hit_rate"] <= 1
        assert set(entry["against_brightest"]) <= {"all", "Glioma", "Menin", "Tumor"}
    assert f"| occlusion | {figures['methods']['occlusion']['hit_rate']['value']:.3f}" in printed


def test_the_pointing_game_on_outlines(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """An outline around the whole picture contains every maximum and all energy."""
    rows = dataset.load_table(Path("data/phantom"))
    outlines = pd.DataFrame({"path": rows["path"].str.removeprefix("Images/")})
    side = int(rows["width"].max())
    outlines["outline"] = f"0,0 {side},0 {side},{side} 0,{side}"
    outlines.to_csv("outlines.csv", index=False, lineterminator="\n", encoding="utf-8")
    argv = [FIRST, "--outlines", "outlines.csv", "--methods", "integrated_gradients"]
    assert pointing_game.main([*argv, "--json", "figures.json"]) == 0
    figures = read_figures()
    for entry in (*figures["baselines"].values(), *figures["methods"].values()):
        assert entry["hit_rate"]["value"] == 1.0
        assert entry["energy_inside"]["value"] == pytest.approx(1.0)
    assert figures["methods"]["integrated_gradients"]["against_brightest"]["all"]["difference"] == 0
    capsys.readouterr()
    outlines.iloc[:3].to_csv("few.csv", index=False, lineterminator="\n", encoding="utf-8")
    assert "no outline for" in expect_refusal(
        capsys, pointing_game.main([FIRST, "--outlines", "few.csv"])
    )
    Path("other.csv").write_text("name\nx\n", encoding="utf-8")
    assert "path,outline" in expect_refusal(
        capsys, pointing_game.main([FIRST, "--outlines", "other.csv"])
    )


def test_the_pointing_game_needs_phantoms_of_this_version(
    trained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    make_data_folder(Path("noise"), ("Glioma", "Menin", "Tumor"), n_each=9)
    split = dataset.record_split(dataset.load_table(Path("noise")))
    changes = {"data": "noise", "split": split}
    checkpoints.save_checkpoint(Path("noise.pt"), checkpoints.load_run(Path(FIRST)) | changes)
    assert "holds no phantoms" in expect_refusal(capsys, pointing_game.main(["noise.pt"]))
    Path("noise/CSV/phantoms.csv").write_text("seed\n" + "0\n" * 27)
    assert "prepare.py" in expect_refusal(capsys, pointing_game.main(["noise.pt"]))


@pytest.mark.integration
def test_a_failed_stage_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stage prepare of 6 slices ended with status 1"):
        scaling.measure_stage("prepare", 6, tmp_path / "few", 1)


@pytest.mark.slow
@pytest.mark.integration
def test_scaling_measures_every_stage(tmp_path: Path) -> None:
    path = tmp_path / "scaling.json"
    argv = ["--counts", "60", "--memory-mib", "1", "--folder", str(tmp_path), "--json", str(path)]
    assert scaling.main(argv) == 0
    stages = read_figures(path)["stages"]["60"]
    assert list(stages) == ["prepare", "load", "decode", "train"]
    assert [stage["n"] for stage in stages.values()][:3] == [60, 60, 60]
    assert 0 < stages["train"]["n"] < 60
    assert all(stage["time_s"] > 0 for stage in stages.values())
    assert [item.name for item in tmp_path.iterdir()] == ["scaling.json"]


def test_pictures_of_other_kinds_are_out_of_distribution(
    trained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [FIRST, "--count", "6", "--per-kind", "2", "--json", "figures.json"]
    assert ood_rates.main(argv) == 0
    rows = read_figures()["rows"]
    counts = {"brain slices": 6, "chest film": 2, "page of text": 2, "photograph": 2}
    assert {name: row["n"] for name, row in rows.items()} == counts
    assert rows["page of text"]["out_of_distribution"] == 1.0
    assert rows["page of text"]["distance"]["least"] > 1
    bare = checkpoints.load_run(Path(FIRST)) | {"reference": None}
    checkpoints.save_checkpoint(Path("bare.pt"), bare)
    assert "no training reference" in expect_refusal(capsys, ood_rates.main(["bare.pt"]))


def test_planted_duplicates_are_found(
    tmp_path: Path, phantom_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "planted.json"
    argv = ["--data", str(phantom_dir), "--count", "5", "--json", str(path)]
    assert planted_duplicates.main(argv) == 0
    figures = read_figures(path)
    assert figures["planted"] == 5
    assert figures["recall_group"] >= figures["recall_duplicate_set"] >= 0.6
    assert figures["true_group"]["recall"] > 0
    assert "recall_link: " in capsys.readouterr().out


def test_the_coverage_of_intervals_is_simulated() -> None:
    found = interval_coverage.simulate(0.9, 60, 1.0, n_trials=40)
    assert found["image_bootstrap"] < found["coverage"]  # images of one group are identical here
    assert 0 < found["mean_width"] < 0.5


def test_methods_of_calibration_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trials = calibration_bias.simulate(0.9, 20, 0.5, 0.0, n_trials=12)
    ece, nll = (
        {name: sum(trial[key][name] for trial in trials) / len(trials) for name in trials[0][key]}
        for key in ("ece", "nll")
    )
    assert ece["fit_temperature"] < ece["plain NLL"] + 0.003 < ece["smoothed targets"]
    assert nll["fit_temperature"] < 1.05 * nll["smoothed targets"]
    assert ece["fit_temperature"] < ece["uncalibrated"]
    # the grid of the other methods is fine enough
    same = (trial["log_t"]["fit_temperature"] - trial["log_t"]["prior 1.0"] for trial in trials)
    assert max(map(abs, same)) < 2e-3
    monkeypatch.setattr(calibration_bias, "TEST_IMAGES", 3000)
    for name, values in {
        "ACCURACIES": (0.99,),
        "GROUPS": (20,),
        "SERIES": ((0.5, 0.0), (0.5, 0.03)),
        "INTERVAL_GROUPS": (30,),
        "INTERVAL_RATIOS": (1.0, 2.0),
    }.items():
        monkeypatch.setattr(calibration_bias, name, values)
    assert calibration_bias.main(["--trials", "4", "--json", "figures.json"]) == 0
    figures = read_figures()
    assert [row["n"] for row in figures["means"]] == [20, 20]
    assert [row["n"] for row in figures["by_accuracy"]] == [20]
    assert [row["n"] for row in figures["by_temperature"]] == 5 * [4]
    calibrated, uncertain = figures["intervals"]
    assert calibrated["true_ece"] < 1e-6 < uncertain["true_ece"]
    assert 0 <= uncertain["ece_coverage"] <= 1


# ---- label errors


def test_label_errors_are_planted_by_slice_and_by_patient(phantom_dir: Path) -> None:
    table = load_manifest(phantom_dir)
    for unit, key in label_errors.UNITS.items():
        condition = label_errors.Condition(unit, 0.1, 0)
        labels = label_errors.plant_errors(table, condition)
        is_wrong = labels != table["label"]
        assert table[key][is_wrong].nunique() == round(0.1 * table[key].nunique())
        assert is_wrong.groupby(table[key]).nunique().eq(1).all()
        assert set(labels) == set(table["label"])
        assert labels.equals(label_errors.plant_errors(table, condition))
        assert not labels.equals(label_errors.plant_errors(table, condition._replace(seed=1)))


def test_a_mislabelled_copy_leaves_the_original_as_it_is(phantom_dir: Path, tmp_path: Path) -> None:
    before = load_manifest(phantom_dir)
    labels = label_errors.plant_errors(before, label_errors.Condition("slices", 0.1, 0))
    true_labels = label_errors.copy_mislabelled(phantom_dir, labels, tmp_path / "copy")
    integrity.check_all(tmp_path / "copy")  # every file is where the manifest lists it
    integrity.check_all(phantom_dir)
    pd.testing.assert_frame_equal(load_manifest(phantom_dir), before)
    after = load_manifest(tmp_path / "copy")
    assert sorted(true_labels[after["path"]]) == sorted(before["label"])
    assert (true_labels[after["path"]].to_numpy() != after["label"]).sum() == 6
    moved = after.set_index("sha256")["label"].loc[before["sha256"]].to_numpy()
    assert (moved == labels).all()


def test_a_ranking_is_scored_by_hand() -> None:
    hits = np.array([True, False, True, False])
    scores = label_errors.score_order(hits, n_planted=3)
    assert scores["precision_at_planted"] == pytest.approx(2 / 3)
    assert scores["precision_at_10"] == 0.5  # of the four cases
    assert scores["recall"] == scores["recall_at_planted"] == pytest.approx(2 / 3)
    assert scores["average_precision"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert scores["n_listed"] == 4


@pytest.mark.integration
def test_label_errors_are_measured(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(label_errors, "SHARES", (0.1,))
    command = ["--data", "data/phantom", "--model", "net", "--image-size", "32", "--epochs", "1"]
    command += ["--folds", "2", "--seeds", "0", "--keep", "kept", "--json", "figures.json"]
    assert label_errors.main(command) == 0
    figures = read_figures()
    assert set(figures["pooled"]) == {"slices-0.1", "patients-0.1"}
    assert figures["conditions"]["slices-0.1-0"]["n_wrong_images"] == 6
    assert figures["conditions"]["slices-0-0"]["n_wrong_images"] == 0
    assert {path.name for path in Path("kept").iterdir()} == {
        f"phantom-net-32-1-16-2-{name}-0.csv" for name in ("slices-0", "slices-0.1", "patients-0.1")
    }
    assert "| slices-0.1 | review |" in capsys.readouterr().out
    assert label_errors.main(command) == 0  # nothing is trained again
    assert "epoch   1/1" not in capsys.readouterr().out


@pytest.mark.integration
def test_intensities_are_compared_on_two_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, classes in (("one", ("Glioma", "Menin")), ("two", ("glioma", "meningioma"))):
        table = load_manifest(make_data_folder(Path(name), classes, n_each=12))
        number = table["path"].str.extract(r"(\d+)\.png")[0].astype(int)
        table["patient"] = table["label"].str[0].str.lower() + (number // 2).astype(str)
        write_manifest(table, Path(name))
    torch.save(torchvision.models.mobilenet_v2().state_dict(), "weights.pth")
    command = ["one", "two", "--weights", "weights.pth", "--image-size", "32", "--epochs", "1"]
    command += ["--folds", "2", "--json", "figures.json"]
    assert intensity.main([*command, "--modes", "raw"]) == 0
    monkeypatch.setattr(intensity, "MODEL", "none")  # what is finished is not trained again
    assert intensity.main([*command, "--modes", "raw"]) == 0
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert intensity.main([*command, "--modes", "raw", "zscore"]) == 0
    assert "| trained on two | raw | zscore |" in capsys.readouterr().out
    figures = read_figures()
    assert figures["sets"]["one"] == {"n": 24, "patients": 12}
    raw, zscore = (figures["modes"][mode]["one"] for mode in ("raw", "zscore"))
    assert {"own", "other", "gain 40%", "gamma 1.1 or 1/1.1", "contrast 25%"} <= set(raw)
    assert "against_raw" not in raw["own"]
    difference = zscore["own"]["value"] - raw["own"]["value"]
    assert zscore["own"]["against_raw"]["difference"] == pytest.approx(difference)
    assert zscore["gain 40%"]["value"] == pytest.approx(zscore["own"]["value"], abs=0.1)


def test_intensities_need_patients(tmp_path: Path) -> None:
    make_data_folder(tmp_path / "noise")
    with pytest.raises(UserError, match="patients are unknown"):
        intensity.load_set(tmp_path / "noise", 32)
