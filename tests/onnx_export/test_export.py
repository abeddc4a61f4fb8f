"""export.py: the graph does to pictures what the program does, and the file says what it is."""

import contextlib
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pandas as pd
import PIL
import pytest
import torch

import export
from helper import NOTICE, PROJECT_DIR, UserError
from imaging.orientation import find_position, fit_slice
from inference.predictor import SliceClassifier, load_classifier
from modeling import checkpoint
from onnx_export import exporter, parity
from onnx_export.preprocessing_graph import find_positions, fit_squares
from tests.support.builders import Run, expect_refusal, hash_file

BEST = "session/first/best.pt"
ON = ("--threads", "1")
SHAPES = (
    *((1, 1), (1, 9), (9, 1), (2, 3), (17, 16), (40, 40), (33, 97), (97, 33), (31, 200), (200, 31)),
    *((64, 64), (96, 80), (128, 127), (3, 400), (400, 1), (150, 149), (223, 224), (512, 512)),
)


def make_pictures(height: int, width: int, count: int = 6) -> np.ndarray:
    """Noise of several brightnesses, uint8 [count, H, W]."""
    rng = np.random.default_rng(height * 1000 + width)
    limits = rng.integers(2, 257, (count, 1, 1))
    return rng.integers(0, limits, (count, height, width)).astype(np.uint8)


# ---- the graph


@pytest.mark.parametrize("size_px", [16, 32, 96, 224])
@pytest.mark.parametrize("shape", SHAPES)
def test_squares_hold_the_same_grey_levels(shape: tuple[int, int], size_px: int) -> None:
    pictures = make_pictures(*shape)
    made = fit_squares(torch.from_numpy(pictures), size_px).numpy()
    wanted = np.stack([fit_slice(pixels, size_px) for pixels in pictures])
    is_elongated = max(shape) > 2 * min(shape)
    if is_elongated and int(PIL.__version__.split(".")[0]) < 13:  # it began with columns always
        assert np.abs(made - wanted).max() <= 1
    else:
        assert np.array_equal(made, wanted)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 2), (3, 2), (3, 3), (4, 5)])
def test_positions_are_the_same_where_halves_are_often_equal(shape: tuple[int, int]) -> None:
    pictures = np.random.default_rng(0).integers(0, 2, (300, *shape), dtype=np.uint8)
    found = torch.stack(find_positions(torch.from_numpy(pictures)), dim=1).tolist()
    assert found == [list(find_position(pixels)) for pixels in pictures]


def test_sums_of_a_large_white_picture_are_exact() -> None:
    pictures = np.full((1, 6000, 6000), 255, np.uint8)  # a half is over 2**31, and over 2**24
    pictures[0, -1, -1] = 254
    flip_rows, flip_columns, transpose = find_positions(torch.from_numpy(pictures))
    assert (flip_rows.item(), flip_columns.item(), transpose.item()) == (False, False, False)
    pictures[0, 0, 0] = 253
    found = [part.item() for part in find_positions(torch.from_numpy(pictures))]
    assert found == [True, True, False]


# ---- the file


class Exported(NamedTuple):
    """A file, the checkpoint that it was made of, and what the program said."""

    path: Path
    checkpoint: Path
    output: str

    def open(self) -> onnxruntime.InferenceSession:
        return exporter.open_onnx(self.path, 1)

    def load(self) -> SliceClassifier:
        return load_classifier([self.checkpoint], "cpu", 1)


