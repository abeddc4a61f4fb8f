"""Self-supervised pretraining: no label, no left-out patient, and weights that main.py loads."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import dataset
from experiments import recipe_study, self_supervised
from experiments.self_supervised import PROJECTION, SimSiam, load_pixels
from helper import UserError
from model import build_model
from modeling.weights import build_initial_model
from tests.support.builders import Capture, Patch


def test_equal_views_agree_and_a_collapse_shows() -> None:
    torch.manual_seed(0)
    simsiam = SimSiam(build_model("net", 2, 32))
    views = torch.rand(8, 1, 32, 32)
    loss, spread = simsiam(views.repeat(2, 1, 1, 1))
    assert 0.5 < float(spread) <= 1.1
    loss.backward()
    assert all(each.grad is not None for each in simsiam.network.parameters())
    simsiam.eval().requires_grad_(False).predictor = nn.Sequential()
    assert float(simsiam(views.repeat(2, 1, 1, 1))[0]) == pytest.approx(-1)
    assert float(simsiam(torch.cat([views, views.flip(0)]))[0]) > -0.9999
    simsiam.projector.append(nn.Linear(PROJECTION, PROJECTION))
    nn.init.zeros_(simsiam.projector[-1].weight)  # type: ignore[arg-type]
    assert float(simsiam(views)[1]) == pytest.approx(0, abs=1e-5)


def test_patients_of_test_slices_are_left_out_of_all_folders(phantom_dir: Path) -> None:
    table = dataset.load_table(phantom_dir)
    fold = recipe_study.divide(phantom_dir)[1]
    left_out = set(table["patient"][table["split"] == "test"])
    left_out |= set(fold["patient"][fold["split"] == "test"])
    kept = table[~table["patient"].isin(left_out)]
    options = argparse.Namespace(
        data=[phantom_dir, phantom_dir], leave_out_folds=[2], image_size=32
    )
    pixels = load_pixels(options)
    classes = dataset.list_classes(table)
    (expected,) = dataset.load_slices(kept, ["all"], phantom_dir, classes, 32, torch.device("cpu"))
    assert 0 < len(kept) < len(table)
    assert torch.equal(pixels, torch.cat([expected.pixels, expected.pixels]))


def test_slices_without_a_patient_are_refused(phantom_dir: Path, monkeypatch: Patch) -> None:
    table = dataset.load_table(phantom_dir)
    table.loc[3, "patient"] = ""
    monkeypatch.setattr(dataset, "load_table", lambda *_: table.copy())
    options = argparse.Namespace(data=[phantom_dir], leave_out_folds=[], image_size=32)
    with pytest.raises(UserError, match="a slice has no patient; prepare it with --patients"):
        load_pixels(options)


@pytest.mark.integration
def test_weights_are_written_and_loaded(phantom_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    weights, figures = tmp_path / "weights.pth", tmp_path / "figures.json"
    command = [str(phantom_dir), "--model", "net", "--output", str(weights), "--epochs", "2"]
    command += ["--image-size", "32", "--json", str(figures), "--batch-size", "16"]
    assert self_supervised.main(command) == 0
    rows = json.loads(figures.read_text())["epochs"]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["loss"] < rows[0]["loss"]
    network = build_initial_model("net", 3, 32, weights=weights)
    stored = torch.load(weights, weights_only=True)
    own = network.backbone.state_dict()
    assert all(torch.equal(own[key], stored[key]) for key in own if not key.startswith("head"))
    assert self_supervised.main([*command, "--batch-size", "9999"]) == 1
    assert "fewer than --batch-size 9999" in capsys.readouterr().err


def test_folds_that_do_not_exist_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(tmp_path), "--output", "weights.pth", "--leave-out-folds", "9"]
    with pytest.raises(SystemExit, match="2"):
        self_supervised.main(command)
    assert "--leave-out-folds: invalid choice: 9" in capsys.readouterr().err
