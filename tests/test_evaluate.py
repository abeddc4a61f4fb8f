"""evaluate.py: calibrated verdicts, and several checkpoints beside each other."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import evaluate
import main
from evaluation import predictions
from helper import UserError
from modeling import checkpoint
from tests.support.builders import ON_CPU, QUICK, Run, expect_refusal, read_metrics

ON = ("--device", "cpu")


def change_checkpoint(source: str, target: str, **values: object) -> None:
    """The same checkpoint with other content, at another place."""
    kept = checkpoint.load_run(Path(source))
    kept.update(values)
    checkpoint.save_checkpoint(Path(target), kept)


# ---- calibration


def test_a_run_is_calibrated_on_val_when_it_ends(trained: Run) -> None:
    kept = checkpoint.load_run(Path("session/first/best.pt"))
    split = pd.read_csv("session/first/split.csv")
    val = split[split["split"] == "val"]
    assert kept["calibration"]["n_images"] == len(val)
    assert kept["calibration"]["n_groups"] == val["group"].nunique()
    report = read_metrics(trained.root, "first")
    assert report["calibration"]["temperature"] == kept["calibration"]["temperature"]
    assert any("that also chose the epoch" in note for note in report["notes"])
    # three patients a class are too few for a set that leaves its class out
    assert any("Glioma is in every set" in note for note in report["notes"])
    table = pd.read_csv("results/first/predictions.csv")
    assert set(table["set"]) == {"Glioma|Menin|Tumor"}
    assert table["refer"].all()
    assert report["conformal"]["coverage"] == 1.0
    assert report["conformal"]["mean_set_size"] == 3.0


def test_temperature_changes_probabilities_and_nothing_else(trained: Run) -> None:
    kept = checkpoint.load_run(Path("session/first/best.pt"))
    calibration = {**kept["calibration"], "temperature": 3 * kept["calibration"]["temperature"]}
    change_checkpoint("session/first/best.pt", "session/soft/best.pt", calibration=calibration)
    assert evaluate.main(["session/soft/best.pt", *ON, "--name", "soft"]) == 0
    sharp, soft = (pd.read_csv(f"results/{name}/predictions.csv") for name in ("first", "soft"))
    assert (soft["confidence"] < sharp["confidence"]).all()
    assert (soft["predicted"] == sharp["predicted"]).all()
    before, after = (read_metrics(trained.root, name) for name in ("first", "soft"))
    assert after["accuracy"] == before["accuracy"]
    assert after["calibration"]["uncalibrated"] == before["calibration"]["uncalibrated"]
    assert after["calibration"]["nll"] != before["calibration"]["nll"]


def test_a_checkpoint_without_calibration_is_judged_and_says_so(trained: Run) -> None:
    change_checkpoint("session/first/best.pt", "session/old/best.pt", calibration=None)
    assert evaluate.main(["session/old/best.pt", *ON, "--name", "old"]) == 0
    report = read_metrics(trained.root, "old")
    assert verdicts_note(report, "1 of 1 checkpoints hold none")
    assert report["calibration"]["temperature"] is None
    assert report["conformal"]["coverage"] is None
    assert report["referral"] is None
    table = pd.read_csv("results/old/predictions.csv")
    assert table["set"].isna().all()
    assert "Output: a softmax, not calibrated, of Glioma" in read_card("old")
    assert "Output: calibrated probabilities (temperature " in read_card("first")


def read_card(run: str) -> str:
    return Path(f"results/{run}/model_card.md").read_text("utf-8")


def verdicts_note(report: dict, words: str) -> bool:
    return any(words in note for note in report["notes"])


def test_resume_calibrates_a_run_that_lacks_it(trained: Run) -> None:
    kept = checkpoint.load_run(Path("session/first/best.pt"))["calibration"]
    change_checkpoint("session/first/best.pt", "session/first/best.pt", calibration=None)
    shutil.rmtree("results")
    assert main.main(["--resume", "session/first", *ON]) == 0
    assert checkpoint.load_run(Path("session/first/best.pt"))["calibration"] == kept


def test_nan_verdicts_are_refused(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    kept = checkpoint.load_run(Path("session/first/best.pt"))
    weights = dict(kept["weights"])
    for part in ("weight", "bias"):
        weights[f"backbone.head.{part}"] = torch.full_like(weights[f"backbone.head.{part}"], 3e38)
    change_checkpoint("session/first/best.pt", "session/nan/best.pt", weights=weights)
    line = expect_refusal(capsys, evaluate.main(["session/nan/best.pt", *ON, "--name", "nan"]))
    assert "logits that are NaN or infinite" in line
    assert not Path("results/nan").exists()


# ---- several


@pytest.fixture
def second(trained: Run) -> Run:
    """A second run beside `first`, of another seed."""
    argv = [*QUICK, *ON_CPU, "--epochs", "1", "--seed", "7", "--name", "second"]
    assert main.main(argv) == 0
    return trained


BOTH = ("session/first/best.pt", "session/second/best.pt")


def test_several_are_compared(second: Run, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert evaluate.main([*BOTH, *ON]) == 0
    printed = capsys.readouterr().out
    report = read_metrics(second.root, "first+second")
    rows = {row["run"]: row for row in report["comparison"]["rows"]}
    assert list(rows) == ["first", "second", "ensemble"]
    alone = {name: read_metrics(second.root, name) for name in ("first", "second")}
    for name, figures in alone.items():
        for key in ("accuracy", "accuracy_per_slice", "f1_macro"):
            assert rows[name][key]["value"] == pytest.approx(figures[key]["value"])
            assert rows[name][key]["ci95"] == pytest.approx(figures[key]["ci95"])
        assert rows[name]["nll"] == pytest.approx(figures["calibration"]["nll"])
        assert name in printed
    assert rows["ensemble"]["accuracy"] == report["accuracy"]
    [pair] = [pair for pair in report["comparison"]["pairs"] if pair["second"] == "second"]
    values = [alone[name]["accuracy"]["value"] for name in ("first", "second")]
    assert pair["difference"] == pytest.approx(values[0] - values[1])
    assert pair["ci95"][0] <= pair["difference"] <= pair["ci95"][1]
    assert report["comparison"]["spread"]["mean"] == pytest.approx(np.mean(values))
    assert "by groups" in printed
    # the ensemble is the mean of the calibrated probabilities
    tables = [
        pd.read_csv(f"results/{name}/predictions.csv").sort_values("path", ignore_index=True)
        for name in ("first", "second", "first+second")
    ]
    means = (tables[0]["p_Glioma"] + tables[1]["p_Glioma"]) / 2
    assert np.allclose(tables[2]["p_Glioma"], means, atol=2e-6)
    assert verdicts_note(report, "nothing was fitted to the average")
    assert "Output: the average of the networks' probabilities" in read_card("first+second")


def test_only_slices_that_all_judge_are_compared(trained: Run) -> None:
    """The second run has two of the first one's test slices in val."""
    kept = checkpoint.load_run(Path("session/first/best.pt"))
    splits = list(kept["split"]["split"])
    moved = [row for row, split in enumerate(splits) if split == "test"][:2]
    for row in moved:
        splits[row] = "val"
    split = {**kept["split"], "split": splits}
    change_checkpoint("session/first/best.pt", "session/other/best.pt", run="other", split=split)
    assert evaluate.main(["session/first/best.pt", "session/other/best.pt", *ON]) == 0
    alone, both = (read_metrics(trained.root, name) for name in ("first", "first+other"))
    assert both["n_images"] == alone["n_images"] - 2
    left = set(pd.read_csv("results/first+other/predictions.csv")["sha256"])
    assert not left & {kept["split"]["sha256"][row] for row in moved}


