"""Fixtures of the duplicate search on phantoms."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from duplicates.finder import Duplicates, find_duplicates
from experiments.planted_duplicates import read_thumbnails
from preparation.manifest import load_manifest


@pytest.fixture(scope="session")
def frame(phantom_dir: Path) -> pd.DataFrame:
    return load_manifest(phantom_dir)


@pytest.fixture(scope="session")
def thumbnails(phantom_dir: Path, frame: pd.DataFrame) -> dict[str, np.ndarray]:
    return read_thumbnails(frame, phantom_dir)


@pytest.fixture(scope="session")
def found(thumbnails: dict[str, np.ndarray]) -> Duplicates:
    return find_duplicates(thumbnails)
