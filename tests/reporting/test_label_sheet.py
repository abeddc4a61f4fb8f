"""The files of the label review: table, contact sheet, and what an evaluation writes."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import evaluate
from evaluation.label_review import find_cases
from modeling import checkpoint as checkpoints
from reporting import label_sheet
from tests.support.builders import Run, make_data_folder, read_metrics

FIRST = "session/first/best.pt"


def make_cases(data_dir: Path, n_cases: int) -> pd.DataFrame:
    """Cases of a folder whose class B looks like A: each picture is its own group."""
    make_data_folder(data_dir, ("A", "B"), n_each=n_cases)
    rows = pd.read_csv(data_dir / "CSV" / "images.csv", keep_default_na=False)
    labels = (rows["label"] == "B").to_numpy().astype(int)
    probs = np.tile([0.9, 0.1], (len(rows), 1))
    return find_cases(rows, probs, labels, ["A", "B"])


def test_a_sheet_shows_the_first_cases(tmp_path: Path) -> None:
    cases = make_cases(tmp_path, 30)
    figure = label_sheet.plot_cases(cases, tmp_path)
    assert "24 of 30 cases" in figure.get_suptitle()
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 24
    with Image.open(tmp_path / cases["path"][3]) as image:
        stored = label_sheet.resize_grey(np.asarray(image), label_sheet.SIDE_PX)
    shown = panels[3].images[0].get_array()
    assert shown is not None
    assert np.array_equal(shown, stored)
    assert panels[3].get_title().startswith("4. label B (0.10)\npredicted A (0.90)\n1 of 1 slices")


def test_16_bit_slices_are_shown_on_the_scale_of_the_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = make_cases(tmp_path, 3)
    Image.fromarray(np.full((8, 8), 1000, np.uint16)).save(tmp_path / cases["path"][0])
    monkeypatch.setattr(label_sheet.dataset, "read_ranges", lambda _: {"integers": [0, 4095]})
    figure = label_sheet.plot_cases(cases.head(1), tmp_path)
    [panel] = [axes for axes in figure.axes if axes.images]
    shown = panel.images[0].get_array()
    assert shown is not None
    assert shown.max() == round(1000 / 4095 * 255)


def test_captions_name_conflicts_and_shorten_names(tmp_path: Path) -> None:
    case = make_cases(tmp_path, 3).loc[0]
    case["path"], case["reason"] = f"Images/B/{'x' * 40}.png", "duplicates"
    caption = label_sheet.describe_case(case)
    assert "a copy is A" in caption
    assert caption.endswith(f", …{'x' * 17}.png")


def test_an_evaluation_lists_labels_that_contradict_the_predictions(trained: Run) -> None:
    checkpoint = checkpoints.load_run(Path(FIRST))
    head = {"backbone.head.weight": 0.0, "backbone.head.bias": torch.tensor([0.0, 3.0, 0.0])}
    weights = {name: head[name] + 0 * checkpoint["weights"][name] for name in head}
    changed = checkpoint | {"weights": checkpoint["weights"] | weights}
    checkpoints.save_checkpoint(Path("session/menin/best.pt"), changed)
    command = ["session/menin/best.pt", "--name", "menin", "--device", "cpu", "--gallery", "0"]
    assert evaluate.main(command) == 0
    table, predicted = (
        pd.read_csv(f"results/menin/{name}.csv") for name in ("label_review", "predictions")
    )
    others = predicted[predicted["label"] != "Menin"]
    assert set(table["group"]) == set(others["group"])
    assert table["group"].is_unique
    assert set(table["suggested"]) == {"Menin"}
    assert table["n_slices_of_group"].sum() == others["duplicate_set"].nunique()
    assert table["rank"].tolist() == list(range(1, len(table) + 1))
    summary = read_metrics(trained.root, "menin")["label_review"]
    assert summary["n_cases"] == len(table)
    assert summary["n_images"] == len(predicted)
    page = " ".join(Path("results/menin/report.html").read_text("utf-8").split())
    assert "those of the test split" in page
    assert f"{len(table)} of {predicted['group'].nunique()} groups" in page
    assert Path("results/menin/plots/label_review.png").exists()


def test_training_slices_are_not_reviewed(trained: Run) -> None:
    assert evaluate.main([FIRST, "--split", "train", "--device", "cpu", "--gallery", "0"]) == 0
    assert read_metrics(trained.root, "first-train")["label_review"] is None
    assert pd.read_csv("results/first-train/label_review.csv").empty
    assert "Labels to check" not in Path("results/first-train/report.html").read_text("utf-8")
