"""The whole program on phantoms: files, refusals, options, and what training must not use."""

import json
import os
import shutil
import sys
import urllib.error
import zipfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from PIL import Image

import args
import evaluate
import main
import prepare
from evaluation.predictions import predict_run
from modeling import checkpoint
from preparation.manifest import load_manifest, write_manifest
from runs import lifecycle
from tests.support.builders import (
    ON_CPU,
    PLOTS,
    QUICK,
    RESULT_FILES,
    SESSION_FILES,
    Capture,
    Patch,
    Run,
    expect_refusal,
    hash_file,
    list_files,
    read_metrics,
)
from tests.support.four_classes import CLASSES, write_four_class_folder


def run_main(*argv: str) -> int:
    return main.main([*QUICK, *ON_CPU, "--epochs", "1", *argv])


def load_best(run: str, root: Path = Path()) -> dict:
    return checkpoint.load_run(root / "session" / run / "best.pt")


# ---- files and output


def test_a_run_writes_its_files(first_run: Run) -> None:
    session, results = first_run.root / "session/first", first_run.root / "results/first"
    assert {path.name for path in session.iterdir()} == SESSION_FILES
    assert {path.name for path in results.iterdir()} == RESULT_FILES | {"plots"}
    plots = {path.name for path in (results / "plots").iterdir()}
    assert plots - {"label_review.png"} == PLOTS  # only with a case
    for line in ("PHANTOM", "epoch   2/2", "Research use only", "report.html"):
        assert line in first_run.output


def test_the_options_are_stored(first_run: Run) -> None:
    expected = args.parse_train([*QUICK, *ON_CPU, "--epochs", "2", "--name", "first"])
    assert isinstance(expected, args.TrainConfig)
    stored = json.loads((first_run.root / "session/first/config.json").read_text("utf-8"))
    assert args.TrainConfig.from_dict(stored) == expected
    best = load_best("first", first_run.root)
    assert args.TrainConfig.from_dict(best["config"]) == expected


@pytest.mark.usefixtures("workplace", "no_evaluation")
def test_a_split_by_image_is_reported_as_leaky(capsys: Capture) -> None:
    assert run_main("--split-by", "image", "--name", "leaky") == 0
    assert "LEAKY SPLIT" in capsys.readouterr().out
    path = Path("session/leaky/best.pt")
    predictions = predict_run(path, "test", None, device="cpu", batch_size=64, threads=0)
    groups = pd.read_csv("session/leaky/split.csv").groupby("split")["group"].apply(list)
    assert predictions.related.tolist() == [each in groups["train"] for each in groups["test"]]
    assert predictions.related.any()
    assert any("LEAKY SPLIT" in warning for warning in predictions.warnings)


# ---- refusals


def test_an_empty_data_folder_names_both_ways_to_fill_it(empty_dir: Path, capsys: Capture) -> None:
    line = expect_refusal(capsys, main.main(["--model", "net", "--epochs", "1"]))
    assert "prepare.py SOURCE" in line
    assert "--phantom" in line
    assert not list(empty_dir.iterdir())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--model resnet81", "no such model"),
        ("--model vit_b_16 --image-size 100", "--image-size 100"),
        ("--model vit_b_16 --first-size 0.25", "--first-size: vit_b_16"),
        ("--model alexnet --image-size 128 --first-size 0.25", "--first-size"),
    ],
)
def test_wrong_models_are_refused(argv: str, words: str, empty_dir: Path, capsys: Capture) -> None:
    status = main.main([*argv.split(), "--no-pretrained"])
    assert words in expect_refusal(capsys, status, expected=2)
    assert not list(empty_dir.iterdir())


@pytest.mark.usefixtures("trained")
def test_an_existing_name_is_refused(capsys: Capture) -> None:
    before = list_files(Path("session"))
    line = expect_refusal(capsys, run_main("--name", "first"))
    assert "session/first exists" in line
    assert "--resume session/first" in line
    assert list_files(Path("session")) == before
    shutil.rmtree("session/first")
    line = expect_refusal(capsys, run_main("--name", "first"))
    assert "results/first exists; choose another --name" in line
    assert not Path("session/first").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--model resnet18 --weights none.pth", "none.pth: no such file"),
        ("--model resnet18", "--weights FILE"),  # the download fails
        ("--split-seed 1 --tensorboard", "requirements-tensorboard.txt"),
    ],
)
@pytest.mark.usefixtures("workplace")
def test_failed_starts_free_their_name(
    monkeypatch: Patch, capsys: Capture, argv: str, words: str
) -> None:
    fail = Mock(side_effect=urllib.error.URLError("no network"))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    status = main.main([*QUICK, "--epochs", "1", "--name", "failed", *argv.split()])
    assert words in expect_refusal(capsys, status)
    assert words in Path("session/failed/failed.txt").read_text("utf-8")
    assert Path("session/failed/config.json").exists()
    assert main.main([*QUICK, *ON_CPU, "--epochs", "1", "--name", "failed"]) == 0
    assert "replacing a run that failed" in capsys.readouterr().out
    assert {path.name for path in Path("session/failed").iterdir()} == SESSION_FILES


