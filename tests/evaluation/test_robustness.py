"""Stress tests: toy networks that use the brain, a corner or the rim, and the command line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import evaluate
from evaluation import corruptions, robustness
from tests.support.builders import Run, read_metrics
from tests.support.toys import BrightnessReader, make_predictions

CENTRE = slice(26, 38)


def test_a_network_that_uses_the_brain_fails_without_it() -> None:
    predictions = make_predictions(BrightnessReader(CENTRE, CENTRE))
    before = predictions.member_slices[0].slices.pixels.clone()
    found = robustness.run_stress(predictions, batch_size=7)
    assert torch.equal(predictions.member_slices[0].slices.pixels, before)
    assert found["clean"]["value"] == 1.0
    assert found["majority"] == 0.5
    assert found["orientation_agreement"] == 1.0
    assert set(found["orientations"]) == set(corruptions.ORIENTATIONS)
    assert all(accuracy["value"] == 1.0 for accuracy in found["orientations"].values())
    assert [row["strength"] for row in found["corruptions"]["jpeg"]] == [1, 2, 3, 4, 5]
    assert found["corruptions"]["blur"][0]["accuracy"]["value"] == 1.0
    probe = found["probes"]["blank_interior"]
    assert probe["covered"] == 1.0
    assert probe["accuracy"]["value"] == 0.5  # every slice is predicted as the dark class
    assert robustness.describe_shortcut(found) == []


def test_a_network_that_uses_one_side_fails_after_rotation() -> None:
    predictions = make_predictions(BrightnessReader(slice(26, 32), CENTRE))
    pixels = predictions.member_slices[0].slices.pixels
    pixels[:, :, 32:38, CENTRE] = 60  # class 1 is bright in the upper half only
    found = robustness.run_stress(predictions, batch_size=64)
    assert found["orientations"]["as stored"]["value"] == 1.0
    assert found["orientations"]["rotated 180"]["value"] == 0.5
    assert found["orientation_agreement"] == 0.5


def test_accuracy_without_the_brain_is_a_shortcut() -> None:
    accuracy: dict[str, Any] = {"value": 0.8, "ci95": [0.7, 0.9]}
    probe = {"accuracy": accuracy, "majority": 0.5, "brightness": 0.6}
    found = {"probes": {"blank_interior": probe}}
    [line] = robustness.describe_shortcut(found)
    assert all(word in line for word in ("SHORTCUT", "80%", "50%", "brightness baseline 60%"))
    for interval in ([0.45, 0.9], None):
        accuracy["ci95"] = interval
        assert robustness.describe_shortcut(found) == []


def test_only_blanked_slices_count() -> None:
    """Slices without a head are unchanged, so that predictions of them do not count."""
    predictions = make_predictions(BrightnessReader(CENTRE, CENTRE))
    pixels = predictions.member_slices[0].slices.pixels
    rng = np.random.default_rng(0)
    for row in range(12):  # noise, bright for class 1
        low = 150 if predictions.labels[row] else 0
        pixels[row, 0] = torch.from_numpy(rng.integers(low, low + 60, (64, 64), dtype=np.uint8))
    found = robustness.run_stress(predictions, batch_size=64)
    probe = found["probes"]["blank_interior"]
    assert probe["covered"] == 0.5
    assert probe["accuracy"]["value"] == 0.5  # every blanked slice is predicted as the dark class
    assert found["probes"]["matched_brightness"]["covered"] == 1.0
    pixels[:] = torch.from_numpy(rng.integers(100, 160, pixels.shape, dtype=np.uint8))
    found = robustness.run_stress(predictions, batch_size=64)
    assert found["probes"]["blank_interior"]["accuracy"] == {"value": None, "ci95": None}
    assert robustness.describe_shortcut(found) == []


def test_stress_on_the_command_line(trained: Run) -> None:
    old_plot = Path("results/first/plots/old.png")
    old_plot.touch()
    command = ["session/first/best.pt", "--device", "cpu", "--stress", "--gallery", "2"]
    assert evaluate.main(command) == 0
    assert not old_plot.exists()
    report = read_metrics(trained.root, "first")
    assert set(report["stress"]["corruptions"]) == set(corruptions.CORRUPTIONS)
    assert report["stress"]["clean"] == report["accuracy"]
    stored = report["stress"]["orientations"]["as stored"]["value"]
    assert stored == pytest.approx(report["accuracy"]["value"])
    plots = {path.name for path in old_plot.parent.iterdir()}
    assert {"stress.png", "least_certain.png"} <= plots
    page = Path("results/first/report.html").read_text("utf-8")
    assert "integrated gradients" in page
    assert "heat maps of net point at tumours was not measured" in page
