"""evaluate.py --recalibrate: calibration on other slices, and its use by every command."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import evaluate
import predict
from evaluation import recalibration
from modeling import checkpoint as checkpoints
from preparation.manifest import load_manifest, write_manifest
from tests.support.builders import (
    Capture,
    Run,
    expect_refusal,
    hash_file,
    make_data_folder,
    read_metrics,
    skip_plots,
)

BEST = Path("session/first/best.pt")
FILE = Path("session/first/calibration-other_phantoms.json")


@pytest.fixture
def overconfident(trained: Run) -> Run:
    """The run `first`, whose temperature is far too low for other phantoms."""
    content = checkpoints.load_run(BEST)
    content["calibration"]["temperature"] = 0.1
    BEST.unlink()
    checkpoints.save_checkpoint(BEST, content)
    return trained


def recalibrate(*argv: str) -> int:
    return evaluate.main([*argv, "--device", "cpu"])


@pytest.mark.usefixtures("overconfident")
def test_nll_and_ece_fall_on_other_slices(
    other_phantoms: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_plots(monkeypatch)
    before = hash_file(BEST)
    assert recalibrate(str(BEST), "--recalibrate", str(other_phantoms)) == 0
    assert hash_file(BEST) == before
    output = capsys.readouterr().out
    values = json.loads(FILE.read_text("utf-8"))
    report = values["report"]
    assert report["after"]["nll"] < report["before"]["nll"]
    assert report["after"]["ece"] < report["before"]["ece"]
    for words in (
        f"temperature: 0.100 -> {values['calibration']['temperature']:.3f}",
        f"NLL: {report['before']['nll']:.4f} -> {report['after']['nll']:.4f}",
        "coverage of the prediction sets: ",
        "share to review by the sets: ",
        "OOD threshold: 1.000 -> ",
        "is in every prediction set",
        f"--calibration {FILE.as_posix()}",
    ):
        assert words in output
    # evaluated with it, and warned about slices that it was fitted on
    argv = [str(BEST), "--data", str(other_phantoms), "--split", "all"]
    assert recalibrate(*argv, "--calibration", str(FILE)) == 0
    metrics = read_metrics(Path(), f"first-on-other_phantoms-all-{FILE.stem}")
    assert metrics["calibration"]["temperature"] == values["calibration"]["temperature"]
    assert any("SEEN: the calibration was fitted on 60" in note for note in metrics["notes"])
    images = [str(other_phantoms / "Images/Menin"), "--device", "cpu"]
    for number, options in enumerate(([], ["--calibration", str(FILE)])):
        out = ["--out", f"{number}.csv"]
        assert predict.main([str(BEST), *images, *options, *out]) == 0
    sharp, soft = (pd.read_csv(f"{number}.csv") for number in range(2))
    assert (soft["confidence"] < sharp["confidence"]).all()
    assert (soft["predicted"] == sharp["predicted"]).all()


@pytest.mark.usefixtures("crossed")
def test_an_ensemble_is_recalibrated_as_a_whole(other_phantoms: Path, capsys: Capture) -> None:
    assert recalibrate("session/cross", "--recalibrate", str(other_phantoms), "--name", "b") == 0
    values = json.loads(Path("session/cross/calibration-b.json").read_text("utf-8"))
    assert len(values["weights_sha256"]) == 3
    assert values["calibration"]["n_images"] == 60
    assert values["ood_threshold"] > 0
    capsys.readouterr()
    image = str(next(other_phantoms.rglob("Images/*/*.*")))
    argv = ["session/cross/fold_1/best.pt", image, "--calibration"]
    line = expect_refusal(capsys, predict.main([*argv, "session/cross/calibration-b.json"]))
    assert "fitted to other networks" in line


@pytest.mark.usefixtures("trained")
def test_unusable_slices_are_refused(other_phantoms: Path, capsys: Capture, tmp_path: Path) -> None:
    make_data_folder(Path("four"), ("Glioma", "No Finding"))
    few = Path("few")
    make_data_folder(few, ("Glioma", "Menin"), n_each=4)
    make_data_folder(Path("alike"), ("glioma_tumor", "Menin"), n_each=4)
    for folder, words in (
        ("four", "6 slices of No Finding are left out"),
        ("alike", "--class-map glioma_tumor=Glioma"),
        ("few", "8 groups, at least 20 are needed"),
        ("data/phantom", "60 of 60 slices belong to the run"),
        ("nowhere", "nowhere"),
    ):
        line = expect_refusal(capsys, recalibrate(str(BEST), "--recalibrate", folder))
        assert words in line
    Path("session/first/calibration-few.json").write_text("mine")
    line = expect_refusal(capsys, recalibrate(str(BEST), "--recalibrate", "few"))
    assert "exists; choose another --name" in line
    assert not FILE.exists()


@pytest.mark.parametrize("extra", [["--split", "all"], ["--data", "x"], ["--stress"]])
def test_options_without_effect_are_refused(extra: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        evaluate.main(["a.pt", "--recalibrate", "x", *extra])
    assert caught.value.code == 2
    assert f"leave out {extra[0]}" in capsys.readouterr().err


@pytest.mark.usefixtures("trained")
def test_the_figures_are_cross_fitted(
    other_phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong labels of one fifth of the groups change no calibrated output of that fifth."""
    shutil.copytree(other_phantoms, "changed", ignore=shutil.ignore_patterns("cache"))
    table = load_manifest(Path("changed"))
    folds = recalibration.draw_folds(table["group"])
    seen: dict[str, Any] = {}
    cross_fit = recalibration.cross_fit

    def record(held_out: Any, *rest: Any) -> Any:
        found = cross_fit(held_out, *rest)
        seen[str(len(seen))] = found[0].probs
        return found

    monkeypatch.setattr(recalibration, "cross_fit", record)
    for number in range(2):
        assert recalibrate(str(BEST), "--recalibrate", "changed", "--name", str(number)) == 0
        own = (folds == 3) & (table["label"] == "Glioma").to_numpy()
        for row in table[own].itertuples():
            source = Path("changed", row.path)
            target = Path("changed/Images/Menin", f"moved-{source.name}")
            if source.exists():
                source.rename(target)
                position = table.index[table["path"] == row.path][0]
                table.loc[position, ["path", "label"]] = [
                    target.relative_to("changed").as_posix(),
                    "Menin",
                ]
        write_manifest(table, Path("changed"))
    assert len(seen) == 2
    assert (seen["0"][folds == 3] == seen["1"][folds == 3]).all()
    assert (seen["0"] != seen["1"]).any()
