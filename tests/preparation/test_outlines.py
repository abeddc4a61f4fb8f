"""The outlines of a data folder, in the form that the pointing game reads."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.lesions import load_outlined_lesions
from helper import UserError
from imaging.matlab import read_mat
from preparation.outlines import outlines_path, write_outlines
from tests.support.fuzz_corpus import encode
from tests.support.mat_files import build_cheng, encode_v73

VALUES = np.zeros((20, 30), np.uint16)
VALUES[:10, :20] = 900  # brightest at the upper left: stays as it is


def test_outlines_of_matlab_files_are_read_by_the_pointing_game(tmp_path: Path) -> None:
    picture = tmp_path / "Images" / "glioma" / "1.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(encode(VALUES, "PNG"))
    outline = read_mat(encode_v73(build_cheng(VALUES))).outline
    assert write_outlines(tmp_path, {"Images/glioma/1.png": outline}) == 1
    rows = pd.DataFrame({"path": ["Images/glioma/1.png"]})
    (lesion,) = load_outlined_lesions(rows, tmp_path, outlines_path(tmp_path), 30)
    expected = torch.zeros(30, 30, dtype=torch.bool)
    expected[9:15, 12:23] = True  # letterboxed: 5 rows above
    assert torch.equal(lesion, expected)


def test_outlines_of_images_that_are_gone_are_left_out(tmp_path: Path) -> None:
    assert write_outlines(tmp_path, {}) == 0
    assert not outlines_path(tmp_path).exists()
    (tmp_path / "Images" / "A").mkdir(parents=True)
    for name in ("1.png", "2.png"):
        (tmp_path / "Images" / "A" / name).touch()
    assert write_outlines(tmp_path, {f"Images/A/{number}.png": "1,1" for number in (1, 2, 3)}) == 2
    (tmp_path / "Images" / "A" / "2.png").unlink()
    assert write_outlines(tmp_path, {}) == 1
    assert outlines_path(tmp_path).read_bytes() == b'path,outline\nA/1.png,"1,1"\n'
    outlines_path(tmp_path).write_text("other\n", encoding="utf-8")
    with pytest.raises(UserError, match="column"):
        write_outlines(tmp_path, {})
