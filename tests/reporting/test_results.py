"""metrics.json, predictions.csv and the folder that they are written to."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest

from evaluation import predictions
from helper import UserError
from reporting import plots, results
from reporting.results import build_report, check_results_dir, tabulate, write_results
from tests.support.builders import FIGURES, RESULT_FILES, Patch, Run, list_files, read_metrics

IDENTITY = {"run": "first", "checkpoint": "session/first/best.pt", "split": "test"}
CLASSES = ["Glioma", "Menin", "Tumor"]


@pytest.fixture
def predicted(trained: Run) -> predictions.Predictions:
    """The test split of the run `first`, predicted."""
    path = Path("session/first/best.pt")
    options = {"device": "cpu", "batch_size": 32, "threads": 1}
    return predictions.predict_run(path, "test", None, **options)


def test_metrics_have_every_key_of_the_contract(first_run: Run) -> None:
    report = read_metrics(first_run.root, "first")
    assert set(report) == {
        *("schema", "run", "checkpoint", "data", "split", "n_images", "n_slices", "n_groups"),
        *("classes", "notes", "per_class", "confusion_matrix", "calibration", "conformal"),
        *(
            "review",
            "operating_points",
            "provenance",
            "baselines",
            "copies_of_training",
            "environment",
            "augrc",
            *("other_classes", "thresholds"),
            *("patients", "n_patients", "accuracy_per_patient", "recall_per_patient"),
            "label_review",
            *FIGURES,
        ),
    }
    estimates = [
        *(report[key] for key in (*FIGURES, "accuracy_per_patient", "augrc")),
        report["calibration"]["ece_debiased"],
        report["calibration"]["uncalibrated"]["ece_debiased"],
        report["conformal"]["coverage_by_group"]["by_class"]["Menin"],
    ]
    assert all(set(estimate) == {"value", "ci95"} for estimate in estimates)
    for key, names in {
        "calibration": "ece ece_debiased ece_classwise brier nll temperature uncalibrated",
        "conformal": "alpha coverage coverage_ci95 coverage_by_class coverage_by_class_ci95 "
        "coverage_by_group mean_set_size share_single share_empty",
        "baselines": "majority brightness",
        "environment": "python torch torchvision device threads commit command",
    }.items():
        assert set(report[key]) == set(names.split())
    assert None not in report["calibration"].values()
    for values in report["per_class"].values():
        assert set(values) == {"precision", "recall", "specificity", "f1", "roc_auc", "support"}
    assert report["classes"] == list(report["per_class"]) == CLASSES
    assert any(note.startswith("PHANTOM") for note in report["notes"])
    assert not any("LEAK" in note or "UNCHECKED" in note for note in report["notes"])
    assert "PHANTOM" in (first_run.root / "results/first/report.html").read_text("utf-8")


def test_predictions_agree_with_the_metrics(first_run: Run) -> None:
    report = read_metrics(first_run.root, "first")
    table = pd.read_csv(first_run.root / "results/first/predictions.csv")
    probs = [f"p_{name}" for name in CLASSES]
    assert list(table) == [
        *("path", "sha256", "patient", "duplicate_set", "group", "label", "predicted"),
        *("confidence", *probs, "prediction_set", "needs_review"),
    ]
    split = pd.read_csv(first_run.root / "session/first/split.csv")
    assert sorted(table["path"]) == sorted(split.loc[split["split"] == "test", "path"])
    assert (table["label"] == table["path"].str.split("/").str[1]).all()
    accuracy = (table["label"] == table["predicted"]).mean()
    assert accuracy == pytest.approx(report["accuracy"]["value"])
    assert np.allclose(table[probs].sum(axis=1), 1, atol=1e-5)
    assert (table[probs].idxmax(axis=1).str[2:] == table["predicted"]).all()
    counts = pd.crosstab(table["label"], table["predicted"])
    counts = counts.reindex(index=CLASSES, columns=CLASSES, fill_value=0)
    assert counts.to_numpy().tolist() == report["confusion_matrix"]


def test_patients_agree_with_the_predictions(first_run: Run) -> None:
    folder = first_run.root / "results/first"
    report = read_metrics(first_run.root, "first")
    slices, patients = (pd.read_csv(folder / f"{name}.csv") for name in ("predictions", "patients"))
    probs = [f"p_{name}" for name in CLASSES]
    assert list(patients) == [
        *("patient", "label", "predicted", "confidence", *probs, "n_slices", "n_slices_right"),
    ]
    by_patient = slices.groupby("patient")
    assert np.allclose(patients[probs], by_patient[probs].mean(), atol=2e-6)
    assert patients["n_slices"].tolist() == by_patient.size().tolist()
    assert patients["n_slices_right"].sum() == (slices["label"] == slices["predicted"]).sum()
    assert (patients[probs].idxmax(axis=1).str[2:] == patients["predicted"]).all()
    accuracy = (patients["label"] == patients["predicted"]).mean()
    assert accuracy == pytest.approx(report["accuracy_per_patient"]["value"])
    assert (report["patients"], report["n_patients"]) == ("known", len(patients))


def test_unknown_patients_are_stated(predicted: predictions.Predictions) -> None:
    identity = {**IDENTITY, "data": predicted.checkpoints[0]["data"], "environment": {}}
    known = build_report(predicted, identity)
    assert not find_notes(known)
    folder = Path("results/first")
    write_results(folder, known, predicted, 0)
    assert "none of them is known to have a slice in the training" in read_both(folder)
    rows = predicted.rows
    n_named = int((rows["patient"] == rows["patient"].iloc[0]).sum())
    one = rows["patient"].where(rows["patient"] == rows["patient"].iloc[0], "")
    partly = replace(predicted, rows=rows.assign(patient=one))
    report = build_report(partly, identity)
    assert (report["patients"], report["n_patients"]) == ("partly known", 1)
    [note] = find_notes(report)
    assert note.startswith(f"Patients: known for {n_named} of {len(rows)} slices")
    unknown = replace(predicted, rows=rows.assign(patient=""))
    report = build_report(unknown, identity)
    assert report["patients"] == "unknown"
    assert report["accuracy_per_patient"] == {"value": None, "ci95": None}
    write_results(folder, report, unknown, 0)
    assert "patients.csv" not in list_files(folder)
    text = read_both(folder)
    assert text.count("Groups found in pictures are not patients: the accuracy on new") == 2
    assert "per patient |" not in text
    [note] = find_notes(build_report(unknown, identity | {"split": "all"}))
    assert "the intervals are too narrow" in note
    assert "new patients" not in note


def find_notes(report: dict[str, Any]) -> list[str]:
    """The notes on patients."""
    return [note for note in report["notes"] if note.startswith(("Patients: ", "UNKNOWN"))]


def read_both(folder: Path) -> str:
    """The report and the model card without line breaks."""
    texts = [(folder / name).read_text("utf-8") for name in ("report.html", "model_card.md")]
    return " ".join(" ".join(texts).split())


def test_a_prediction_set_joins_its_classes(predicted: predictions.Predictions) -> None:
    sets = np.zeros((len(predicted.labels), 3), dtype=bool)
    sets[0, [0, 2]], sets[1, 1] = True, True
    object.__setattr__(predicted.calibrated, "prediction_sets", sets)
    table = tabulate(predicted)
    assert table["prediction_set"].tolist()[:3] == ["Glioma|Tumor", "Menin", ""]
    assert table["needs_review"].tolist()[:3] == [True, False, True]


def test_related_slices_in_training_are_counted(predicted: predictions.Predictions) -> None:
    predicted.related[:2] = True
    notes = build_report(predicted, {**IDENTITY, "data": "data", "environment": {}})["notes"]
    words = f"LEAK: 2 of these {len(predicted.labels)} slices"
    assert any(note.startswith(words) for note in notes)


def test_metrics_are_written_last(predicted: predictions.Predictions, monkeypatch: Patch) -> None:
    """Plots of an earlier evaluation are removed, and metrics.json is written last."""
    folder = Path("results/second")
    (folder / "plots").mkdir(parents=True)
    (folder / "plots" / "stress.png").write_bytes(b"old")
    (folder / "metrics.json").write_text("{}")
    report = build_report(predicted, {**IDENTITY, "data": "data", "environment": {}})
    monkeypatch.setattr(results, "draw_plots", lambda *_: [("roc", None)])
    save = Mock()
    monkeypatch.setattr(plots, "save", save)
    with monkeypatch.context() as patch:
        patch.setattr(results, "write_model_card", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_results(folder, report, predicted, 0)
    assert "metrics.json" not in list_files(folder)
    write_results(folder, report, predicted, 0)
    assert set(list_files(folder)) == RESULT_FILES
    save.assert_called_with(None, folder / "plots/roc.png", "PHANTOM")  # the stamp


def test_results_of_another_evaluation_are_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = {**IDENTITY, "data": "data"}
    folder = tmp_path / "results" / "RUN"
    folder.mkdir(parents=True)
    check_results_dir(folder, report)  # an empty folder
    path = folder / "metrics.json"
    path.write_text(json.dumps(report))
    check_results_dir(folder, report)  # the same evaluation again
    for key in ("checkpoint", "split", "data"):
        with pytest.raises(UserError, match=f"results of {key} .*--name"):
            check_results_dir(folder, report | {key: "another"})
    for content in ("{}", "{", "[]"):
        path.write_text(content)
        with pytest.raises(UserError, match=r"metrics\.json .*damaged.*--name"):
            check_results_dir(folder, report)
