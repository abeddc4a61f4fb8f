"""The whole program on phantoms: what it writes, says, refuses, and never looks at."""

import hashlib
import json
import os
import shutil
import sys
import urllib.error
import zipfile
from pathlib import Path

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
import trainer
from loading import image_source
from modeling import checkpoint
from tests.support.builders import (
    ON_CPU,
    PLOTS,
    QUICK,
    RESULT_FILES,
    SESSION_FILES,
    Run,
    expect_refusal,
    list_files,
    read_metrics,
)
from tests.support.four_classes import CLASSES, write_four_class_folder


def run_main(*argv: str) -> int:
    return main.main([*QUICK, *ON_CPU, "--epochs", "1", *argv])


# ---- what a run writes and says


def test_a_run_writes_every_file_of_the_contracts(first_run: Run) -> None:
    session, results = first_run.root / "session/first", first_run.root / "results/first"
    assert {path.name for path in session.iterdir()} == SESSION_FILES
    assert {path.name for path in results.iterdir()} == RESULT_FILES | {"plots"}
    assert {path.name for path in (results / "plots").iterdir()} == PLOTS
    for line in ("PHANTOM", "epoch   2/2", "Research use only", "report.html"):
        assert line in first_run.output


def test_the_configuration_is_kept_as_given(first_run: Run) -> None:
    command = [*QUICK, *ON_CPU, "--epochs", "2", "--name", "first"]
    expected = args.parse_train(command)
    assert isinstance(expected, args.TrainConfig)
    kept = json.loads((first_run.root / "session/first/config.json").read_text("utf-8"))
    assert args.TrainConfig.from_dict(kept) == expected
    best = checkpoint.load_checkpoint(first_run.root / "session/first/best.pt")
    assert args.TrainConfig.from_dict(best["config"]) == expected


# ---- what is refused


