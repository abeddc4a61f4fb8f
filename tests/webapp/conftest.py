"""Fixtures of the page's tests: a predictor, a running page, a phantom as a file."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from inference.predictor import SlicePredictor, load_predictor
from phantoms.generator import plan_phantoms, render_phantom
from tests.support import page_server
from tests.support.builders import Run


@pytest.fixture(scope="session")
def predictor(first_run: Run) -> SlicePredictor:
    return load_predictor([first_run.root / page_server.BEST], "cpu", 1)


@pytest.fixture(scope="module")
def served(first_run: Run) -> Iterator[page_server.Page]:
    page = page_server.start(first_run.root)
    yield page
    assert page_server.end(page) == page_server.ENDED  # no file of the tests is named in the log
    assert page.process.returncode == 0
    assert not page.folder.exists()
    names = {path.name for path in first_run.root.iterdir()}
    assert names == {"data", "results", "session", "output.txt"}  # nothing new


@pytest.fixture
def phantom(tmp_path: Path) -> Path:
    path = tmp_path / "phantom.png"
    Image.fromarray(render_phantom(plan_phantoms(6, 5)[0])[0]).save(path)
    return path
