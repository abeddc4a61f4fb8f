"""evaluate.py: splits and data, calibrated probabilities, and several checkpoints together."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch

import dataset
import evaluate
import main
from evaluation import ensembles, predictions
from loading import memory_budget
from modeling import checkpoint as checkpoints
from tests.support.builders import (
    Run,
    expect_refusal,
    list_files,
    make_data_folder,
    read_metrics,
    skip_plots,
)

FIRST = "session/first/best.pt"


@pytest.fixture(autouse=True)
def _skip_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_plots(monkeypatch)


def run_evaluate(*argv: str) -> int:
    return evaluate.main([*argv, "--device", "cpu", "--gallery", "0"])


def load_first() -> dict[str, Any]:
    return checkpoints.load_run(Path(FIRST))


def change_checkpoint(name: str, **values: object) -> str:
    """Save the checkpoint of `first` with other values as session/NAME/best.pt; its path."""
    path = Path("session") / name / "best.pt"
    checkpoints.save_checkpoint(path, {**load_first(), **values})
    return str(path)


def change_head(change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of `first` with another last layer."""
    names = ("backbone.head.weight", "backbone.head.bias")
    weights = load_first()["weights"]
    return {**weights, **{name: change(weights[name]) for name in names}}


def read_predictions(run: str) -> pd.DataFrame:
    return pd.read_csv(f"results/{run}/predictions.csv")


def has_note(report: dict, words: str) -> bool:
    return any(words in note for note in report["notes"])


# ---- splits and data


