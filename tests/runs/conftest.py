"""A finished cross-validation that several tests share."""

import contextlib
import os
import shutil
from pathlib import Path

import pytest

import evaluate
import main
from tests.conftest import build_once
from tests.support.builders import ON_CPU, QUICK, Run, link_phantoms


@pytest.fixture
def no_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the evaluation after training, which tests of training do not need."""
    monkeypatch.setattr(evaluate, "evaluate", lambda _: None)


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
def crossed(tmp_path: Path, cross_run: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A working folder with that cross-validation; its files are hard links: replace them."""
    root = tmp_path / "work"
    shutil.copytree(cross_run, root, symlinks=True, copy_function=os.link)
    monkeypatch.chdir(root)
    return Run(root, "")
