"""Fixtures that several tests share: a prepared folder of phantoms, and a finished run."""

import contextlib
import io
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# torch reads it when it is imported, and so do the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from filelock import FileLock

import evaluate
import main
import prepare
from tests.support.builders import ON_CPU, PHANTOMS, QUICK, Patch, Run, link_phantoms

THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def _remove_log_handlers() -> Iterator[None]:
    """Remove the log handler that a command adds for the standard output of its test."""
    yield
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if type(handler) is logging.StreamHandler]:
        root.removeHandler(handler)


@pytest.fixture(autouse=True)
def _set_threads() -> Iterator[None]:
    """Undo `--threads` of fixtures and other tests: other numbers of threads round other sums."""
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def shared_dir(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all pytest-xdist workers of this test session share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Fill a folder in the first worker that asks for it; the others wait and find it."""
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        done = folder.with_name(f"{folder.name}.done")
        if not done.exists():
            build(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def phantom_dir(shared_dir: Path) -> Path:
    """A prepared folder of 60 phantoms; only its cache may be added to."""

    def build(folder: Path) -> None:
        assert prepare.main(["--phantom", str(PHANTOMS), "--data", str(folder)]) == 0

    return build_once(shared_dir / "phantom", build)


@pytest.fixture
def empty_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def workplace(empty_dir: Path, phantom_dir: Path) -> Path:
    """A working folder with nothing but the phantoms in data/phantom."""
    link_phantoms(empty_dir, phantom_dir)
    return empty_dir


@pytest.fixture
def no_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the evaluation after training, which tests of training do not need."""
    monkeypatch.setattr(evaluate, "evaluate", lambda _: None)


@pytest.fixture(scope="session")
def first_run(shared_dir: Path, phantom_dir: Path) -> Run:
    """`main.py --name first` on the phantoms, two epochs; not to be changed."""

    def build(root: Path) -> None:
        root.mkdir()
        link_phantoms(root, phantom_dir)
        output = io.StringIO()
        with contextlib.chdir(root), contextlib.redirect_stdout(output):
            assert main.main([*QUICK, *ON_CPU, "--epochs", "2", "--name", "first"]) == 0
        (root / "output.txt").write_text(output.getvalue(), "utf-8")

    root = build_once(shared_dir / "first", build)
    return Run(root, (root / "output.txt").read_text("utf-8"))


@pytest.fixture
def trained(tmp_path: Path, first_run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A working folder of one's own that holds the finished run `first`.

    Its files are links: replace them, never write into them.
    """
    root = tmp_path / "work"
    shutil.copytree(first_run.root, root, symlinks=True, copy_function=os.link)
    monkeypatch.chdir(root)
    return Run(root, first_run.output)


@pytest.fixture(scope="session")
def cross_run(shared_dir: Path, phantom_dir: Path) -> Path:
    """Working folder after `main.py --folds 3 --name cross`, one epoch; not to be changed."""

    def build(root: Path) -> None:
        root.mkdir()
        link_phantoms(root, phantom_dir)
        command = [*QUICK, *ON_CPU, "--epochs", "1", "--folds", "3", "--name", "cross"]
        with contextlib.chdir(root):
            assert main.main(command) == 0

    return build_once(shared_dir / "cross", build)


@pytest.fixture
def crossed(tmp_path: Path, cross_run: Path, monkeypatch: Patch) -> None:
    """A working folder with that cross-validation; its files are hard links: replace them."""
    shutil.copytree(cross_run, tmp_path / "work", symlinks=True, copy_function=os.link)
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture(scope="session")
def other_phantoms(shared_dir: Path) -> Path:
    """A prepared folder of 60 phantoms of another seed; only its cache may be added to."""

    def build(folder: Path) -> None:
        argv = ["--phantom", str(PHANTOMS), "--seed", "7", "--data", str(folder)]
        assert prepare.main(argv) == 0

    return build_once(shared_dir / "other_phantoms", build)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; asyncio of other modules needs it closed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as maker:
        opened = maker.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()
