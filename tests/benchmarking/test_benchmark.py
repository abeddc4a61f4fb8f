"""The command benchmark.py: all figures of a small benchmark, and refusals."""

import json
import math
import tempfile
from pathlib import Path
from unittest.mock import Mock

import pytest

import benchmark
from benchmarking import report
from helper import UserError
from tests.support.builders import Capture, Patch, expect_refusal, list_files

SMALL = ("--model", "net", "--image-size", "32", "--batch-size", "4", "--slices", "24")
ON_CPU = ("--device", "cpu", "--threads", "1", "--repeats", "1")


@pytest.fixture
def folder(empty_dir: Path, monkeypatch: Patch) -> Path:
    """An empty working folder, also for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(empty_dir))
    return empty_dir


@pytest.mark.integration
def test_small_benchmark(tmp_path: Path, capsys: Capture) -> None:
    target = tmp_path / "new" / "speed.json"
    assert benchmark.main([*SMALL, *ON_CPU, "--json", str(target)]) == 0
    assert list(target.parent.iterdir()) == [target]
    figures = json.loads(target.read_text("utf-8"))
    undefined = {"peak_device_memory_mib", "timm_images_per_s", "pipeline_over_timm"}
    for key in undefined:
        assert figures[key] is None
        assert any(note.startswith(key) for note in figures["notes"])
    defined = set(report.FIGURES) - undefined
    assert set(figures["rounds"]) == set(figures["spread"]) == defined
    for key in defined:
        (value,) = figures["rounds"][key]
        assert figures[key] == value > 0
        assert math.isfinite(value)
        assert figures["spread"][key] == [value, value]
    beyond_torch = figures["first_step_s"] - figures["import_torch_s"]
    assert figures["first_step_beyond_torch_s"] == beyond_torch
    assert figures["steps"]["synthetic_step"] == figures["steps"]["pipeline"] == 6  # of 24 slices
    conditions = {
        **{"model": "net", "image_size": 32, "batch_size": 4, "n_slices": 24, "repeats": 1},
        **{"seed": 0, "data": "phantoms", "device": "cpu", "threads": 1},
    }
    assert conditions.items() <= figures["environment"].items()
    assert set(figures["environment"]) > {"precision", "cores", "cpu", "torch", "commit", "command"}
    lines = capsys.readouterr().out.splitlines()
    rounds = [line for line in lines if line.startswith(("warm-up", "round"))]
    training = ["synthetic step", "pipeline", "DataLoader baseline", "DataLoader baseline, tuned"]
    assert rounds[:8] == [
        f"{title}: {x}" for title in ("warm-up", "round 1 of 1") for x in training
    ]
    assert len(rounds) == 18
    for label, unit in report.FIGURES.values():
        (row,) = (line for line in lines if line.startswith(f"{label} "))
        assert row.rstrip().endswith((unit, " -"))


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (["--model", "resnet81"], 2, "no such model"),
        (["--model", "vit_b_16", "--image-size", "100"], 2, "--image-size 100"),
        (["--data", "nowhere"], 1, "nowhere/CSV/images.csv"),
        (["--data", "PHANTOMS", "--batch-size", "61"], 1, "60 readable slices are fewer than"),
        (["--json", "."], 1, "--json .: a folder"),
        (["--json", "/dev/null/x.json"], 1, "--json /dev/null/x.json: not writable"),
        (["--device", "cuda:99"], 1, "--device cuda:99"),
        (["--timm", "nowhere", "--device", "cpu"], 1, "prepare it: python -m benchmarking."),
    ],
)
def test_refusals_leave_nothing(
    folder: Path, phantom_dir: Path, capsys: Capture, argv: list[str], status: int, words: str
) -> None:
    command = [str(phantom_dir) if part == "PHANTOMS" else part for part in argv]
    assert words in expect_refusal(capsys, benchmark.main(command), status)
    assert not list(folder.iterdir())


def test_failed_benchmark_writes_nothing(
    folder: Path, phantom_dir: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    failure = UserError("measurement failed")
    monkeypatch.setattr(benchmark, "measure", Mock(side_effect=failure))
    target = folder / "old.json"
    target.write_text("{}")
    before = list_files(folder)
    command = [*SMALL, *ON_CPU, "--data", str(phantom_dir), "--json", str(target)]
    assert "measurement failed" in expect_refusal(capsys, benchmark.main(command))
    assert list_files(folder) == before
