"""The comparison of a file with the program: differences leave no file."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from helper import UserError
from modeling import checkpoint as checkpoints
from onnx_export import exporter, parity, validation
from tests.onnx_export.conftest import BEST, Exported, run_refused
from tests.support.builders import Capture, Patch, Run

CHANGES = {
    "probabilities": lambda probs, in_sets: [probs + np.float32(2e-4), in_sets],
    "classes": lambda probs, in_sets: [probs[:, [1, 2, 0]], in_sets],
    "sets": lambda probs, in_sets: [probs, ~in_sets],
    "NaN": lambda probs, in_sets: [probs * np.float32("nan"), in_sets],
}


@pytest.mark.integration
@pytest.mark.parametrize("change", CHANGES)
def test_other_outputs_leave_no_file(
    quick_export: Exported, change: str, monkeypatch: Patch, capsys: Capture
) -> None:
    run = exporter.run_session
    monkeypatch.setattr(exporter, "run_session", lambda *given: CHANGES[change](*run(*given)))
    line = run_refused(capsys, str(quick_export.checkpoint))
    assert re.search(r"onnxruntime and this program differ on (\d+) of \1 images", line)
    assert "nothing is written" in line
    assert ("by nan at most" in line) == (change == "NaN")


def test_equally_probable_classes_may_be_exchanged() -> None:
    even = np.array([[0.4, 0.4 + 1e-6, 0.2 - 1e-6], [0.5, 0.3, 0.2]])
    other = np.array([[0.4 + 1e-6, 0.4, 0.2 - 1e-6], [0.5, 0.3, 0.2]])
    assert parity.is_same_prediction(other, even).tolist() == [True, True]
    assert parity.is_same_prediction(even[:, ::-1], even).tolist() == [False, False]


def test_varied_images_have_all_orientations() -> None:
    images = [np.arange(80, dtype=np.uint8).reshape(8, 10)] * 16
    varied = parity.vary(images)
    assert len({(pixels.shape, pixels.tobytes()) for pixels in varied}) == 16
    assert {pixels.shape for pixels in varied} == {(8, 10), (10, 8), (7, 8), (8, 7)}
    assert sorted(len(batch) for _, batch in parity.batch_by_shape(varied)) == [4, 4, 4, 4]


def test_accuracy_coverage_and_set_size(monkeypatch: Patch) -> None:
    probs = np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.1, 0.8], [0.4, 0.3, 0.3]])
    in_set = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [1, 1, 1]], bool)
    outputs: dict[Any, list[np.ndarray]] = {"all": [probs, in_set], "none": [probs]}
    images, labels = [np.zeros((4, 4), np.uint8)] * 4, np.array([0, 1, 0, 2])
    monkeypatch.setattr(exporter, "run_session", lambda name, _: outputs[name])
    scored = validation.score("all", images, labels)
    assert scored.predicted.tolist() == [0, 0, 2, 0]
    assert (scored.accuracy, scored.coverage, scored.set_size) == (0.25, 0.75, 1.75)
    plain = validation.score("none", images, labels)
    assert (plain.accuracy, plain.coverage, plain.set_size) == (0.25, None, None)
    assert plain.describe() == "accuracy 0.2500"


def test_changed_slices_and_unknown_classes_are_refused(trained: Run, phantom_dir: Path) -> None:
    checkpoint = checkpoints.load_run(Path(BEST))
    slices = validation.find_slices({**checkpoint, "classes": ["Glioma", "Menin"]}, None)
    with pytest.raises(UserError, match="class Tumor is not one of the checkpoint's classes"):
        slices.read("val", 99)
    Path("data/phantom").unlink()
    shutil.copytree(phantom_dir, "data/phantom")
    split = pd.read_csv("session/first/split.csv")
    path = Path("data/phantom", split["path"][split["split"] == "val"].iloc[0])
    path.write_bytes(path.read_bytes() + b"0")
    with pytest.raises(UserError, match=r"1 changed since prepare\.py ran"):
        validation.find_slices(checkpoint, None).read_checked()
