"""The exported file: its predictions, its metadata, what is refused."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import export
from helper import NOTICE, PROJECT_DIR
from modeling import checkpoint as checkpoints
from onnx_export import exporter, parity, validation
from tests.onnx_export.conftest import BEST, ONE_THREAD, SHAPES, Exported, make_noise, run_refused
from tests.support.builders import Capture, Patch, Run, hash_file

pytestmark = pytest.mark.integration


def test_the_file_gives_the_predictions_of_the_program(exported: Exported) -> None:
    session, predictor = exported.open(), exported.load()
    sets = set()
    for count, shape in [(1, SHAPES[5]), *((3, shape) for shape in SHAPES)]:
        images = make_noise(*shape, count)
        probs, in_sets = exporter.run_session(session, list(images))
        predictions = predictor.predict([predictor.preprocess(pixels) for pixels in images])
        expected = np.array([prediction.probs for prediction in predictions])
        np.testing.assert_allclose(probs, expected, atol=parity.TOLERANCE)
        thresholds = exporter.list_thresholds(predictor)
        is_tie = np.abs(expected - thresholds) <= parity.TOLERANCE
        for row, tie, prediction in zip(in_sets, is_tie, predictions, strict=True):
            classes = tuple(np.array(predictor.classes)[row].tolist())
            assert classes == prediction.prediction_set or tie.any()
            sets.add(classes)
    assert len(sets) > 1
    assert all("Menin" in classes for classes in sets)  # it has no threshold


def test_eight_orientations_give_the_same_bits(exported: Exported) -> None:
    session, (pixels,) = exported.open(), make_noise(60, 45, 1)
    rotated = [np.rot90(pixels, quarter) for quarter in range(4)]
    oriented = [*rotated, *(np.fliplr(each) for each in rotated)]
    outputs = [exporter.run_session(session, [each]) for each in oriented]
    for probs, in_sets in outputs[1:]:
        assert np.array_equal(probs, outputs[0][0])
        assert np.array_equal(in_sets, outputs[0][1])


def test_metadata_and_signature(exported: Exported) -> None:
    session = exported.open()
    metadata = session.get_modelmeta().custom_metadata_map
    expected = {
        "run": "first",
        "model": "net",
        "image_size": "32",
        "calibrated": "true",
        "temperature": "0.25",
        "conformal_alpha": "0.05",
        "phantom": "true",
        "split_by": "group",
        "leaky_split": "false",
        "precision": "fp32",
        "checkpoint_sha256": hash_file(exported.checkpoint),
        "notice": NOTICE,
    }
    assert {key: metadata[key] for key in expected} == expected
    assert json.loads(metadata["classes"]) == ["Glioma", "Menin", "Tumor"]
    assert json.loads(metadata["conformal_thresholds"])["Menin"] is None
    (image,), outputs = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type) == ("images", "tensor(uint8)")
    assert image.shape == ["batch", 1, "height", "width"]
    assert [(each.name, each.type, each.shape) for each in outputs] == [
        ("probabilities", "tensor(float)", ["batch", 3]),
        ("prediction_sets", "tensor(bool)", ["batch", 3]),
    ]


def test_the_file_is_alone_and_contains_no_path(exported: Exported) -> None:
    assert [path.name for path in exported.path.parent.iterdir()] == ["model.onnx"]
    assert str(PROJECT_DIR).encode() not in exported.path.read_bytes()


def test_the_command_reports_check_and_speed(exported: Exported) -> None:
    for pattern in (
        "note: PHANTOM: ",
        r"fp32 checked on \d+ val slices of .*data/phantom, .* the same labels and prediction sets",
        r"images/s, threads: 1: this program [\d.]+, onnxruntime fp32 [\d.]+",
        r"model\.onnx: fp32, \d\.\d MB, opset 18",
        re.escape(NOTICE),
    ):
        assert re.search(pattern, exported.output), pattern


def test_uncalibrated_and_without_data(trained: Run, monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setattr(validation, "N_CHECKED", 6)
    checkpoint = checkpoints.load_run(Path(BEST))
    del checkpoint["calibration"]
    checkpoints.save_checkpoint(Path("old.pt"), checkpoint)
    Path("data/phantom").unlink()
    assert export.main(["old.pt", *ONE_THREAD]) == 0
    output = capsys.readouterr().out
    assert "note: NOT CALIBRATED" in output
    assert "no val slice of the run in data/phantom" in output
    assert re.search(r"checked on 6 phantoms, .* the same labels, prob", output)
    session = exporter.open_onnx(Path("model.onnx"), 1)
    assert [each.name for each in session.get_outputs()] == ["probabilities"]
    metadata = session.get_modelmeta().custom_metadata_map
    assert (metadata["calibrated"], metadata["temperature"]) == ("false", "1.0")
    assert (metadata["conformal_thresholds"], metadata["conformal_alpha"]) == ("null", "null")
    assert "plain softmax, not calibrated" in metadata["outputs"]


def test_an_existing_file_is_kept(quick_export: Exported, capsys: Capture) -> None:
    Path("named.json").write_text("mine")
    argv = [str(quick_export.checkpoint), "--out", "named.json"]
    line = run_refused(capsys, *argv)
    assert "named.json exists" in line
    assert "--overwrite" in line
    assert Path("named.json").read_text() == "mine"
    assert export.main([*argv, "--overwrite", *ONE_THREAD]) == 0
    assert hash_file(Path("named.json")) == hash_file(quick_export.path)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["missing.pt"], "missing.pt: no such file"),
        (["session/first/config.json"], "not readable as plain tensors"),
        (["session"], "a folder; give the file in it"),
        (["session/first", "--calibration", "nowhere.json"], "nowhere.json is missing"),
        ([BEST, "--data", "nowhere"], "nowhere"),
        ([BEST, "--out", "session", "--overwrite"], "session is a folder; name a file in it"),
    ],
)
def test_refusals(trained: Run, capsys: Capture, argv: list[str], words: str) -> None:
    assert words in run_refused(capsys, *argv)


def test_networks_that_fail_are_refused(trained: Run, monkeypatch: Patch, capsys: Capture) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no such operator\nand a long story")

    monkeypatch.setattr(exporter, "_trace", fail)
    line = run_refused(capsys, BEST)
    assert f"net cannot be written as ONNX by torch {torch.__version__} (no such operator)" in line
    monkeypatch.setattr(exporter, "MAX_BYTES", 2**20)
    assert "one ONNX file holds less than" in run_refused(capsys, BEST)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    line = run_refused(capsys, BEST)
    assert "onnxscript not installed" in line
    assert "-m pip install -r requirements-export.txt" in line