def test_two_runs_of_one_name_are_refused(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    change_checkpoint("session/first/best.pt", "session/copy/best.pt")
    change_checkpoint("session/first/best.pt", "session/ensemble/best.pt", run="ensemble")
    for other, name in (("copy", "first"), ("ensemble", "ensemble")):
        code = evaluate.main(["session/first/best.pt", f"session/{other}/best.pt", *ON])
        assert f"is called {name}" in expect_refusal(capsys, code)
    assert not Path("results/first+first").exists()


def test_pictures_of_one_name_and_other_content_are_not_the_same(trained: Run) -> None:
    path = Path("session/first/best.pt")
    judged = predictions.judge(path, "test", None, device="cpu", batch_size=8, threads=1)
    rows = judged.rows.copy()
    rows.loc[0, "sha256"] = "another"
    other = dataclasses.replace(judged, rows=rows)
    first, second = predictions.align([judged, other])
    assert len(first.labels) == len(second.labels) == len(judged.labels) - 1
    rows["sha256"] = "another"
    with pytest.raises(UserError, match="no slice is in the test of all"):
        predictions.align([judged, dataclasses.replace(judged, rows=rows)])


def test_the_leaky_twin_is_found_where_it_is_one(
    trained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*QUICK, *ON_CPU, "--epochs", "2", "--split-by", "image", "--name", "leaky"]
    assert main.main(argv) == 0
    # training figures of the leaky run come first by name, and must not be taken
    command = ["session/leaky/best.pt", *ON, "--split", "train", "--name", "a-leaky"]
    assert evaluate.main(command) == 0
    assert evaluate.main(["session/first/best.pt", *ON]) == 0
    page = Path("results/first/report.html").read_text("utf-8")
    leaky = read_metrics(trained.root, "leaky")["accuracy"]["value"]
    card = page.partition("leaky: the same training")[2].partition("</div>")[0]
    assert f"<strong>{leaky:.4f}</strong>" in card
    assert "run leaky;" in card
    # an ensemble has none, and its average is calibrated by nothing
    change_checkpoint("session/first/best.pt", "session/again/best.pt", run="again")
    assert evaluate.main(["session/first/best.pt", "session/again/best.pt", *ON]) == 0
    page = Path("results/first+again/report.html").read_text("utf-8")
    assert "leaky: the same training" not in page
    report = read_metrics(trained.root, "first+again")
    assert report["calibration"]["temperature"] is None
    assert any("nothing was fitted to the average" in note for note in report["notes"])
    # another recipe has no twin
    shutil.copytree("session/first", "session/longer")
    kept = checkpoint.load_run(Path("session/first/best.pt"))
    config = {**kept["config"], "train": {**kept["config"]["train"], "epochs": 3}}
    change_checkpoint(
        "session/first/best.pt", "session/longer/best.pt", run="longer", config=config
    )
    assert evaluate.main(["session/longer/best.pt", *ON]) == 0
    page = Path("results/longer/report.html").read_text("utf-8")
    assert "leaky: the same training" not in page


def test_disjoint_tests_are_refused(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    kept = checkpoint.load_run(Path("session/first/best.pt"))
    swapped = {"train": "test", "test": "train", "val": "val"}
    split = {**kept["split"], "split": [swapped[name] for name in kept["split"]["split"]]}
    change_checkpoint("session/first/best.pt", "session/swapped/best.pt", split=split)
    code = evaluate.main(["session/first/best.pt", "session/swapped/best.pt", *ON])
    assert "no slice is in the test of all of them" in expect_refusal(capsys, code)


def test_other_classes_are_not_compared(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    classes = ["Glioma", "Tumor", "Menin"]
    change_checkpoint("session/first/best.pt", "session/odd/best.pt", classes=classes)
    code = evaluate.main(["session/first/best.pt", "session/odd/best.pt", *ON])
    assert "compare runs of the same classes" in expect_refusal(capsys, code)


def test_one_run_twice_agrees_with_itself(trained: Run) -> None:
    path = Path("session/first/best.pt")
    judged = predictions.judge(path, "test", None, device="cpu", batch_size=8, threads=1)
    first, second = predictions.align([judged, judged.take(np.arange(len(judged.labels))[::-1])])
    assert first.rows["path"].tolist() == second.rows["path"].tolist()
    assert np.array_equal(first.calibrated.probs, second.calibrated.probs)
    assert np.array_equal(predictions.average_members([first, second]).labels, first.labels)


def test_slices_that_exceed_the_memory_are_judged_from_disk(
    trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_metrics(trained.root, "first")
    monkeypatch.setattr(predictions, "measure_budget_mib", lambda _: 0.0)
    assert evaluate.main(["session/first/best.pt", "--device", "cpu"]) == 0
    after = read_metrics(trained.root, "first")
    for key in ("accuracy", "confusion_matrix", "baselines", "calibration"):
        assert after[key] == before[key]
