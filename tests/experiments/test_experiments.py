"""The studies behind the figures of README: their refusals, and that their commands run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from experiments import (
    headline,
    ood_rates,
    plain_fine_tuning,
    pointing_game,
    precision,
    recipes,
    scaling,
    time_to_accuracy,
)
from experiments.cli import parse_training_study
from helper import UserError
from modeling import checkpoint
from tests.support.builders import Run, expect_refusal, make_data_folder


@pytest.mark.parametrize(
    ("argv", "fewest"), [(["--seeds", "1", "1"], 1), (["--seeds", "1"], 2), (["--recipes", "x"], 1)]
)
def test_seeds_and_recipes_that_cannot_be(argv: list[str], fewest: int) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_training_study(
            "name", "", ["--weights", "w", *argv], fewest_seeds=fewest, recipes=("a", "b")
        )
    assert stopped.value.code == 2


def test_recipes_without_data_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    status = recipes.main(["--weights", "none.pth", "--recipes", "sketch", "--seeds", "0"])
    assert "prepare.py" in expect_refusal(capsys, status)
    assert not list(tmp_path.iterdir())


def test_lesions_that_a_grid_can_hit_by_hand() -> None:
    lesions = torch.zeros(2, 6, 6, dtype=torch.bool)
    lesions[0, 1, 3] = True  # the centre of a cell of 2 x 2 px
    lesions[1, 0, 0] = True
    assert pointing_game.find_ceiling(lesions, 3) == 0.5


def test_the_pointing_game_runs(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert pointing_game.main(["session/first/best.pt", "--json", "pointing.json"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("PHANTOM")
    figures = json.loads(Path("pointing.json").read_text("utf-8"))
    entry = figures["methods"]["occlusion"]
    low, high = entry["ci95"]
    assert 0 <= low <= entry["hit_rate"] <= high <= 1
    assert 0 < figures["chance"] < figures["chance_in_head"] < 1
    assert f"| occlusion | {entry['hit_rate']:.3f}" in printed


def test_the_pointing_game_needs_phantoms_of_this_version(
    trained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = checkpoint.load_run(Path("session/first/best.pt"))
    make_data_folder(Path("noise"), ("Glioma", "Menin", "Tumor"), n_each=9)
    Path("noise/CSV/phantoms.csv").write_text("seed\n" + "0\n" * 27)
    table = pointing_game.predictions.dataset.load_table(Path("noise"))
    split = pointing_game.predictions.dataset.record_split(table)
    checkpoint.save_checkpoint(Path("noise.pt"), {**kept, "data": "noise", "split": split})
    line = expect_refusal(capsys, pointing_game.main(["noise.pt"]))
    assert "prepare.py" in line
    Path("noise/CSV/phantoms.csv").unlink()
    assert "holds no phantoms" in expect_refusal(capsys, pointing_game.main(["noise.pt"]))


@pytest.mark.slow
def test_the_headline_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_data_folder(Path("noise"), ("A", "B", "C"), n_each=12)
    torch.save(torchvision.models.mobilenet_v2().state_dict(), "weights.pth")
    small = ["--data", "noise", "--model", "mobilenet_v2", "--image-size", "32", "--epochs", "1"]
    monkeypatch.setattr(headline, "RECIPE", small)
    monkeypatch.setattr(headline, "FOLDS", 2)
    command = ["--weights", "weights.pth", "--seeds", "0", "1", "--json", "headline.json"]
    assert headline.main(command) == 0
    figures = json.loads(Path("headline.json").read_text("utf-8"))
    assert figures["n_images"] == 36  # each judged once by each seed
    assert [row["run"] for row in figures["comparison"]["rows"]] == [
        *("headline-0", "headline-1", "ensemble")
    ]
    assert 0 <= figures["mean"]["coverage"] <= 1
    printed = capsys.readouterr().out
    assert "| headline-1 |" in printed
    assert headline.main(command) == 0  # nothing is trained again
    assert "epoch   1/1" not in capsys.readouterr().out


def test_a_training_is_followed_to_its_target(tmp_path: Path) -> None:
    lines = (
        "epoch   1/3  train loss 0.5  val loss 0.2  val accuracy 0.9500  val macro-F1 0.9",
        "epoch   2/3  val accuracy 0.9700",
        "note: val accuracy 0.9999",
        "epoch   3/3  val accuracy 0.9600",
    )
    script = "import time\n" + "".join(f"print({line!r}); time.sleep(0.2)\n" for line in lines)
    run = time_to_accuracy.follow(["-c", script], tmp_path, target=0.97)
    assert [accuracy for _, accuracy in run["epochs"]] == [0.95, 0.97, 0.96]
    assert run["target_s"] == run["epochs"][1][0]
    assert run["epochs"][0][0] + 0.15 < run["target_s"] < run["total_s"] - 0.5
    assert time_to_accuracy.follow(["-c", script], tmp_path, target=0.98)["target_s"] is None
    with pytest.raises(UserError, match="ended with status 3"):
        time_to_accuracy.follow(["-c", "raise SystemExit(3)"], tmp_path, target=0.9)


def test_ratios_of_times_by_hand() -> None:
    plain: list[dict[str, Any]] = [{"target_s": 600.0}, {"target_s": None}, {"target_s": 500.0}]
    ours: list[dict[str, Any]] = [{"target_s": 150.0}, {"target_s": 100.0}, {"target_s": None}]
    assert time_to_accuracy.divide({"plain": plain, "main.py": ours}) == [0.25, None, None]


@pytest.mark.slow
def test_time_to_accuracy_runs(
    tmp_path: Path, phantom_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On phantoms, from scratch, to a target that the first epoch reaches."""
    recipe = ("--no-pretrained", "--image-size", "32", "--epochs", "1")
    monkeypatch.setitem(time_to_accuracy.RECIPES, "resnet18", recipe)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(phantom_dir, "data")
    argv = ["--model", "resnet18", "--target", "0.01", "--json", "figures.json"]
    assert time_to_accuracy.main(argv) == 0
    figures = json.loads(Path("figures.json").read_text("utf-8"))
    (ratio,) = figures["ratios"]
    plain, ours = (figures["rounds"][name][0]["target_s"] for name in ("plain", "main.py"))
    assert ratio == ours / plain
    assert [path.name for path in tmp_path.iterdir() if path.name != "data"] == ["figures.json"]


