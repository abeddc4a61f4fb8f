"""export.py --precision int8: measured on val, refused if too much is lost."""

import json
import re
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

import export
from modeling import checkpoint as checkpoints
from onnx_export import exporter, int8, validation
from onnx_export.validation import Score
from tests.onnx_export.conftest import ONE_THREAD, Exported, make_noise, run_refused
from tests.support.builders import Capture, Patch, make_data_folder

pytestmark = pytest.mark.integration
INT8 = ("--precision", "int8")


def test_int8_is_compared_with_fp32_on_val(
    quick_export: Exported, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.setattr(int8, "MIN_VAL_SLICES", 1)
    monkeypatch.setattr(int8, "MAX_LOSS", 1.0)
    assert export.main([str(quick_export.checkpoint), *INT8, *ONE_THREAD]) == 0
    output = capsys.readouterr().out
    found = re.search(
        r"int8 on (\d+) val slices: accuracy ([\d.]+), coverage [\d.]+ of sets of [\d.]+ classes; "
        r"fp32: accuracy ([\d.]+), .* the same label on ",
        output,
    )
    assert found is not None, output
    assert re.search(r"this program [\d.]+, onnxruntime fp32 [\d.]+, onnxruntime int8 ", output)
    path = Path("model.onnx")
    assert path.stat().st_size < quick_export.path.stat().st_size / 3
    session = exporter.open_onnx(path, 1)
    metadata = session.get_modelmeta().custom_metadata_map
    assert (metadata["precision"], metadata["run"]) == ("int8", "first")
    scores = json.loads(metadata["val"])
    assert [f"{scores['accuracy'][name]:.4f}" for name in ("int8", "fp32")] == [found[2], found[3]]
    assert scores["n"] == int(found[1])
    assert set(scores["coverage"]) == set(scores["set_size"]) == {"int8", "fp32"}
    # preprocessing and softmax stay in fp32: the same bits in other orientations
    (pixels,) = make_noise(60, 45, 1)
    first, other = (exporter.run_session(session, [each])[0] for each in (pixels, np.rot90(pixels)))
    assert np.array_equal(first, other)
    assert first.sum() == pytest.approx(1, abs=1e-6)


def test_large_loss_is_refused(quick_export: Exported, monkeypatch: Patch, capsys: Capture) -> None:
    slices = validation.find_slices(checkpoints.load_run(quick_export.checkpoint), None)
    labels = slices.read("val", int8.VAL_SLICES)[1]
    monkeypatch.setattr(int8, "MIN_VAL_SLICES", 1)
    monkeypatch.setattr(int8, "quantise", lambda *_: None)

    before = Score(labels, 1.0, 0.95, 1.0)
    for accuracy, coverage in ((0.979, 0.95), (1.0, 0.929)):
        after = Score(labels, accuracy, coverage, 1.0)
        monkeypatch.setattr(validation, "score", Mock(side_effect=[before, after]))
        line = run_refused(capsys, str(quick_export.checkpoint), *INT8)
        assert after.describe() in line
        assert "the difference is too large" in line
    after = Score(labels, 0.981, 0.931, 1.0)
    monkeypatch.setattr(validation, "score", Mock(side_effect=[before, after]))
    assert export.main([str(quick_export.checkpoint), *INT8, *ONE_THREAD]) == 0


def test_a_network_that_onnxruntime_cannot_quantise_is_refused(
    quick_export: Exported, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.setattr(int8, "MIN_VAL_SLICES", 1)
    fail = Mock(side_effect=ValueError("no such operator\nand more"))
    monkeypatch.setattr("onnxruntime.quantization.quantize_static", fail)
    line = run_refused(capsys, str(quick_export.checkpoint), *INT8)
    assert "onnxruntime cannot quantise net (no such operator)" in line


def test_too_few_val_slices_are_refused(
    quick_export: Exported, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.setattr(int8, "VAL_SLICES", 3)
    line = run_refused(capsys, str(quick_export.checkpoint), *INT8)
    assert "holds 3 val slices of the run, 50 are needed" in line
    make_data_folder(Path("elsewhere"))
    line = run_refused(capsys, str(quick_export.checkpoint), *INT8, "--data", "elsewhere")
    assert "elsewhere holds 0 val slices of the run" in line
    assert "--data" in line
