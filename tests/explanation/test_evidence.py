"""The sentences about heat maps agree with the recorded measurement."""

import json
from pathlib import Path
from typing import Any

import pytest

from explanation.evidence import MEASURED, describe_evidence
from explanation.heatmaps import DEFAULT

RECORD = Path(__file__).parents[2] / "results" / "benchmarks" / "pointing_game_cheng.json"


def test_the_figures_are_those_of_the_record() -> None:
    figures = json.loads(RECORD.read_text("utf-8"))
    measured = MEASURED[figures["model"]]
    assert (measured.image_size, measured.n_images) == (figures["image_size"], figures["n_images"])
    entry, baselines = figures["methods"][DEFAULT], figures["baselines"]
    assert measured.hit_rate == pytest.approx(entry["hit_rate"]["value"], abs=5e-4)
    for value, name in ((measured.brightest, "brightest point"), (measured.centre, "centre")):
        [found] = [each for key, each in baselines.items() if key.startswith(name)]
        assert value == pytest.approx(found["hit_rate"]["value"], abs=5e-4)
    points = [baselines[name]["of_class"] for name in ("brightest point", "centre of the head")]
    reached = {
        name: max(point[name]["hit_rate"]["value"] for point in points)
        for name in entry["of_class"]
    }
    assert set(measured.not_better) == {
        name
        for name, each in entry["of_class"].items()
        if each["hit_rate"]["value"] <= reached[name]
    }


def build_checkpoint(model: str, intensity: str = "raw") -> dict[str, Any]:
    return {"model": model, "preprocess": {"intensity": intensity}}


def test_other_networks_are_said_to_be_unmeasured() -> None:
    measured = build_checkpoint("mobilenet_v2")
    known = describe_evidence([measured, measured])
    assert "not measured" not in known
    assert "brightest point in 24%" in known
    mixed = describe_evidence([build_checkpoint("resnet18"), measured, build_checkpoint("net")])
    assert "resnet18, net" in mixed
    assert "not measured" in mixed
    assert mixed.endswith(known)
    normalised = describe_evidence([build_checkpoint("mobilenet_v2", "zscore")])
    assert "mobilenet_v2 with --intensity zscore point at tumours was not measured" in normalised
