"""Stress and gallery: what the network is shown, and what is made of its verdicts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import args
import evaluate
from evaluation import corruptions, robustness
from evaluation.calibration import Calibrated
from evaluation.predictions import Part, Verdicts, judge
from loading.image_source import MemorySlices
from model import Classifier, Preprocess
from reporting import galleries
from tests.support.builders import Run, read_metrics

ON = ("--device", "cpu")


class Reader(nn.Module):
    """Says class 1 where the mean of a part of the slice is above 0.3."""

    def __init__(self, rows: slice, columns: slice) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.layer = nn.Identity()
        self.head = nn.Linear(1, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-50.0], [50.0]]))
            self.head.bias.copy_(torch.tensor([15.0, -15.0]))

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        part = self.layer(slices)[:, :, self.rows, self.columns]
        return self.head(part.mean((2, 3)))


def make_verdicts(reader: Reader, n_slices: int = 24) -> Verdicts:
    """Discs with a bright middle for class 1, and a thin bright rim for both."""
    import pandas as pd

    down, right = np.mgrid[:64, :64] - 31.5
    distance = np.hypot(down, right)
    labels = np.arange(n_slices) % 2
    rng = np.random.default_rng(0)
    pixels = np.zeros((n_slices, 64, 64), np.uint8)
    for picture, label in zip(pixels, labels, strict=True):
        picture[distance < 24] = 60
        picture[(distance < 24) & (distance > 21)] = 200
        picture[distance < 8] = 200 if label else 60
        picture += rng.integers(0, 4, picture.shape, dtype=np.uint8)
    slices = MemorySlices(torch.from_numpy(pixels).unsqueeze(1), torch.from_numpy(labels))
    network = Classifier(reader, "head", Preprocess(64, 0.0, 1.0)).eval()
    with torch.no_grad():
        probs = network(slices.pixels / 255).softmax(1).double().numpy()
    rows = pd.DataFrame(
        {
            "path": [f"Images/{label}/{row}.png" for row, label in enumerate(labels)],
            "label": labels.astype(str),
            "slice": np.arange(n_slices) // 4,  # four of one label pattern share a slice
            "group": np.arange(n_slices) // 4,
        }
    )
    return Verdicts(
        path=Path("x"),
        checkpoints=[{"classes": ["a", "b"]}],
        rows=rows,
        labels=labels,
        calibrated=Calibrated(probs),
        raw_probs=probs,
        baseline_hits={},
        related=np.zeros(n_slices, bool),
        warnings=[],
        parts=[Part(network, slices, None)],
    )


MIDDLE = slice(26, 38)


def test_a_network_that_reads_the_brain_loses_it() -> None:
    found = robustness.run_stress(make_verdicts(Reader(MIDDLE, MIDDLE)), batch_size=7)
    assert found["clean"]["value"] == 1.0
    assert found["majority"] == 0.5
    assert found["position_agreement"] == 1.0
    assert set(found["positions"]) == set(corruptions.POSITIONS)
    assert all(figure["value"] == 1.0 for figure in found["positions"].values())
    assert [row["strength"] for row in found["corruptions"]["jpeg"]] == [1, 2, 3, 4, 5]
    assert found["corruptions"]["blur"][0]["accuracy"]["value"] == 1.0
    blank = found["probes"]["blank_interior"]
    assert blank["covered"] == 1.0
    assert blank["accuracy"]["value"] == 0.5  # it calls every one the dark class
    assert robustness.describe_shortcut(found) == []


def test_a_network_that_reads_one_corner_is_found_out_by_turning() -> None:
    verdicts = make_verdicts(Reader(slice(26, 32), MIDDLE))
    verdicts.parts[0].slices.pixels[:, :, 32:38, MIDDLE] = 60  # class 1 is bright above alone
    found = robustness.run_stress(verdicts, batch_size=64)
    assert found["positions"]["as stored"]["value"] == 1.0
    assert found["positions"]["turned 180"]["value"] == 0.5
    assert found["position_agreement"] == 0.5


def test_a_verdict_on_blank_brains_is_a_shortcut() -> None:
    figure = {"value": 0.8, "ci95": [0.7, 0.9]}
    blank: dict[str, Any] = {"accuracy": figure, "majority": 0.5, "brightness": 0.6}
    found = {"probes": {"blank_interior": blank}}
    [line] = robustness.describe_shortcut(found)
    assert line.startswith("SHORTCUT: with the inside of the head blanked")
    assert "80%" in line
    assert "brightness alone reaches 60%" in line
    figure["ci95"] = [0.45, 0.9]
    assert robustness.describe_shortcut(found) == []
    blank["accuracy"] = {"value": None, "ci95": None}
    assert robustness.describe_shortcut(found) == []


def test_only_slices_that_were_blanked_count() -> None:
    """Noise without a head is judged as it is; a verdict on it says nothing of a blank brain."""
    verdicts = make_verdicts(Reader(MIDDLE, MIDDLE))
    pixels = verdicts.parts[0].slices.pixels
    rng = np.random.default_rng(0)
    for row in range(12):  # bright for class 1, as the network reads it, and without any head
        low = 150 if verdicts.labels[row] else 0
        pixels[row, 0] = torch.from_numpy(rng.integers(low, low + 60, (64, 64), dtype=np.uint8))
    found = robustness.run_stress(verdicts, batch_size=64)
    blank = found["probes"]["blank_interior"]
    assert blank["covered"] == 0.5
    assert blank["accuracy"]["value"] == 0.5  # all of the blanked are called the dark class
    assert found["probes"]["matched_brightness"]["covered"] == 1.0
    pixels[:] = torch.from_numpy(rng.integers(100, 160, pixels.shape, dtype=np.uint8))
    found = robustness.run_stress(verdicts, batch_size=64)
    assert found["probes"]["blank_interior"]["accuracy"] == {"value": None, "ci95": None}
    assert robustness.describe_shortcut(found) == []


def test_the_gallery_shows_the_right_slices() -> None:
    verdicts = make_verdicts(Reader(MIDDLE, MIDDLE))
    probs = verdicts.calibrated.probs
    probs[:] = [[0.9, 0.1]]
    probs[verdicts.labels == 1] = [0.1, 0.9]
    probs[5] = [0.8, 0.2]  # wrong, of slice 1
    probs[7] = [0.7, 0.3]  # wrong, a copy of the same slice
    probs[13] = [0.95, 0.05]  # wrong and sure, of slice 3
    probs[20] = [0.55, 0.45]  # right and unsure
    errors = galleries.show_errors(verdicts, 8)
    assert [exhibit.caption for exhibit in errors] == [
        "1, called a (0.95)\n13.png",
        "1, called a (0.80)\n5.png",
    ]
    least = galleries.show_least_certain(verdicts, 2)
    assert [exhibit.caption.split("\n")[1] for exhibit in least] == ["20.png", "7.png"]
    assert np.array_equal(errors[0].pixels, verdicts.parts[0].slices.pixels[13, 0].numpy())
    assert errors[0].heatmap.shape == (64, 64)
    assert galleries.show_errors(verdicts, 0) == []


def test_the_gallery_finds_the_slice_in_its_part() -> None:
    """Of pooled folds, each slice is explained by the network that judged it."""
    verdicts = make_verdicts(Reader(MIDDLE, MIDDLE))
    [part] = verdicts.parts
    verdicts.parts[:] = [
        Part(part.network, MemorySlices(part.slices.pixels[some], part.slices.labels[some]), None)
        for some in (slice(0, 10), slice(10, 17), slice(17, 24))
    ]
    verdicts.calibrated.probs[[3, 9, 10, 16, 17, 23]] = [0.52, 0.48]
    shown = galleries.show_least_certain(verdicts, 6)
    for exhibit in shown:
        row = int(exhibit.caption.split("\n")[1].removesuffix(".png"))
        assert np.array_equal(exhibit.pixels, part.slices.pixels[row, 0].numpy())


# ---- through the command line


def test_stress_through_the_command_line(trained: Run) -> None:
    assert evaluate.main(["session/first/best.pt", *ON, "--stress", "--gallery", "2"]) == 0
    report = read_metrics(trained.root, "first")
    assert set(report["stress"]["corruptions"]) == set(corruptions.CORRUPTIONS)
    assert report["stress"]["clean"] == report["accuracy"]
    stored = report["stress"]["positions"]["as stored"]["value"]
    assert stored == pytest.approx(report["accuracy"]["value"])
    plots = {path.name for path in Path("results/first/plots").iterdir()}
    assert {"stress.png", "least_certain.png"} <= plots
    page = Path("results/first/report.html").read_text("utf-8")
    assert "probe for shortcuts" in page
    assert "by occlusion" in page  # at 32 px the network has a map of one cell
    # without it again: no picture of before stays
    assert evaluate.main(["session/first/best.pt", *ON, "--gallery", "0"]) == 0
    plots = {path.name for path in Path("results/first/plots").iterdir()}
    assert not {"stress.png", "least_certain.png", "errors.png"} & plots


def test_stress_leaves_the_network_alone(trained: Run) -> None:
    path = Path("session/first/best.pt")
    verdicts = judge(path, "test", None, device="cpu", batch_size=8, threads=1)
    [part] = verdicts.parts
    before = {name: value.clone() for name, value in part.network.state_dict().items()}
    pixels, was_training = part.slices.pixels.clone(), part.network.training
    robustness.run_stress(verdicts, 8)
    after = part.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(pixels, part.slices.pixels)
    assert part.network.training == was_training


def test_stress_of_several_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        args.parse_evaluate(["a.pt", "b.pt", "--stress"])
    assert stopped.value.code == 2
    assert "one run at a time" in capsys.readouterr().err