@pytest.mark.usefixtures("trained")
def test_resuming_with_changed_slices_is_refused(phantom_dir: Path, capsys: Capture) -> None:
    split = pd.read_csv("session/first/split.csv")
    Path("data/phantom").unlink()
    shutil.copytree(phantom_dir, "data/phantom")
    table = load_manifest(Path("data/phantom"))
    lost = split.loc[split["split"] == "train", "sha256"].iloc[0]
    write_manifest(table[table["sha256"] != lost], Path("data/phantom"))
    line = expect_refusal(capsys, main.main(["--resume", "session/first", "--device", "cpu"]))
    assert "the slices of run first have changed" in line


# ---- data and options


@pytest.mark.usefixtures("empty_dir", "no_evaluation")
def test_training_does_not_use_the_test_split(phantom_dir: Path) -> None:
    for name in ("original", "noise"):
        shutil.copytree(phantom_dir, name, ignore=shutil.ignore_patterns("cache"))
    table = load_manifest(Path("noise"))
    for row in table.index[table["split"] == "test"]:
        path = Path("noise", table.loc[row, "path"])
        noise = np.random.default_rng(row).integers(0, 256, (32, 32), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        table.loc[row, "sha256"] = hash_file(path)
    write_manifest(table, Path("noise"))
    for name in ("original", "noise"):
        command = [*ON_CPU, "--model", "net", "--image-size", "32", "--epochs", "1"]
        assert main.main([*command, "--data", name, "--name", name]) == 0
    first, second = load_best("original"), load_best("noise")
    assert first["split"]["sha256"] != second["split"]["sha256"]
    for key, value in first["weights"].items():
        assert torch.equal(value, second["weights"][key])
    assert first["baselines"] == second["baselines"]
    assert first["calibration"] == second["calibration"]
    assert first["history"][0]["val_loss"] == second["history"][0]["val_loss"]


def test_four_other_classes(empty_dir: Path) -> None:
    count = write_four_class_folder(empty_dir / "source")
    assert prepare.main(["source"]) == 0
    command = [*ON_CPU, "--model", "net", "--image-size", "32", "--batch-size", "8"]
    assert main.main([*command, "--epochs", "2", "--name", "four"]) == 0
    report = read_metrics(empty_dir, "four")
    assert report["classes"] == sorted(CLASSES)
    assert not any("PHANTOM" in note for note in report["notes"])
    assert len(pd.read_csv("session/four/split.csv")) == count


@pytest.mark.parametrize(
    "argv",
    [
        "--class-weights balanced --mixup 0.2 --no-flip --no-quarter-turns --deterministic",
        "--cutmix 1.0 --precision bf16 --ema-decay 0 --clip-norm 0",
    ],
)
@pytest.mark.usefixtures("workplace", "no_evaluation")
def test_options_run_through(argv: str, monkeypatch: Patch) -> None:
    train = Mock(wraps=lifecycle.Trainer)
    monkeypatch.setattr(lifecycle, "Trainer", train)
    make_deterministic = Mock()
    monkeypatch.setattr(torch, "use_deterministic_algorithms", make_deterministic)
    assert run_main("--name", "options", *argv.split()) == 0
    assert (train.call_args.args[-1] is not None) == ("balanced" in argv)  # class weights
    make_deterministic.assert_called_once_with("--deterministic" in argv)


@pytest.mark.usefixtures("workplace", "no_evaluation")
def test_a_backbone_from_local_weights() -> None:
    torch.save(torchvision.models.resnet18().state_dict(), "WEIGHTS.pth")
    command = ["--model", "resnet18", "--weights", "WEIGHTS.pth", "--freeze-epochs", "1"]
    assert run_main(*command, "--name", "weights") == 0
    assert load_best("weights")["start"].endswith("WEIGHTS.pth")


@pytest.mark.data
@pytest.mark.integration
@pytest.mark.skipif("BRAIN_MRI_DATA" not in os.environ, reason="BRAIN_MRI_DATA names no archive")
def test_the_real_slices(empty_dir: Path) -> None:
    """A tenth of them, from the archive to the metrics."""
    with zipfile.ZipFile(os.environ["BRAIN_MRI_DATA"]) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))[::10]
        archive.extractall("source", names)
    assert prepare.main(["source"]) == 0
    command = ["--model", "net", "--image-size", "64", "--epochs", "4", "--device", "cpu"]
    assert main.main([*command, "--name", "real"]) == 0
    report = read_metrics(empty_dir, "real")
    assert report["accuracy"]["value"] > 0.5
    assert report["baselines"]["brightness"] > 0.6
    assert not any("LEAK" in note or "too high" in note for note in report["notes"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.usefixtures("workplace")
def test_a_run_on_cuda_gives_the_same_predictions_on_the_cpu() -> None:
    assert main.main([*QUICK, "--epochs", "2", "--device", "cuda", "--name", "cuda"]) == 0
    columns = ["p_Glioma", "p_Menin", "p_Tumor"]
    before = pd.read_csv("results/cuda/predictions.csv")[columns]
    assert evaluate.main(["session/cuda/best.pt", "--device", "cpu"]) == 0
    after = pd.read_csv("results/cuda/predictions.csv")[columns]
    assert np.allclose(before, after, atol=1e-3)
