"""Phantoms get their true ids."""

from pathlib import Path

import pandas as pd

from preparation.ingest import is_complete
from preparation.manifest import load_manifest


def test_phantoms_have_true_ids(phantom_dir: Path) -> None:
    frame = load_manifest(phantom_dir)
    truth = pd.read_csv(phantom_dir / "CSV" / "phantoms.csv").set_index("path").loc[frame["path"]]
    assert frame["patient"].tolist() == [f"p{number:06d}" for number in truth["patient"]]
    assert frame["group"].tolist() == [f"g{number:06d}" for number in truth["patient"]]
    assert frame["duplicate_set"].tolist() == [f"d{n:06d}" for n in truth["duplicate_set"]]
    assert frame["label"].tolist() == truth["label"].tolist()
    assert (frame["width"] == 512).all()
    assert is_complete(phantom_dir, frame["path"].tolist())
    assert not is_complete(phantom_dir, frame["path"].tolist()[1:])
