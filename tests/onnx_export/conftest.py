"""A session fixture: the run `first` exported once for all workers."""

import contextlib
import io
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest

import export
from inference.predictor import SlicePredictor, load_predictor
from modeling import checkpoint as checkpoints
from onnx_export import exporter
from tests.conftest import build_once
from tests.support.builders import Capture, Patch, Run, expect_refusal

BEST = "session/first/best.pt"
ONE_THREAD = ("--threads", "1")
SHAPES = (
    *((1, 1), (1, 9), (9, 1), (2, 3), (17, 16), (40, 40), (33, 97), (97, 33), (31, 200), (200, 31)),
    *((64, 64), (96, 80), (128, 127), (3, 400), (400, 1), (150, 149), (223, 224), (512, 512)),
)


def make_noise(height: int, width: int, count: int = 6) -> np.ndarray:
    """Return noise of several brightnesses, uint8 [count, H, W]."""
    rng = np.random.default_rng(height * 1000 + width)
    limits = rng.integers(2, 257, (count, 1, 1))
    return rng.integers(0, limits, (count, height, width)).astype(np.uint8)


class Exported(NamedTuple):
    """An ONNX file, its checkpoint and the output of the command."""

    path: Path
    checkpoint: Path
    output: str

    def open(self) -> onnxruntime.InferenceSession:
        return exporter.open_onnx(self.path, 1)

    def load(self) -> SlicePredictor:
        return load_predictor([self.checkpoint], "cpu", 1)


def run_refused(capsys: Capture, *argv: str) -> str:
    """Run export.py, expect status 1 and no new file, and return the error line."""
    before = set(Path.cwd().iterdir())
    line = expect_refusal(capsys, export.main([*argv, *ONE_THREAD]))
    assert set(Path.cwd().iterdir()) == before
    return line


@pytest.fixture(scope="session")
def exported(first_run: Run, shared_dir: Path) -> Exported:
    """The run `first` with a strong calibration, as a file."""

    def build(root: Path) -> None:
        root.mkdir()
        checkpoint = checkpoints.load_run(first_run.root / BEST)
        fitted = checkpoint["calibration"]
        thresholds = {"Glioma": 0.34, "Menin": None, "Tumor": 0.33}
        conformal = {**fitted["conformal"], "thresholds": thresholds}
        checkpoint["calibration"] = {**fitted, "temperature": 0.25, "conformal": conformal}
        checkpoints.save_checkpoint(root / "best.pt", checkpoint)
        output = io.StringIO()
        with contextlib.chdir(first_run.root), contextlib.redirect_stdout(output):
            argv = [str(root / "best.pt"), "--out", str(root / "new" / "model.onnx")]
            assert export.main([*argv, *ONE_THREAD]) == 0
        (root / "output.txt").write_text(output.getvalue(), "utf-8")

    root = build_once(shared_dir / "exported", build)
    output = (root / "output.txt").read_text("utf-8")
    return Exported(root / "new" / "model.onnx", root / "best.pt", output)


@pytest.fixture
def quick_export(trained: Run, exported: Exported, monkeypatch: Patch) -> Exported:
    """Let an export of the same checkpoint copy the existing file instead of tracing."""

    def copy(path: Path, *_: Any) -> None:
        shutil.copyfile(exported.path, path)

    monkeypatch.setattr(exporter, "write_onnx", copy)
    return exported
