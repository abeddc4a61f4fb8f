"""The results of a run: whose slices they are of, where they go, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import evaluate
import main
import prepare
from tests.support.builders import (
    FIGURES,
    ON_CPU,
    QUICK,
    Run,
    expect_refusal,
    list_files,
    make_data_folder,
    read_metrics,
)
from tests.support.four_classes import write_four_class_folder


def test_metrics_have_every_key_of_the_contracts(first_run: Run) -> None:
    report = read_metrics(first_run.root, "first")
    top = ("schema", "run", "checkpoint", "data", "split", "n_images", "n_slices", "n_groups")
    rest = ("classes", "notes", "per_class", "confusion_matrix", "calibration", "conformal")
    more = ("referral", "operating_points", "provenance")
    assert set(report) == {*top, *rest, *more, *FIGURES, "baselines", "environment"}
    assert all(set(report[key]) == {"value", "ci95"} for key in FIGURES)
    calibration = {"ece", "ece_classwise", "brier", "nll", "temperature"}
    assert set(report["calibration"]) == {*calibration, "uncalibrated"}
    assert all(value is not None for value in report["calibration"].values())
    conformal = {"alpha", "coverage", "coverage_by_class", "mean_set_size"}
    assert set(report["conformal"]) == {*conformal, "share_single", "share_empty"}
    for figures in report["per_class"].values():
        assert set(figures) == {"precision", "recall", "specificity", "f1", "roc_auc", "support"}
    assert set(report["baselines"]) == {"majority", "brightness"}
    environment = ("python", "torch", "torchvision", "device", "threads", "commit", "command")
    assert set(report["environment"]) == set(environment)
    assert report["classes"] == ["Glioma", "Menin", "Tumor"]
    assert sum(map(sum, report["confusion_matrix"])) == report["n_images"]
    assert any(note.startswith("PHANTOM") for note in report["notes"])
    page = (first_run.root / "results/first/report.html").read_text("utf-8")
    assert "PHANTOM" in page


def test_predictions_agree_with_the_metrics(first_run: Run) -> None:
    report = read_metrics(first_run.root, "first")
    table = pd.read_csv(first_run.root / "results/first/predictions.csv")
    split = pd.read_csv(first_run.root / "session/first/split.csv")
    assert sorted(table["path"]) == sorted(split.loc[split["split"] == "test", "path"])
    assert (table["label"] == table["path"].str.split("/").str[1]).all()
    accuracy = (table["label"] == table["predicted"]).mean()
    assert accuracy == pytest.approx(report["accuracy"]["value"])
    probs = table[["p_Glioma", "p_Menin", "p_Tumor"]]
    assert np.allclose(probs.sum(axis=1), 1, atol=1e-5)
    assert (probs.idxmax(axis=1).str[2:] == table["predicted"]).all()
    confusion = pd.crosstab(table["label"], table["predicted"])
    for row, label in enumerate(report["classes"]):
        for column, predicted in enumerate(report["classes"]):
            expected = report["confusion_matrix"][row][column]
            assert confusion.get(predicted, {}).get(label, 0) == expected


def test_evaluate_alone_gives_the_same_metrics(trained: Run) -> None:
    before = read_metrics(trained.root, "first")
    shutil.rmtree("results")
    assert evaluate.main(["session/first/best.pt", "--device", "cpu"]) == 0
    after = read_metrics(trained.root, "first")
    del before["environment"], after["environment"]
    assert after == before


@pytest.mark.parametrize("split", ["val", "train", "all"])
def test_other_splits_go_elsewhere(trained: Run, split: str) -> None:
    before = list_files(Path("results/first"))
    assert evaluate.main(["session/first/best.pt", "--device", "cpu", "--split", split]) == 0
    report = read_metrics(trained.root, f"first-{split}")
    assert report["split"] == split
    words = "slices belong to the run" if split == "all" else "SEEN: these are the"
    assert any(words in note for note in report["notes"])
    assert list_files(Path("results/first")) == before


def test_other_data_is_told_and_kept_apart(trained: Run) -> None:
    assert prepare.main(["--phantom", "18", "--seed", "7", "--data", "other"]) == 0
    before = list_files(Path("results/first"))
    command = ["session/first/best.pt", "--device", "cpu", "--data", "other", "--split", "all"]
    assert evaluate.main(command) == 0
    report = read_metrics(trained.root, "first-on-other-all")
    assert report["n_images"] == 18
    assert any("OTHER DATA" in note for note in report["notes"])
    assert list_files(Path("results/first")) == before


def test_other_data_may_have_fewer_classes(trained: Run) -> None:
    make_data_folder(Path("two"), ("Glioma", "Menin"))
    command = ["session/first/best.pt", "--device", "cpu", "--data", "two", "--split", "all"]
    assert evaluate.main(command) == 0
    report = read_metrics(trained.root, "first-on-two-all")
    assert report["classes"] == ["Glioma", "Menin", "Tumor"]
    assert report["per_class"]["Tumor"]["support"] == 0
    assert report["n_images"] == 12
    card = Path("results/first-on-two-all/model_card.md").read_text("utf-8")
    assert "Judged on: slices of two" in card
    assert "Made from: generated phantoms of data/phantom" in card
    missing = any("the commonest class of training, is not among" in n for n in report["notes"])
    assert missing == (report["baselines"]["majority"] == 0)


def test_a_later_change_of_the_manifest_moves_no_slice(trained: Run, phantom_dir: Path) -> None:
    shutil.copytree(phantom_dir, "other", ignore=shutil.ignore_patterns("cache"))
    path = Path("other/CSV/images.csv")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table["split"] = table["split"].replace({"train": "test", "test": "train"})
    table.to_csv(path, index=False)
    command = ["session/first/best.pt", "--device", "cpu", "--data", "other"]
    assert evaluate.main(command) == 0
    before, after = (read_metrics(trained.root, name) for name in ("first", "first-on-other"))
    assert after["confusion_matrix"] == before["confusion_matrix"]
    judged = [
        pd.read_csv(f"results/{name}/predictions.csv") for name in ("first", "first-on-other")
    ]
    assert judged[0]["sha256"].tolist() == judged[1]["sha256"].tolist()


def test_other_data_without_the_runs_slices(
    trained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare.main(["--phantom", "18", "--seed", "7", "--data", "other"]) == 0
    capsys.readouterr()
    status = evaluate.main(["session/first/best.pt", "--device", "cpu", "--data", "other"])
    assert "test slices of run first are not there" in expect_refusal(capsys, status)
    assert not Path("results/first-on-other").exists()


def test_an_unknown_class(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    write_four_class_folder(Path("source"))
    assert prepare.main(["source", "--data", "four"]) == 0
    capsys.readouterr()
    command = ["session/first/best.pt", "--device", "cpu", "--data", "four", "--split", "all"]
    line = expect_refusal(capsys, evaluate.main(command))
    assert "No Finding" in line
    assert "Glioma, Menin, Tumor" in line


@pytest.mark.parametrize("name", ["none.pt", "session", "broken.pt"])
def test_no_checkpoint(name: str, trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.pt").write_bytes(Path("session/first/best.pt").read_bytes()[:1000])
    assert name in expect_refusal(capsys, evaluate.main([name]))
    assert name in expect_refusal(capsys, main.main(["--resume", name]))


def test_the_last_checkpoint_is_kept_apart(trained: Run) -> None:
    before = list_files(Path("results/first"))
    assert evaluate.main(["session/first/last.pt", "--device", "cpu"]) == 0
    assert read_metrics(trained.root, "first-last")["split"] == "test"
    assert list_files(Path("results/first")) == before


def test_results_of_another_checkpoint_are_not_overwritten(
    trained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = list_files(Path("results"))
    shutil.copytree("session/first", "session/second")
    command = ["session/second/best.pt", "--device", "cpu", "--name", "first"]
    line = expect_refusal(capsys, evaluate.main(command))
    assert "results/first holds results of checkpoint session/first/best.pt" in line
    assert list_files(Path("results")) == before


def test_a_damaged_metrics_file_is_named_and_harms_no_other_run(
    trained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for content in ("{}", "{", "[]"):
        Path("results/junk").mkdir(exist_ok=True)
        Path("results/junk/metrics.json").write_text(content)
        command = ["session/first/best.pt", "--device", "cpu", "--gallery", "0"]
        line = expect_refusal(capsys, evaluate.main([*command, "--name", "junk"]))
        assert "results/junk/metrics.json is not of this program" in line
        assert evaluate.main(command) == 0
        capsys.readouterr()


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp/elsewhere"])
def test_a_checkpoint_cannot_choose_where_results_go(
    name: str, trained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load("session/first/best.pt", weights_only=True)
    torch.save({**content, "best": {}, "history": []}, "early.pt")
    assert "no epoch is finished" in expect_refusal(capsys, evaluate.main(["early.pt"]))
    torch.save({**content, "run": name}, "evil.pt")
    assert "is no plain name" in expect_refusal(capsys, evaluate.main(["evil.pt"]))
    del content["preprocess"]
    torch.save(content, "short.pt")
    assert "preprocess missing" in expect_refusal(capsys, evaluate.main(["short.pt"]))


def test_groups_on_one_side_leak_nothing(first_run: Run) -> None:
    notes = read_metrics(first_run.root, "first")["notes"]
    assert not any("LEAK" in note or "not searched for" in note for note in notes)


def test_a_leak_is_counted(workplace: Path) -> None:
    argv = [*QUICK, *ON_CPU, "--epochs", "1", "--split-by", "image", "--name", "leaky"]
    assert main.main(argv) == 0
    report = read_metrics(workplace, "leaky")
    split = pd.read_csv("session/leaky/split.csv")
    learnt = set(split.loc[split["split"] == "train", "group"])
    n_related = split.loc[split["split"] == "test", "group"].isin(learnt).sum()
    assert n_related > 0
    assert any(
        f"LEAK: {n_related} of these {report['n_images']} slices" in note
        for note in report["notes"]
    )


def test_data_whose_copies_were_not_searched_for(trained: Run, phantom_dir: Path) -> None:
    shutil.copytree(phantom_dir, "other", ignore=shutil.ignore_patterns("cache"))
    path = Path("other/CSV/audit.json")
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"phantom": False}))
    command = ["session/first/best.pt", "--device", "cpu", "--data", "other"]
    assert evaluate.main(command) == 0
    notes = read_metrics(trained.root, "first-on-other")["notes"]
    assert any("copies were not searched for" in note for note in notes)
