"""Fixtures of the page's tests: the application without a server, a running page, a phantom."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from inference.predictor import SlicePredictor, load_predictor
from inference.training_slices import TrainingSlices, find_training
from phantoms.generator import plan_phantoms, render_phantom
from tests.support import page_server
from tests.support.builders import Run
from webapp.api import build_app
from webapp.guard import Guard


@pytest.fixture(scope="session")
def predictor(first_run: Run) -> SlicePredictor:
    return load_predictor([first_run.root / page_server.BEST], "cpu", 1)


@pytest.fixture
def training(first_run: Run, predictor: SlicePredictor) -> TrainingSlices:
    return find_training(predictor, first_run.root / "data" / "phantom")


@pytest.fixture
def uploads_dir(tmp_path: Path) -> Path:
    """Folder of the uploads."""
    path = tmp_path / "uploads"
    path.mkdir()
    return path


@pytest.fixture
def client(
    predictor: SlicePredictor, training: TrainingSlices, uploads_dir: Path
) -> Iterator[TestClient]:
    """The application, checks of requests included; every test leaves no upload behind."""
    app = Guard(build_app(predictor, training, uploads_dir))
    yield TestClient(app, "http://127.0.0.1:7860", raise_server_exceptions=False)
    assert list(uploads_dir.iterdir()) == []


@pytest.fixture(scope="module")
def served(first_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[page_server.Page]:
    page = page_server.start(first_run.root, tmp_path_factory.mktemp("temporary"))
    yield page
    assert page_server.end(page) == page_server.ENDED  # no file of the tests is named in the log
    assert page.process.returncode == 0
    assert list(page.temporary.iterdir()) == []
    names = {path.name for path in first_run.root.iterdir()}
    assert names == {"data", "results", "session", "output.txt"}  # nothing new


@pytest.fixture
def phantom(tmp_path: Path) -> Path:
    path = tmp_path / "phantom.png"
    Image.fromarray(render_phantom(plan_phantoms(6, 5)[0])[0]).save(path)
    return path
