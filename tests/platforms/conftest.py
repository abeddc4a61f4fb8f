"""A working folder where Windows' file rules hold."""

import gc
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.windows_rules import windows_rules


@pytest.fixture
def windows(tmp_path: Path, phantom_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a copy of the phantoms in data/phantom, under Windows' rules."""
    shutil.copytree(phantom_dir, tmp_path / "data" / "phantom")
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    monkeypatch.chdir(tmp_path)
    with windows_rules(tmp_path):
        yield tmp_path
    gc.collect()  # the frames of an exception, which may hold a temporary file, refer to it
    left = [path.name for path in (tmp_path / "temp").iterdir()]
    assert [name for name in left if not name.startswith("torch")] == []
