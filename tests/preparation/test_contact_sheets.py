"""Contact sheets of links, groups and label conflicts."""

from pathlib import Path

import numpy as np
from PIL import Image

from duplicates.finder import find_duplicates
from experiments.planted_duplicates import read_thumbnails
from preparation.contact_sheets import SHEETS, draw_sheets
from preparation.manifest import load_manifest


def test_sheets_are_drawn_if_there_is_something_to_show(tmp_path: Path, phantom_dir: Path) -> None:
    frame = load_manifest(phantom_dir).iloc[:14]
    thumbnails = read_thumbnails(frame, phantom_dir)
    duplicates = find_duplicates(thumbnails)
    draw_sheets(duplicates, thumbnails, frame, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(SHEETS[:2])
    assert all(np.asarray(Image.open(path)).std() > 10 for path in tmp_path.iterdir())
    linked = frame["sha256"] == duplicates.to_frame()["first"][0]
    other = frame.assign(label=frame["label"].where(~linked, "elsewhere"))
    draw_sheets(duplicates, thumbnails, other, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(SHEETS)
    draw_sheets(duplicates, thumbnails, frame, tmp_path)
    assert not (tmp_path / SHEETS[2]).exists()
