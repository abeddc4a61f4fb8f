"""Predict from Python: the page of the documentation, arrays and files, and what is refused."""

import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helper import UserError
from inference import Predictor, load_predictor
from phantoms.generator import plan_phantoms, render_phantom
from tests.support.builders import ROOT, Capture, Run
from tests.support.dicom_files import encode_dicom

BEST = "session/first/best.pt"
GREY = np.tile(np.arange(64, dtype=np.uint8), (48, 1))


@pytest.fixture
def slice_file(trained: Run) -> Path:
    Image.fromarray(render_phantom(plan_phantoms(6, 5)[0])[0][::4, ::4]).save("slice.png")
    return Path("slice.png")


@pytest.fixture
def predictor(trained: Run) -> Predictor:
    return load_predictor(BEST, device="cpu", threads=1)


def test_the_examples_of_the_page_run(slice_file: Path, capsys: Capture) -> None:
    page = (ROOT / "docs" / "python.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(textwrap.dedent(block), "docs/python.md", "exec"), names)
    output = capsys.readouterr().out
    assert "('Glioma', 'Menin', 'Tumor')" in output
    assert "PHANTOM: " in output
    assert "slice.png " in output
    assert "True" in output.splitlines()
    fields = re.findall(r"^\| `(\w+)` \| (?!.*UserError)", page, re.MULTILINE)
    assert set(vars(names["result"])) <= set(fields)


def test_an_array_and_its_file_have_the_same_result(predictor: Predictor, slice_file: Path) -> None:
    pixels = np.asarray(Image.open(slice_file))
    [from_file] = predictor.predict(slice_file)
    for array, value_range in (
        (pixels, None),
        (np.repeat(pixels[:, :, None], 3, axis=2), None),
        (pixels.astype(np.uint16), (0, 255)),
        (pixels / 255.0, (0.0, 1.0)),
        (pixels.astype(np.int16) - 100, (-100, 155)),
        (pixels[::-1][::-1], None),  # not contiguous
    ):
        result = predictor.predict(array, value_range=value_range)
        assert vars(result) == {**vars(from_file), "name": ""}
    assert from_file.name == "slice.png"
    assert sum(from_file.probabilities.values()) == pytest.approx(1)
    assert from_file.predicted == max(
        from_file.probabilities, key=from_file.probabilities.__getitem__
    )


def test_a_file_of_several_frames_gives_a_list(predictor: Predictor, tmp_path: Path) -> None:
    Path("frames.dcm").write_bytes(encode_dicom(np.stack([GREY, GREY[:, ::-1]]), n_frames=2))
    results = predictor.predict("frames.dcm")
    assert [result.name for result in results] == ["frames.dcm#1", "frames.dcm#2"]


@pytest.mark.parametrize(
    ("array", "value_range", "kind", "words"),
    [
        (GREY.astype(np.uint16), None, TypeError, r"uint16.*value_range"),
        (GREY.astype(np.float32), None, TypeError, r"float32.*value_range"),
        (GREY > 9, None, TypeError, "bool"),
        (GREY.astype(complex), (0, 255), TypeError, "complex"),
        ([[1, 2]], None, TypeError, "list"),
        (None, None, TypeError, "NoneType"),
        (GREY[None], None, ValueError, r"\(1, 48, 64\)"),
        (GREY[0], None, ValueError, r"\(64,\)"),
        (GREY[:0], None, ValueError, "64 x 0"),
        (np.zeros((2, 10_000_000), np.uint8), None, ValueError, "limit"),
        (np.stack([GREY, GREY, GREY + 1], axis=2), None, ValueError, "colours"),
        (GREY.astype(float), (0, 50), ValueError, "from 0 to 63"),
        (np.where(GREY > 9, np.nan, 1.0), (0, 1), ValueError, "NaN"),
        (GREY, (9, 9), ValueError, "black below white"),
        (GREY, (0, np.inf), ValueError, "black below white"),
        ("slice.png", (0, 255), TypeError, "for arrays"),
        ("nowhere.png", None, UserError, "no such file"),
        (Path("session"), None, UserError, "is a folder"),
        ("session/first/config.json", None, UserError, r"config\.json: not a JPEG"),
    ],
)
def test_refusals(
    predictor: Predictor, array: Any, value_range: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        predictor.predict(array, value_range=value_range)


def test_a_run_must_be_named_and_its_classes_known(trained: Run) -> None:
    with pytest.raises(TypeError, match="run"):
        load_predictor()
    with pytest.raises(UserError, match="Glioma, Menin, Tumor"):
        load_predictor(BEST, device="cpu", thresholds={"Gliom": 0.2})
    with pytest.raises(UserError, match="0 to 1"):
        load_predictor(BEST, device="cpu", thresholds={"Glioma": 20})
