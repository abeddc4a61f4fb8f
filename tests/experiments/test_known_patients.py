"""The comparison of splits: groups, random labels, accuracy per patient, and a small run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from duplicates.finder import find_duplicates
from duplicates.result_file import save_duplicates
from experiments import known_patients, picture_groups, plot_splits
from helper import UserError
from preparation.manifest import (
    collect_thumbnails,
    load_manifest,
    manifest_path,
    measure_present,
    write_manifest,
)
from tests.support.builders import skip_plots

SLICES = pd.DataFrame(
    {
        "path": [f"Images/{label}/{row}.png" for row, label in enumerate("aaabbb")],
        "label": list("aaabbb"),
        "patient": ["p", "p", "q", "r", "r", "r"],
        "group": ["g1", "g1", "g2", "g3", "g3", "g3"],
        "duplicate_set": list("123456"),
    }
)


def write_predictions(folder: Path, probs_of_a: list[float]) -> Path:
    folder.mkdir()
    probs = np.array(probs_of_a)
    table = pd.DataFrame({"path": SLICES["path"], "p_a": probs, "p_b": 1 - probs})
    table.iloc[::-1].to_csv(folder / "predictions.csv", index=False)  # another order
    baselines = {"majority": 0.5, "brightness": 0.6}
    (folder / "metrics.json").write_text(json.dumps({"baselines": baselines}), "utf-8")
    return folder


def test_a_patient_is_scored_by_its_mean_probability(tmp_path: Path) -> None:
    first = write_predictions(tmp_path / "0", [0.4, 0.9, 0.2, 0.1, 0.1, 0.9])
    hits = known_patients.score(first, SLICES)
    assert hits["slice"].tolist() == [0, 1, 0, 1, 1, 0]
    assert hits["patient"].tolist() == [1, 0, 1]
    second = write_predictions(tmp_path / "1", [0.9, 0.9, 0.9, 0.1, 0.1, 0.1])
    runs = [first, second]
    mean = {
        unit: np.mean([known_patients.score(run, SLICES)[unit] for run in runs], axis=0)
        for unit in ("slice", "patient")
    }
    row = known_patients.describe_split(runs, SLICES, mean)
    assert row["accuracy"]["value"] == pytest.approx(0.75)
    assert row["accuracy_by_seed"] == [0.5, 1.0]
    assert row["accuracy_per_patient"]["value"] == pytest.approx(5 / 6)
    assert row["baselines"] == pytest.approx({"majority": 0.5, "brightness": 0.6})
    assert row["patients_with_errors"] == 1
    ones = {"slice": np.ones(6), "patient": np.ones(3)}
    [difference] = known_patients.compare_splits({"image": ones, "patient": mean}, SLICES).values()
    assert difference["slice"]["difference"] == pytest.approx(0.25)
    assert difference["patient"]["difference"] == pytest.approx(1 / 6)


def test_figures_of_several_sets_are_plotted(tmp_path: Path) -> None:
    estimate = {"value": 0.9, "ci95": [0.8, 0.95]}
    row = {"accuracy": estimate, "accuracy_per_patient": estimate, "baselines": {"brightness": 0.7}}
    figures = {
        **{"data": "one", "n_images": 9, "n_patients": 3},
        "models": {"mobilenet_v2": {"splits": dict.fromkeys(known_patients.SPLITS, row)}},
    }
    path, out = tmp_path / "one.json", tmp_path / "splits.png"
    path.write_text(json.dumps(figures), "utf-8")
    assert plot_splits.main([str(path), str(path), "--out", str(out)]) == 0
    with Image.open(out) as image:
        assert image.width > 800
    assert plot_splits.main([str(tmp_path / "none.json"), "--out", str(out)]) == 1


def test_random_labels_are_equal_within_a_group() -> None:
    many = pd.concat([SLICES.assign(group=SLICES["group"] + str(row)) for row in range(20)])
    drawn = known_patients.draw_labels(many.reset_index(drop=True))
    assert drawn.groupby("group")["label"].nunique().eq(1).all()
    before, after = (
        frame.drop_duplicates("group")["label"].value_counts().to_dict() for frame in (many, drawn)
    )
    assert before == after
    assert (drawn["label"] != many["label"].to_numpy()).any()
    assert (drawn["path"].str.split("/").str[1] == drawn["label"]).all()


def test_groups_are_compared_with_patients_by_pairs() -> None:
    groups, patients = np.array([0, 0, 0, 1, 1]), np.array(["p", "p", "q", "q", "q"])
    row = picture_groups.compare_groups(groups, patients)
    assert (row["recall"], row["precision"]) == (2 / 4, 2 / 4)
    assert (row["n_groups"], row["largest"]) == (2, 3)


@pytest.mark.integration
def test_picture_groups_of_phantoms_are_measured(phantom_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    assert picture_groups.main([str(phantom_dir), "--json", str(path)]) == 0
    figures = json.loads(path.read_text("utf-8"))["folders"][phantom_dir.name]
    assert figures["groups"]["average linkage, patients known"]["recall"] == 1
    assert len(figures["links"]) == len(picture_groups.SCORES)


def test_unknown_patients_and_missing_weights_are_refused(
    phantom_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match="2"):
        known_patients.main([str(phantom_dir)])
    frame = load_manifest(phantom_dir)
    write_manifest(frame.assign(patient=frame["patient"].where(frame.index > 2, "")), tmp_path)
    with pytest.raises(UserError, match=r"patients of 3 of .* --patients"):
        known_patients.load_patients(tmp_path)
    slices = known_patients.load_patients(phantom_dir)
    with pytest.raises(UserError, match="duplicate search is missing"):
        known_patients.regroup(tmp_path, slices, "picture")


@pytest.mark.integration
def test_splits_are_trained_and_compared(
    phantom_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    skip_plots(monkeypatch)
    monkeypatch.setattr(known_patients, "FOLDS", 2)
    monkeypatch.setattr(known_patients, "RECIPES", {"net": ("--image-size", "32", "--epochs", "1")})
    data = shutil.copytree(phantom_dir, tmp_path / "phantoms")
    found = find_duplicates(collect_thumbnails(measure_present(data)))
    save_duplicates(found, data / "cache" / "duplicates.npz")
    command = [str(data), "--models", "net", "--seeds", "0", "--json", "figures.json"]
    splits = ["--splits", *known_patients.SPLITS]
    assert known_patients.main([*command, *splits]) == 0
    figures = json.loads(Path("figures.json").read_text("utf-8"))
    frame = load_manifest(data)
    assert figures["n_images"] == len(frame)
    assert figures["n_patients"] == frame["patient"].nunique()
    assert list(figures["models"]["net"]["splits"]) == list(known_patients.SPLITS)
    assert len(figures["models"]["net"]["differences"]) == len(known_patients.SPLITS) - 1
    assert "| net | patient | " in capsys.readouterr().out
    assert known_patients.main([*command, *splits]) == 0  # nothing is trained again
    assert "epoch" not in capsys.readouterr().out
    assert known_patients.main([*command, "--splits", "patient", "--random-labels"]) == 0
    drawn = load_manifest(tmp_path / "phantoms-random-patient")
    assert drawn.groupby("patient")["label"].nunique().eq(1).all()
    assert manifest_path(data).read_bytes() == manifest_path(phantom_dir).read_bytes()