@pytest.fixture(scope="module")
def exported(first_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The run `first` as a file, with a calibration that can be seen."""
    root = tmp_path_factory.mktemp("exported")
    kept = checkpoint.load_run(first_run.root / BEST)
    fitted = kept["calibration"]
    thresholds = {"Glioma": 0.34, "Menin": None, "Tumor": 0.33}
    conformal = {**fitted["conformal"], "thresholds": thresholds}
    kept["calibration"] = {**fitted, "temperature": 0.25, "conformal": conformal}
    checkpoint.save_checkpoint(root / "best.pt", kept)
    output = io.StringIO()
    with contextlib.chdir(first_run.root), contextlib.redirect_stdout(output):
        argv = [str(root / "best.pt"), "--out", str(root / "new" / "model.onnx"), *ON]
        assert export.main(argv) == 0
    return Exported(root / "new" / "model.onnx", root / "best.pt", output.getvalue())


@pytest.mark.parametrize("count", [1, 3])
def test_the_file_answers_as_the_program(exported: Exported, count: int) -> None:
    session, classifier = exported.open(), exported.load()
    sets = set()
    for shape in SHAPES:
        pictures = make_pictures(*shape, count)
        probs, in_sets = exporter.ask(session, list(pictures))
        verdicts = classifier.judge([classifier.preprocess(pixels) for pixels in pictures])
        wanted = np.array([verdict.probs for verdict in verdicts])
        np.testing.assert_allclose(probs, wanted, atol=parity.TOLERANCE)
        for row, verdict in zip(in_sets, verdicts, strict=True):
            chosen = tuple(np.array(classifier.classes)[row])
            assert chosen == verdict.prediction_set
            sets.add(chosen)
    assert len(sets) > 1
    assert all("Menin" in chosen for chosen in sets)  # it has no threshold


def test_eight_positions_get_the_same_bits(exported: Exported) -> None:
    session, (pixels,) = exported.open(), make_pictures(60, 45, 1)
    answers = []
    for turned in (pixels, np.rot90(pixels), np.rot90(pixels, 2), np.rot90(pixels, 3)):
        answers += [exporter.ask(session, [turned]), exporter.ask(session, [turned[:, ::-1]])]
    for probs, in_sets in answers[1:]:
        assert np.array_equal(probs, answers[0][0])
        assert np.array_equal(in_sets, answers[0][1])


def test_the_file_says_what_it_is(exported: Exported) -> None:
    session = exported.open()
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["classes"]) == ["Glioma", "Menin", "Tumor"]
    assert (said["run"], said["model"], said["image_size"]) == ("first", "net", "32")
    assert (said["calibrated"], said["temperature"]) == ("true", "0.25")
    assert json.loads(said["conformal_thresholds"])["Menin"] is None
    assert (said["conformal_alpha"], said["phantom"]) == ("0.05", "true")
    assert (said["split_by"], said["leaky_split"]) == ("group", "false")
    assert said["data"] == "generated phantoms of phantom"
    assert said["checkpoint_sha256"] == hash_file(exported.checkpoint)
    assert said["notice"] == NOTICE
    (picture,), outputs = session.get_inputs(), session.get_outputs()
    assert (picture.name, picture.type) == ("pictures", "tensor(uint8)")
    assert picture.shape == ["batch", 1, "height", "width"]
    assert [(each.name, each.type, each.shape) for each in outputs] == [
        ("probabilities", "tensor(float)", ["batch", 3]),
        ("prediction_set", "tensor(bool)", ["batch", 3]),
    ]


def test_the_file_stands_alone_and_names_no_folder(exported: Exported) -> None:
    assert [path.name for path in exported.path.parent.iterdir()] == ["model.onnx"]
    assert str(PROJECT_DIR).encode() not in exported.path.read_bytes()


def test_what_is_said_on_the_way(exported: Exported) -> None:
    wanted = (
        "note: PHANTOM: .*",
        r"fp32 checked on \d+ val slices of data/phantom, turned, mirrored and cropped: the same "
        r"labels and sets, probabilities differ by \d\.\de-\d\d at most",
        r"pictures/s, threads: 1: this program [\d.]+, onnxruntime fp32 [\d.]+",
        re.escape(NOTICE),
        rf"{re.escape(str(exported.path))}: fp32, \d\.\d MB, opset 18",
    )
    lines = exported.output.splitlines()
    assert all(re.fullmatch(*pair) for pair in zip(wanted, lines, strict=True)), lines


def test_without_calibration_and_without_the_data(
    trained: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parity, "CHECKED_SLICES", 6)
    kept = checkpoint.load_run(Path(BEST))
    del kept["calibration"]
    checkpoint.save_checkpoint(Path("old.pt"), kept)
    Path("data/phantom").unlink()
    assert export.main(["old.pt", *ON]) == 0
    output = capsys.readouterr().out
    assert "note: NOT CALIBRATED: plain softmax, no prediction sets" in output
    assert "note: no val slice of the run in data/phantom: checked on phantoms instead" in output
    assert "checked on 6 phantoms, turned, mirrored and cropped: the same labels, prob" in output
    session = exporter.open_onnx(Path("model.onnx"), 1)
    assert [each.name for each in session.get_outputs()] == ["probabilities"]
    said = session.get_modelmeta().custom_metadata_map
    assert (said["calibrated"], said["temperature"]) == ("false", "1.0")
    assert (said["conformal_thresholds"], said["conformal_alpha"]) == ("null", "null")
    assert said["outputs"] == "probabilities: fp32 [batch, classes], plain softmax, not calibrated"


# ---- what is refused


@pytest.fixture
def quick(trained: Run, exported: Exported, monkeypatch: pytest.MonkeyPatch) -> Exported:
    """Exporting the same checkpoint again takes the graph that is there already."""

    def copy(path: Path, *_: Any) -> None:
        shutil.copyfile(exported.path, path)

    monkeypatch.setattr(exporter, "write_onnx", copy)
    return exported


def run_refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    before = set(Path.cwd().iterdir())
    line = expect_refusal(capsys, export.main([*argv, *ON]))
    assert set(Path.cwd().iterdir()) == before  # not even a part of a file
    return line


def shift_probabilities(probs: np.ndarray, in_sets: np.ndarray) -> list[np.ndarray]:
    return [probs + np.float32(2e-4), in_sets]


def swap_classes(probs: np.ndarray, in_sets: np.ndarray) -> list[np.ndarray]:
    return [probs[:, [1, 2, 0]], in_sets]


def turn_sets(probs: np.ndarray, in_sets: np.ndarray) -> list[np.ndarray]:
    return [probs, ~in_sets]


def lose_numbers(probs: np.ndarray, in_sets: np.ndarray) -> list[np.ndarray]:
    return [probs * np.float32("nan"), in_sets]


@pytest.mark.parametrize("change", [shift_probabilities, swap_classes, turn_sets, lose_numbers])
def test_other_answers_leave_no_file(
    quick: Exported, change: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    ask = exporter.ask
    monkeypatch.setattr(exporter, "ask", lambda *asked: change(*ask(*asked)))
    line = run_refused(capsys, str(quick.checkpoint))
    assert re.search(r"onnxruntime and this program differ on (\d+) of \1 pictures", line)
    assert "nothing is written" in line
    assert ("by nan at most" in line) == (change is lose_numbers)


def test_classes_that_are_as_likely_may_change_places() -> None:
    even = np.array([[0.4, 0.4 + 1e-6, 0.2 - 1e-6], [0.5, 0.3, 0.2]])
    other = np.array([[0.4 + 1e-6, 0.4, 0.2 - 1e-6], [0.5, 0.3, 0.2]])
    assert parity.agree(other, even).tolist() == [True, True]
    assert parity.agree(even[:, ::-1], even).tolist() == [False, False]


def test_a_file_that_is_there_is_kept(quick: Exported, capsys: Any) -> None:
    Path("named.json").write_text("mine")
    line = run_refused(capsys, str(quick.checkpoint), "--out", "named.json")
    assert line.startswith("error: named.json exists; name another --out, or give --overwrite")
    assert Path("named.json").read_text() == "mine"
    assert export.main([str(quick.checkpoint), "--out", "named.json", "--overwrite", *ON]) == 0
    assert hash_file(Path("named.json")) == hash_file(quick.path)


def test_a_missing_package_is_named(
    trained: Run, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    line = run_refused(capsys, BEST)
    assert "export.py: onnxscript not installed; " in line
    assert "-m pip install -r requirements-export.txt" in line


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["missing.pt"], "missing.pt: no such file"),
        (["session/first/config.json"], "not readable as plain tensors"),
        (["session/first"], "a folder; name the file in it"),
        ([BEST, "--data", "nowhere"], "nowhere"),
        ([BEST, "--out", "session", "--overwrite"], "session is a folder; name a file in it"),
    ],
)
def test_refusals(trained: Run, capsys: Any, argv: list[str], words: str) -> None:
    assert words in run_refused(capsys, *argv)


def test_a_network_that_cannot_be_written_is_refused(
    trained: Run, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no such operator\nand a long story")

    monkeypatch.setattr(exporter, "_trace", fail)
    line = run_refused(capsys, BEST)
    assert f"net cannot be written as ONNX by torch {torch.__version__} (no such operator)" in line
    monkeypatch.setattr(exporter, "MAX_BYTES", 2**20)
    assert "one ONNX file holds less than" in run_refused(capsys, BEST)


# ---- int8


def test_int8_is_judged_on_val_beside_fp32(
    quick: Exported, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "LEAST_JUDGED_SLICES", 1)
    assert export.main([str(quick.checkpoint), "--precision", "int8", *ON]) == 0
    output = capsys.readouterr().out
    found = re.search(
        r"int8 on (\d+) val slices: accuracy ([\d.]+), sets of [\d.]+ classes hold the right one "
        r"in [\d.]+; fp32: accuracy ([\d.]+), .* the same label on ",
        output,
    )
    assert found is not None, output
    assert re.search(r"this program [\d.]+, onnxruntime fp32 [\d.]+, onnxruntime int8 ", output)
    assert "model.onnx: int8, 1.2 MB" in output
    path = Path("model.onnx")
    assert path.stat().st_size < quick.path.stat().st_size / 3
    session = exporter.open_onnx(path, 1)
    said = session.get_modelmeta().custom_metadata_map
    assert (said["precision"], said["run"]) == ("int8", "first")
    scores = json.loads(said["val"])
    assert [f"{scores['accuracy'][name]:.4f}" for name in ("int8", "fp32")] == [found[2], found[3]]
    assert scores["n"] == int(found[1])
    assert set(scores["coverage"]) == set(scores["set_size"]) == {"int8", "fp32"}
    # fp32 before the network and after it: the same slice in other positions, probabilities
    (pixels,) = make_pictures(60, 45, 1)
    first, other = (exporter.ask(session, [each])[0] for each in (pixels, np.rot90(pixels)))
    assert np.array_equal(first, other)
    assert first.sum() == pytest.approx(1, abs=1e-6)


def test_int8_that_loses_too_much_is_refused(
    quick: Exported, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    kept = checkpoint.load_run(quick.checkpoint)
    labels = parity.find_slices(kept, None).pick("val", export.JUDGED_SLICES)[1]
    before = parity.Score(labels, 1.0, 0.95, 1.0)
    monkeypatch.setattr(export, "LEAST_JUDGED_SLICES", 1)
    for after in (
        parity.Score(labels, 0.979, 0.95, 1.0),
        parity.Score(labels, 1.0, 0.929, 1.0),
    ):
        scores = iter((before, after))
        monkeypatch.setattr(parity, "score", lambda *_, scores=scores: next(scores))
        line = run_refused(capsys, str(quick.checkpoint), "--precision", "int8")
        assert after.describe() in line
        assert "the same label on 100.0%; that is too much lost" in line
    scores = iter((before, parity.Score(labels, 0.981, 0.931, 1.0)))
    monkeypatch.setattr(parity, "score", lambda *_: next(scores))
    assert export.main([str(quick.checkpoint), "--precision", "int8", *ON]) == 0


def test_the_sets_of_a_file_are_scored(quick: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    probs = np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.1, 0.8], [0.4, 0.3, 0.3]])
    in_set = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [1, 1, 1]], bool)
    answers = {"all": [probs, in_set], "none": [probs]}
    pictures = [np.zeros((4, 4), np.uint8)] * 4
    monkeypatch.setattr(exporter, "ask", lambda name, _: answers[name])
    scored = parity.score("all", pictures, np.array([0, 1, 0, 2]))
    assert scored.predicted.tolist() == [0, 0, 2, 0]
    assert (scored.accuracy, scored.coverage, scored.set_size) == (0.25, 0.75, 1.75)
    plain = parity.score("none", pictures, np.array([0, 1, 0, 2]))
    assert (plain.accuracy, plain.coverage, plain.set_size) == (0.25, None, None)
    assert plain.describe() == "accuracy 0.2500"


def test_int8_is_not_judged_by_a_handful(
    quick: Exported, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(export, "JUDGED_SLICES", 3)
    line = run_refused(capsys, str(quick.checkpoint), "--precision", "int8")
    assert "holds 3 val slices of the run, by which it is judged (50 at least)" in line


def test_int8_needs_the_slices(quick: Exported, capsys: Any) -> None:
    Path("data/phantom").unlink()
    line = run_refused(capsys, str(quick.checkpoint), "--precision", "int8")
    assert "--precision int8: data/phantom holds 0 val slices of the run" in line


def test_slices_that_are_not_what_they_were_judge_nothing(
    quick: Exported, phantom_dir: Path, capsys: Any
) -> None:
    Path("data/phantom").unlink()
    shutil.copytree(phantom_dir, "data/phantom")
    split = pd.read_csv("session/first/split.csv")
    path = Path("data/phantom", split["path"][split["split"] == "val"].iloc[0])
    path.write_bytes(path.read_bytes() + b"0")
    line = run_refused(capsys, str(quick.checkpoint))
    assert f"data/phantom: 1 changed since prepare.py ran (Images/{path.parent.name}/" in line


def test_slices_of_an_unknown_class_are_named(quick: Exported) -> None:
    kept = checkpoint.load_run(quick.checkpoint)
    slices = parity.find_slices({**kept, "classes": ["Glioma", "Menin"]}, None)
    with pytest.raises(UserError, match="class Tumor is unknown to the checkpoint, which knows"):
        slices.pick("val", 99)


# ---- arguments


def test_arguments() -> None:
    config = export.parse_args(["a.pt"])
    assert config == export.ExportConfig(checkpoint=Path("a.pt"))
    assert (config.out, config.overwrite, config.data) == (Path("model.onnx"), False, None)
    assert config.precision == "fp32"
    given = export.parse_args(["a.pt", "--out", "b.onnx", "--data", "d", "--threads", "2"])
    assert (given.out, given.data, given.threads) == (Path("b.onnx"), Path("d"), 2)


@pytest.mark.parametrize("argv", [[], ["a.pt", "b.pt"], ["a.pt", "--precision", "int4"]])
def test_wrong_arguments_are_status_2(argv: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        export.main(argv)
    assert "export.py" in expect_refusal(capsys, int(ended.value.code or 0), 2)


def test_varied_pictures_lie_in_all_positions() -> None:
    pictures = [np.arange(80, dtype=np.uint8).reshape(8, 10)] * 16
    varied = parity.vary(pictures)
    assert len({(pixels.shape, pixels.tobytes()) for pixels in varied}) == 16
    assert {pixels.shape for pixels in varied} == {(8, 10), (10, 8), (7, 8), (8, 7)}
    assert sorted(len(batch) for _, batch in parity.divide(varied)) == [4, 4, 4, 4]