def test_plain_batches_hold_every_slice_once() -> None:
    pixels = torch.arange(70, dtype=torch.uint8).view(-1, 1, 1).expand(70, 8, 8)
    batches = list(plain_fine_tuning.shuffle(pixels, torch.arange(70)))
    assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == list(range(70))
    for images, labels in batches:
        restored = images[:, 0, 0, 0] * 0.229 + 0.485
        assert torch.allclose(restored * 255, labels.float(), atol=1e-3)


@pytest.mark.slow
def test_scaling_measures_every_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scaling.json"
    argv = ["--counts", "60", "--memory-mib", "1", "--folder", str(tmp_path), "--json", str(path)]
    assert scaling.main(argv) == 0
    stages = json.loads(path.read_text("utf-8"))["stages"]["60"]
    assert list(stages) == ["prepare", "load", "decode", "train"]
    assert [stage["n"] for stage in stages.values()][:3] == [60, 60, 60]
    assert 0 < stages["train"]["n"] < 60
    assert all(stage["time_s"] > 0 for stage in stages.values())
    assert [item.name for item in tmp_path.iterdir()] == ["scaling.json"]


def test_precisions_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "precision.json"
    argv = ["--models", "net", "--image-size", "32", "--repeats", "2", "--json", str(path)]
    assert precision.main(argv) == 0
    row = json.loads(path.read_text("utf-8"))["images_per_s"]["net"]
    assert len(row["fp32"]) == len(row["bf16"]) == 2
    for fp32, bf16, ratio in zip(row["fp32"], row["bf16"], row["ratio"], strict=True):
        assert fp32 > 0
        assert ratio == bf16 / fp32


def test_strangers_and_fresh_phantoms_are_counted(trained: Run) -> None:
    argv = ["session/first/best.pt", "--count", "6", "--strangers", "2", "--json", "unlike.json"]
    assert ood_rates.main(argv) == 0
    rows = json.loads(Path("unlike.json").read_text("utf-8"))["rows"]
    assert {name: row["n"] for name, row in rows.items()} == {
        "familiar slices": 6,
        "chest film": 2,
        "page of text": 2,
        "photograph": 2,
    }
    assert rows["page of text"]["unlike"] == 1.0
    assert rows["page of text"]["distance"]["least"] > 1
