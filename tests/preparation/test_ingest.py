"""Files on disk are kept, completed or refused, and phantoms get their true ids."""

from pathlib import Path

import pandas as pd
import pytest

from helper import UserError
from preparation.ingest import is_complete, needs_writing, write_image
from preparation.manifest import load_manifest


def test_files_on_disk_are_kept_completed_or_refused(tmp_path: Path) -> None:
    target = tmp_path / "Images" / "A" / "1.jpg"
    assert needs_writing(target, b"content")
    write_image(target, b"content")
    assert not needs_writing(target, b"content")
    assert [path.name for path in target.parent.iterdir()] == ["1.jpg"]
    for beginning in (b"", b"cont"):
        target.write_bytes(beginning)
        assert needs_writing(target, b"content")
    for other in (b"Content", b"content and more"):
        target.write_bytes(other)
        with pytest.raises(UserError, match="exists with other content"):
            needs_writing(target, b"content")


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