def test_an_empty_data_folder_names_both_ways_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = expect_refusal(capsys, main.main(["--model", "net", "--epochs", "1"]))
    assert "prepare.py SOURCE" in line
    assert "--phantom" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model", "resnet81"], "no such model"),
        (["--model", "vit_b_16", "--image-size", "100"], "--image-size 100"),
        (["--model", "vit_b_16", "--first-size", "0.25"], "--first-size: vit_b_16"),
        (
            ["--model", "alexnet", "--image-size", "128", "--first-size", "0.25"],
            "give a larger share",
        ),
    ],
)
def test_a_wrong_model_is_found_before_any_file(
    argv: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    status = main.main([*argv, "--no-pretrained"])
    assert words in expect_refusal(capsys, status, expected=2)
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_taken(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
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
        (["--model", "resnet18", "--weights", "none.pth"], "none.pth: no such file"),
        (["--split-seed", "1", "--phantom", "--tensorboard"], "tensorboard"),
    ],
)
def test_a_failed_start_leaves_no_run_behind(
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    words: str,
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    status = main.main([*QUICK, "--epochs", "1", "--name", "failed", *argv])
    assert words in expect_refusal(capsys, status)
    assert not Path("session/failed").exists()


def test_a_missing_download_is_one_line(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    status = main.main(["--phantom", "--model", "resnet18", "--image-size", "32", "--name", "x"])
    line = expect_refusal(capsys, status)
    assert "--weights FILE" in line
    assert not Path("session/x").exists()


def test_a_changed_slice_is_refused(
    trained: Run, phantom_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(phantom_dir, "changed", ignore=shutil.ignore_patterns("cache"))
    path = next(Path("changed/Images/Glioma").iterdir())
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    command = ["session/first/best.pt", "--device", "cpu", "--data", "changed"]
    line = expect_refusal(capsys, evaluate.main(command))
    assert f"{path.name}: changed since prepare.py ran" in line


# ---- training


def test_a_run_killed_in_its_first_epoch_can_be_taken_up(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "train_step", interrupt)
        line = expect_refusal(capsys, run_main("--name", "early"), expected=130)
    assert "--resume session/early" in line
    assert main.main(["--resume", "session/early", "--device", "cpu"]) == 0
    assert read_metrics(workplace, "early")["n_images"] > 0


def test_resume_on_other_data_is_refused(
    trained: Run, phantom_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = pd.read_csv("session/first/split.csv")
    Path("data/phantom").unlink()
    shutil.copytree(phantom_dir, "data/phantom")
    path = Path("data/phantom/CSV/images.csv")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    lost = split.loc[split["split"] == "train", "sha256"].iloc[0]
    table[table["sha256"] != lost].to_csv(path, index=False)
    line = expect_refusal(capsys, main.main(["--resume", "session/first", "--device", "cpu"]))
    assert "the slices of run first are not what they were" in line


def test_resume_through_the_command_line(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*QUICK, *ON_CPU, "--epochs", "3", "--dropout", "0.4"]
    assert main.main([*command, "--name", "whole"]) == 0
    report_epoch = trainer.Trainer.report_epoch

    def interrupt(self: trainer.Trainer, improved: bool, epoch_time_s: float) -> None:
        report_epoch(self, improved, epoch_time_s)
        if self.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "report_epoch", interrupt)
        capsys.readouterr()
        line = expect_refusal(capsys, main.main([*command, "--name", "parts"]), expected=130)
    assert "--resume session/parts" in line
    assert not Path("results/parts").exists()
    assert main.main(["--resume", "session/parts", "--device", "cpu"]) == 0
    whole, parts = (
        checkpoint.load_checkpoint(Path(f"session/{run}/last.pt")) for run in ("whole", "parts")
    )
    for key in ("weights", "trained_weights"):
        assert all(torch.equal(value, parts[key][name]) for name, value in whole[key].items())
    reports = [read_metrics(workplace, run) for run in ("whole", "parts")]
    assert reports[0]["accuracy"] == reports[1]["accuracy"]
    assert reports[0]["confusion_matrix"] == reports[1]["confusion_matrix"]


def test_resume_after_a_stop_between_best_and_last(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The worst moment: best.pt may be of an epoch that last.pt knows nothing of."""
    command = [*QUICK, *ON_CPU, "--epochs", "3", "--dropout", "0.4", "--mixup", "0.3"]
    monkeypatch.setattr(evaluate, "evaluate", lambda _: None)
    assert main.main([*command, "--name", "whole"]) == 0
    save_checkpoint = trainer.save_checkpoint

    def fail(path: Path, checkpoint: dict) -> None:
        if path.name == "last.pt" and checkpoint["epoch"] == 2:
            raise OSError("disk full")
        save_checkpoint(path, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_checkpoint", fail)
        capsys.readouterr()
        assert "disk full" in expect_refusal(capsys, main.main([*command, "--name", "parts"]))
    assert checkpoint.load_checkpoint(Path("session/parts/last.pt"))["epoch"] == 1
    assert main.main(["--resume", "session/parts", "--device", "cpu"]) == 0
    for file in ("best.pt", "last.pt"):
        whole, parts = (
            checkpoint.load_checkpoint(Path("session", run, file)) for run in ("whole", "parts")
        )
        assert whole["epoch"] == parts["epoch"]
        assert all(
            torch.equal(value, parts["weights"][key]) for key, value in whole["weights"].items()
        )


def test_the_test_split_never_touches_training(
    tmp_path: Path, phantom_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = []
    for folder in ("as-is", "noise"):
        shutil.copytree(phantom_dir, folder, ignore=shutil.ignore_patterns("cache"))
        if folder == "noise":
            replace_test_slices(Path(folder))
        command = [*ON_CPU, "--model", "net", "--image-size", "32", "--epochs", "1"]
        assert main.main([*command, "--data", folder, "--name", folder]) == 0
        weights.append(checkpoint.load_checkpoint(Path("session", folder, "best.pt")))
    first, second = (kept["weights"] for kept in weights)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert weights[0]["baselines"] == weights[1]["baselines"]
    assert weights[0]["history"][0]["val_loss"] == weights[1]["history"][0]["val_loss"]


def replace_test_slices(folder: Path) -> None:
    """Put noise in place of the test slices, and their hashes into the manifest."""
    path = folder / "CSV" / "images.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    rng = np.random.default_rng(0)
    for row in table.index[table["split"] == "test"]:
        picture = folder / table.loc[row, "path"]
        Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(picture)
        table.loc[row, "sha256"] = hashlib.sha256(picture.read_bytes()).hexdigest()
    table.to_csv(path, index=False)


def test_four_other_classes_work_unedited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    count = write_four_class_folder(tmp_path / "source")
    assert prepare.main(["source"]) == 0
    command = [*ON_CPU, "--model", "net", "--image-size", "32", "--batch-size", "8"]
    assert main.main([*command, "--epochs", "2", "--name", "four"]) == 0
    report = read_metrics(tmp_path, "four")
    assert report["classes"] == sorted(CLASSES)
    assert not any("PHANTOM" in note for note in report["notes"])
    assert len(pd.read_csv("session/four/split.csv")) == count


def test_a_split_by_image_is_called_leaky(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main("--split-by", "image", "--name", "leaky") == 0
    assert "LEAKY SPLIT" in capsys.readouterr().out
    assert any("LEAKY SPLIT" in note for note in read_metrics(workplace, "leaky")["notes"])
    assert "LEAKY SPLIT" in Path("results/leaky/report.html").read_text("utf-8")


@pytest.mark.parametrize(
    "argv",
    [
        ["--class-weights", "balanced", "--mixup", "0.2"],
        ["--cutmix", "1.0", "--precision", "bf16"],
        ["--no-flip", "--no-quarter-turns", "--ema-decay", "0", "--clip-norm", "0"],
    ],
)
def test_options_run_through(workplace: Path, argv: list[str]) -> None:
    assert run_main("--name", "options", *argv) == 0


def test_slices_that_exceed_the_memory_for_them_are_read_from_disk(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "evaluate", lambda _: None)
    loads, load = [], image_source.StoredSlices._load

    def watch(self: image_source.StoredSlices, places: torch.Tensor) -> torch.Tensor:
        loads.append(len(places))
        return load(self, places)

    monkeypatch.setattr(image_source.StoredSlices, "_load", watch)
    size = ("--image-size", "160")  # 60 slices take 1.5 MiB
    assert run_main(*size, "--name", "memory") == 0
    assert not loads
    assert "--memory-mib" not in capsys.readouterr().out
    assert run_main(*size, "--memory-mib", "1", "--name", "disk") == 0
    assert "1 MiB for them (--memory-mib): read from disk" in capsys.readouterr().out
    assert loads
    first, second = (
        checkpoint.load_checkpoint(Path(f"session/{run}/best.pt")) for run in ("memory", "disk")
    )
    assert first["baselines"] == second["baselines"]
    assert first["history"][0]["val_loss"] == second["history"][0]["val_loss"]
    assert all(torch.equal(part, second["weights"][key]) for key, part in first["weights"].items())


def test_a_backbone_from_local_weights(workplace: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), "WEIGHTS.pth")
    command = ["--model", "resnet18", "--weights", "WEIGHTS.pth", "--freeze-epochs", "1"]
    assert run_main(*command, "--name", "weights") == 0
    assert checkpoint.load_checkpoint(Path("session/weights/best.pt"))["start"].endswith(
        "WEIGHTS.pth"
    )


# ---- copies on both sides


# ---- with what the machine has


@pytest.mark.data
@pytest.mark.skipif("BRAIN_MRI_DATA" not in os.environ, reason="BRAIN_MRI_DATA names no archive")
def test_the_real_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of them, from the archive to the figures."""
    with zipfile.ZipFile(os.environ["BRAIN_MRI_DATA"]) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))[::10]
        archive.extractall(tmp_path / "source", names)
    monkeypatch.chdir(tmp_path)
    assert prepare.main(["source"]) == 0
    command = ["--model", "net", "--image-size", "64", "--epochs", "4", "--device", "cpu"]
    assert main.main([*command, "--name", "real"]) == 0
    report = read_metrics(tmp_path, "real")
    assert report["accuracy"]["value"] > 0.5
    assert report["baselines"]["brightness"] > 0.6
    assert not any("LEAK" in note or "too high" in note for note in report["notes"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_trained_on_cuda_judged_on_the_cpu(workplace: Path) -> None:
    command = [*QUICK, "--epochs", "2", "--device", "cuda", "--name", "cuda"]
    assert main.main(command) == 0
    columns = ["p_Glioma", "p_Menin", "p_Tumor"]
    before = pd.read_csv("results/cuda/predictions.csv")[columns]
    assert evaluate.main(["session/cuda/best.pt", "--device", "cpu"]) == 0
    after = pd.read_csv("results/cuda/predictions.csv")[columns]
    assert np.allclose(before, after, atol=1e-3)
