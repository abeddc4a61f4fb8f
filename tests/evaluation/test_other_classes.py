"""Slices of classes that a model lacks: joined over networks and counted."""

import numpy as np
import pandas as pd

from evaluation.calibration import Calibrated
from evaluation.other_classes import OtherClasses, count_left_out, describe, summarise


def build(paths: str, value: float) -> OtherClasses:
    rows = pd.DataFrame({"path": list(paths), "label": ["x"] * len(paths)})
    return OtherClasses(rows, np.full((1, len(paths), 2), value) + np.arange(len(paths))[:, None])


def test_networks_are_joined_on_their_common_slices() -> None:
    joined = OtherClasses.stack([build("abc", 0), build("cab", 10)])
    assert joined is not None
    assert joined.rows["path"].tolist() == ["a", "b", "c"]
    assert joined.logits[:, :, 0].tolist() == [[0, 1, 2], [11, 12, 10]]
    assert OtherClasses.stack([build("a", 0), None]) is None
    pooled = OtherClasses.concatenate([build("ab", 0), None, build("c", 5)])
    assert pooled is not None
    assert pooled.logits[:, :, 0].tolist() == [[0, 1, 5]]
    assert OtherClasses.concatenate([None, None]) is None


def test_slices_are_counted_by_prediction() -> None:
    rows = pd.DataFrame({"label": ["stroke", "healthy", "stroke"]})
    others = OtherClasses(rows, np.zeros((1, 3, 2)))
    probs = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    sets = np.array([[True, False], [True, True], [False, True]])
    summary = summarise(others, Calibrated(probs, sets), ["A", "B"])
    assert summary == {
        "healthy": {"n_images": 1, "predicted": {"A": 0, "B": 1}, "n_review": 1},
        "stroke": {"n_images": 2, "predicted": {"A": 1, "B": 1}, "n_review": 0},
    }
    first, second = describe(summary)
    assert "1 slices of healthy" in first
    assert "predicted: B 1; 1 need review" in first
    assert "predicted: A 1, B 1; 0 need review" in second
    assert summarise(others, Calibrated(probs), ["A", "B"])["stroke"]["n_review"] is None
    assert describe(None) == []
    assert count_left_out(others)[1].startswith("2 slices of stroke")
    assert count_left_out(None) == []