def test_metrics_of_training_are_repeated(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before, take_slices = read_metrics(trained.root, "first"), Mock(wraps=dataset.take_slices)
    monkeypatch.setattr(dataset, "take_slices", take_slices)
    for budget_mib in (1e6, 0.0):  # slices in memory, and read from disk
        monkeypatch.setattr(memory_budget, "measure_host_budget_mib", lambda _, mib=budget_mib: mib)
        shutil.rmtree("results")
        assert run_evaluate(FIRST) == 0
        assert take_slices.call_args.kwargs["in_memory"] == (budget_mib > 0)
        after = read_metrics(trained.root, "first")
        assert after | {"environment": 0} == before | {"environment": 0}


def test_other_splits_and_checkpoints_have_their_own_folders(trained: Run) -> None:
    before = list_files(Path("results/first"))
    notes = {"val": "on these val slices", "train": "on these train slices"}
    for split, words in (notes | {"all": "belong to the run"}).items():
        assert run_evaluate(FIRST, "--split", split) == 0
        assert has_note(read_metrics(trained.root, f"first-{split}"), words)
    assert run_evaluate("session/first/last.pt") == 0
    assert read_metrics(trained.root, "first-last")["split"] == "test"
    assert list_files(Path("results/first")) == before


def test_other_data_may_have_fewer_classes(trained: Run) -> None:
    make_data_folder(Path("two"), ("Glioma", "Menin"))
    assert run_evaluate(FIRST, "--data", "two", "--split", "all") == 0
    report = read_metrics(trained.root, "first-on-two-all")
    assert has_note(report, "OTHER DATA")
    assert report["classes"] == ["Glioma", "Menin", "Tumor"]
    assert report["per_class"]["Tumor"]["support"] == 0
    assert report["n_images"] == 12
    card = Path("results/first-on-two-all/model_card.md").read_text("utf-8")
    assert "Evaluation data: slices of two" in card
    assert "Training data: generated phantoms of data/phantom" in card
    absent = has_note(report, "most frequent class of training, does not occur")
    assert absent == (report["baselines"]["majority"] == 0)


def test_the_split_comes_from_the_checkpoint(trained: Run, phantom_dir: Path) -> None:
    """A later change of the manifest moves no slice, and a missing duplicate search is reported."""
    shutil.copytree(phantom_dir, "other", ignore=shutil.ignore_patterns("cache"))
    path, audit = Path("other/CSV/images.csv"), Path("other/CSV/audit.json")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table["split"] = table["split"].replace({"train": "test", "test": "train"})
    table.to_csv(path, index=False)
    audit.write_text(json.dumps(json.loads(audit.read_text("utf-8")) | {"phantom": False}))
    assert run_evaluate(FIRST, "--data", "other") == 0
    before, after = (read_metrics(trained.root, name) for name in ("first", "first-on-other"))
    assert after["confusion_matrix"] == before["confusion_matrix"]
    assert has_note(after, "UNCHECKED")
    sha256 = [read_predictions(name)["sha256"].tolist() for name in ("first", "first-on-other")]
    assert sha256[0] == sha256[1]


def test_data_that_do_not_fit_are_refused(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    make_data_folder(Path("other"), ("Glioma", "Menin", "Tumor"))
    make_data_folder(Path("strange"), ("No Finding", "Stroke"))
    line = expect_refusal(capsys, run_evaluate(FIRST, "--data", "other"))
    assert "test slices of run first" in line
    line = expect_refusal(capsys, run_evaluate(FIRST, "--data", "strange", "--split", "all"))
    assert "No Finding, Stroke" in line
    assert "Glioma, Menin, Tumor" in line
    line = expect_refusal(capsys, run_evaluate(change_checkpoint("other")))
    assert "holds results of checkpoint session/first/best.pt" in line
    assert {path.name for path in Path("results").iterdir()} == {"first", "index.html"}


def test_unusable_checkpoints_are_refused(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    content = torch.load(FIRST, weights_only=True)
    Path("broken.pt").write_bytes(Path(FIRST).read_bytes()[:1000])
    torch.save({**content, "best": {}, "history": []}, "early.pt")
    torch.save({**content, "run": "../elsewhere"}, "parent.pt")
    change_checkpoint("nan", weights=change_head(lambda head: torch.full_like(head, 3e38)))
    for path, words in (
        *(("none.pt", "none.pt"), ("session", "session"), ("broken.pt", "broken.pt")),
        *(("early.pt", "no epoch is finished"), ("parent.pt", "plain name")),
        ("session/nan/best.pt", "NaN or infinite"),
    ):
        assert words in expect_refusal(capsys, run_evaluate(path, "--name", "new")), path
    for path in ("none.pt", "session", "broken.pt"):
        assert path in expect_refusal(capsys, main.main(["--resume", path]))
    assert not Path("results/new").exists()


# ---- class names and thresholds


def follow_advice(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    """Add the options that each error names until the command succeeds; return the errors."""
    lines: list[str] = []
    while (status := run_evaluate(*argv)) != 0:
        line = expect_refusal(capsys, status)
        assert line not in lines
        lines.append(line)
        advice = re.search(r"(?:--split all|(?:--class-map (?:\"[^\"]*\"|\S+) ?)+)", line)
        assert advice, line
        given = list(argv[: argv.index("--class-map")] if "--class-map" in argv else argv)
        argv = (*given, *shlex.split(advice[0]))
    return lines


@pytest.mark.parametrize(
    ("classes", "n_errors", "n_others"),
    [
        (("glioma_tumor", "MENIN", "pituitary"), 2, 6),
        (("Glioma", "meningioma", "brain tumor"), 2, 0),
        (("Glioma Images", "Healthy", "Stroke=old"), 2, 12),
        (("Healthy", "Stroke"), 2, 6),  # none is known: the example is followed
        (("Glioma", "Healthy"), 1, 6),
    ],
)
def test_the_advice_on_class_names_leads_to_an_evaluation(
    trained: Run,
    capsys: pytest.CaptureFixture[str],
    classes: tuple[str, ...],
    n_errors: int,
    n_others: int,
) -> None:
    make_data_folder(Path("other"), classes)
    assert len(follow_advice(capsys, FIRST, "--data", "other")) == n_errors
    report = read_metrics(trained.root, "first-on-other-all")
    assert report["n_images"] == 6 * len(classes) - n_others
    others = report["other_classes"] or {}
    assert sum(found["n_images"] for found in others.values()) == n_others
    assert all(sum(found["predicted"].values()) == 6 for found in others.values())
    assert has_note(report, "OTHER CLASSES") == (n_others > 0)
    assert has_note(report, "CLASS NAMES") == (n_errors == 2)
    page = Path("results/first-on-other-all/report.html").read_text("utf-8")
    assert ("class that the model lacks" in page) == (n_others > 0)
    # undefined figures are stated, and JSON has no NaN
    empty = [name for name, figures in report["per_class"].items() if not figures["support"]]
    assert all(has_note(report, f"{name}: ") for name in empty)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("--class-map", "Gliom=Glioma"),
            "has no class Gliom; its classes are Menin, glioma_tumor",
        ),
        (("--class-map", "glioma_tumor=gLioma"), "--class-map glioma_tumor=Glioma"),
        (("--class-map", "glioma_tumor=x"), "x is not a class of the model"),
        (("--class-map", "glioma_tumor=-", "Menin=-"), "nothing is left to evaluate"),
        (("--threshold", "Gliom=0.2"), "--class-map glioma_tumor=Glioma"),
        (("--class-map", "glioma_tumor=-", "--threshold", "A=0.2"), "A is not a class"),
    ],
)
def test_wrong_class_names_are_refused(
    trained: Run, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    make_data_folder(Path("other"), ("glioma_tumor", "Menin"))
    argv = (FIRST, "--data", "other", "--split", "all")
    assert words in expect_refusal(capsys, run_evaluate(*argv, *options))


def test_thresholds_are_measured_before_they_are_used(
    trained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_evaluate(FIRST, "--threshold", "Tumor=0", "--threshold", "Menin=0.5") == 0
    report, table = read_metrics(trained.root, "first"), read_predictions("first")
    assert set(table["predicted_by_threshold"]) == {"Tumor"}
    found = report["thresholds"]
    assert found["values"] == {"Tumor": 0.0, "Menin": 0.5}
    tumor = found["per_class"]["Tumor"]
    for unit in ("", "_per_patient"):
        assert tumor[f"sensitivity{unit}"]["value"] == 1
        assert tumor[f"specificity{unit}"]["value"] == 0
        assert tumor[f"specificity{unit}"]["ci95"][1] > 0
    assert found["accuracy"]["value"] == pytest.approx((table["label"] == "Tumor").mean())
    assert report["accuracy"]["value"] == pytest.approx(
        (table["label"] == table["predicted"]).mean()
    )
    assert "Tumor at threshold 0: sensitivity 1.0000 [" in capsys.readouterr().out
    page = Path("results/first/report.html").read_text("utf-8")
    assert "Prediction by thresholds" in page
    assert "Tumor 0.0, Menin 0.5" in page


# ---- calibration


def test_a_run_is_calibrated_on_val_when_it_ends(trained: Run) -> None:
    fitted = load_first()["calibration"]
    split = pd.read_csv("session/first/split.csv")
    val = split[split["split"] == "val"]
    assert fitted["n_images"] == len(val)
    assert fitted["n_groups"] == val["group"].nunique()
    report = read_metrics(trained.root, "first")
    assert report["calibration"]["temperature"] == fitted["temperature"]
    assert has_note(report, "that also selected the best epoch")
    # val has too few groups of a class for a set that leaves the class out
    assert has_note(report, "Glioma is in every set")
    table = read_predictions("first")
    assert set(table["prediction_set"]) == {"Glioma|Menin|Tumor"}
    assert table["needs_review"].all()
    assert report["conformal"]["coverage"] == 1.0
    assert report["conformal"]["mean_set_size"] == 3.0


def test_temperature_changes_the_probabilities_only(trained: Run) -> None:
    fitted = load_first()["calibration"]
    changed = {**fitted, "temperature": 3 * fitted["temperature"]}
    assert run_evaluate(change_checkpoint("soft", run="soft", calibration=changed)) == 0
    sharp, soft = (read_predictions(name) for name in ("first", "soft"))
    assert (soft["confidence"] < sharp["confidence"]).all()
    assert (soft["predicted"] == sharp["predicted"]).all()
    before, after = (read_metrics(trained.root, run)["calibration"] for run in ("first", "soft"))
    assert after["uncalibrated"] == before["uncalibrated"]
    assert after["nll"] != before["nll"]


def test_a_checkpoint_without_calibration_is_evaluated_and_marked(trained: Run) -> None:
    fitted = load_first()["calibration"]
    change_checkpoint("first", calibration=None)
    assert run_evaluate(FIRST) == 0
    report = read_metrics(trained.root, "first")
    assert has_note(report, "1 of 1 checkpoints have none")
    assert report["calibration"]["temperature"] is None
    assert report["conformal"]["coverage"] is None
    assert report["review"] is None
    assert read_predictions("first")["prediction_set"].isna().all()
    assert "not calibrated" in Path("results/first/model_card.md").read_text("utf-8")
    shutil.rmtree("results")  # resuming the finished run fits the calibration again
    assert main.main(["--resume", "session/first", "--device", "cpu"]) == 0
    assert load_first()["calibration"] == fitted


# ---- several checkpoints


def test_several_checkpoints_are_compared(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    weights = change_head(lambda head: -0.5 * head)
    second = change_checkpoint("second", run="second", weights=weights)
    assert run_evaluate(second) == 0
    assert run_evaluate(FIRST, second) == 0
    report = read_metrics(trained.root, "first+second")
    rows = {row["run"]: row for row in report["comparison"]["rows"]}
    assert list(rows) == ["first", "second", "ensemble"]
    alone = {name: read_metrics(trained.root, name) for name in ("first", "second")}
    for name, metrics in alone.items():
        for key in ("accuracy", "accuracy_per_slice", "accuracy_per_patient", "f1_macro"):
            assert rows[name][key]["value"] == pytest.approx(metrics[key]["value"])
            assert rows[name][key]["ci95"] == pytest.approx(metrics[key]["ci95"])
        assert rows[name]["nll"] == pytest.approx(metrics["calibration"]["nll"])
    assert rows["ensemble"]["accuracy"] == report["accuracy"]
    [pair] = [pair for pair in report["comparison"]["pairs"] if pair["second"] == "second"]
    values = [alone[name]["accuracy"]["value"] for name in ("first", "second")]
    assert pair["difference"] == pytest.approx(values[0] - values[1])
    assert report["comparison"]["spread"]["mean"] == pytest.approx(np.mean(values))
    by_patient = [alone[name]["accuracy_per_patient"]["value"] for name in ("first", "second")]
    assert pair["per_patient"]["difference"] == pytest.approx(by_patient[0] - by_patient[1])
    assert report["comparison"]["spread_per_patient"]["mean"] == pytest.approx(np.mean(by_patient))
    printed = capsys.readouterr().out
    assert "by groups" in printed
    assert "first minus second, per patient: " in printed
    assert ", per patient 0." in printed
    assert f"{report['n_patients']} patients; in brackets" in printed
    # the ensemble is the mean of the calibrated probabilities
    tables = [
        read_predictions(name).sort_values("path", ignore_index=True)
        for name in ("first", "second", "first+second")
    ]
    means = (tables[0]["p_Glioma"] + tables[1]["p_Glioma"]) / 2
    assert np.allclose(tables[2]["p_Glioma"], means, atol=2e-6)
    assert has_note(report, "nothing was fitted to the average")
    card, page = (
        Path(f"results/first+second/{name}").read_text("utf-8")
        for name in ("model_card.md", "report.html")
    )
    assert "Output: the average of" in card
    assert f"<td>first minus second</td><td>{pair['difference']:+.4f} [" in page
    assert "standard deviation" in page
    assert "<td>first minus second,\u00a0per patient</td>" in page


def test_runs_are_compared_on_their_common_slices(trained: Run) -> None:
    """In the second run two of the test slices are in val, and one file has other content."""
    split = load_first()["split"]
    moved = [row for row, name in enumerate(split["split"]) if name == "test"][:2]
    names = ["val" if row in moved else name for row, name in enumerate(split["split"])]
    other = change_checkpoint("other", run="other", split={**split, "split": names})
    options = {"device": "cpu", "batch_size": 32, "threads": 1}
    first, second = (
        predictions.predict_run(Path(path), "test", None, **options) for path in (FIRST, other)
    )
    second.rows.loc[0, "sha256"] = "another"
    reverse = np.arange(len(second.labels))[::-1]
    aligned = ensembles.align([first, second.take(reverse)])
    assert [len(each.labels) for each in aligned] == [len(first.labels) - 3] * 2
    common = set(aligned[0].rows["sha256"])
    assert not common & {"another", *(split["sha256"][row] for row in moved)}
    assert aligned[0].rows["path"].tolist() == aligned[1].rows["path"].tolist()
    assert np.array_equal(aligned[0].calibrated.probs, aligned[1].calibrated.probs)
    assert np.array_equal(ensembles.average_predictions(aligned).labels, aligned[0].labels)


def test_incomparable_runs_are_refused(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    split = load_first()["split"]
    swap = {"train": "test", "test": "train", "val": "val"}
    swapped = {**split, "split": [swap[name] for name in split["split"]]}
    for words, values in (
        ("is called first", {}),
        ("is called ensemble", {"run": "ensemble"}),
        ("no slice", {"split": swapped}),
        ("same classes", {"classes": ["Glioma", "Tumor", "Menin"]}),
    ):
        other = change_checkpoint("other", **values)
        assert words in expect_refusal(capsys, run_evaluate(FIRST, other))
    assert {path.name for path in Path("results").iterdir()} == {"first", "index.html"}
