"""The studies behind the figures of README: their refusals, and that their commands run."""

import json
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import Run, expect_refusal, make_data_folder

import checkpoint
from studies import headline, pointing_game, recipes
from studies.command import parse_training_study


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
    table = pointing_game.verdicts.dataset.load_table(Path("noise"))
    split = pointing_game.verdicts.dataset.record_split(table)
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
