"""A finished cross-validation that several tests share."""

import contextlib
import os
import shutil
from pathlib import Path

import pytest

import main
from tests.conftest import build_once
from tests.support.builders import ON_CPU, QUICK, Patch, link_phantoms


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
