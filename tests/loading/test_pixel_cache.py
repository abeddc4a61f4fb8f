"""Pixel cache: content, name, repair, and refusals."""

import errno
import hashlib
import itertools
import os
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import dataset
from common import cache_folder
from common.cache_folder import find_user_cache
from helper import UserError
from imaging.brightness import compute_brightness_statistics
from imaging.orientation import orient_and_letterbox
from imaging.reader import read_grey
from loading import pixel_cache
from loading.pixel_cache import open_pixels
from preparation import integrity
from tests.support.builders import make_data_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_data_folder(tmp_path / "data")


@pytest.fixture
def table(folder: Path) -> pd.DataFrame:
    return dataset.load_table(folder)


def fail_to_write(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    failure = OSError(number, "message", "cache")
    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", Mock(side_effect=failure))


def test_pixels_are_decoded_letterboxed_slices(folder: Path, table: pd.DataFrame) -> None:
    pixels, brightness, row_of = open_pixels(table, folder, 24)
    assert pixels.shape == (12, 24, 24)
    assert np.array_equal(brightness, compute_brightness_statistics(pixels))
    for digest, path in zip(table["sha256"], table["path"], strict=True):
        expected = orient_and_letterbox(read_grey(folder / path), 24)
        assert np.array_equal(pixels[row_of[digest]], expected)


def test_cache_is_built_once_per_content_and_size(
    folder: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, brightness, _ = open_pixels(table, folder, 24)
    with monkeypatch.context() as patch:
        patch.setattr(pixel_cache, "_decode", lambda *_: pytest.fail("decoded again"))
        statistics = Mock(side_effect=AssertionError("computed again"))
        patch.setattr(pixel_cache, "compute_brightness_statistics", statistics)
        again = open_pixels(table.sample(frac=1, random_state=0), folder, 24)
    assert np.array_equal(first, again.pixels)
    assert np.array_equal(brightness, again.brightness)
    assert open_pixels(table, folder, 16)[0].shape == (12, 16, 16)
    assert len(open_pixels(table[1:], folder, 24)[0]) == 11
    monkeypatch.setattr(pixel_cache, "READER_VERSION", 999)
    open_pixels(table, folder, 24)
    assert len(list((folder / "cache").glob("*[!s].npy"))) == 4
    assert len(list((folder / "cache").glob("*-brightness.npy"))) == 4


def test_another_range_of_values_is_decoded_again(folder: Path) -> None:
    path = next((folder / "Images").rglob("*.*"))
    Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32)).save(path, format="PNG")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    table = pd.DataFrame({"path": [path.relative_to(folder).as_posix()], "sha256": [digest]})
    brightest = [
        open_pixels(table, folder, 32, ranges={"integers": [0, white]}).pixels.max()
        for white in (1023, 4095, 1023)
    ]
    assert brightest == [255, 64, 255]


def test_truncated_cache_is_rebuilt(folder: Path, table: pd.DataFrame) -> None:
    complete = open_pixels(table, folder, 24)
    expected = np.array(complete.pixels)
    paths = list((folder / "cache").glob("*.npy"))
    assert len(paths) == 2
    for path, cut in itertools.product(paths, (1, 40, 10**9)):
        path.write_bytes(path.read_bytes()[: max(0, path.stat().st_size - cut)])
        (folder / "cache" / ".part-half.npy").touch()
        again = open_pixels(table, folder, 24)
        assert np.array_equal(again.pixels, expected)
        assert np.array_equal(again.brightness, complete.brightness)
        assert not list((folder / "cache").glob(".part-*"))


def test_brightness_of_other_slices_is_computed_again(folder: Path, table: pd.DataFrame) -> None:
    expected = open_pixels(table, folder, 24).brightness
    (path,) = (folder / "cache").glob("*-brightness.npy")
    np.save(path, expected[1:])
    assert np.array_equal(open_pixels(table, folder, 24).brightness, expected)


def test_slices_are_decoded_in_chunks(
    folder: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixel_cache, "CHUNK_SLICES", 5)
    paths = [folder / path for path in table["path"]]
    chunks = list(pixel_cache._decode(paths, table["sha256"].tolist(), 24))
    assert [len(chunk) for chunk in chunks] == [5, 5, 2]


def test_without_a_place_to_write_slices_stay_in_memory(
    folder: Path, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_folder, "find_user_cache", lambda: tmp_path / "user")
    for number in (errno.EACCES, errno.ENOSPC):
        fail_to_write(monkeypatch, number)
        pixels, brightness, row_of = open_pixels(table, folder, 24)
        assert len(pixels) == len(brightness) == len(row_of) == 12
        assert list((folder / "cache").iterdir()) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_read_only_data_are_cached_elsewhere(
    number: int, folder: Path, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = open_pixels(table, folder, 24).pixels[:]
    make_read_only(monkeypatch, folder, number)
    shutil.rmtree(folder / "cache")
    elsewhere = tmp_path / "user"
    monkeypatch.setattr(cache_folder, "find_user_cache", lambda: elsewhere)
    for in_memory in (False, True):  # the second time it is found
        assert np.array_equal(open_pixels(table, folder, 24, in_memory=in_memory).pixels, expected)
        monkeypatch.setattr(pixel_cache, "_decode", lambda *_: pytest.fail("decoded again"))
    integrity.check_all(folder)
    assert not (folder / "cache").exists()
    written = {path.name for path in elsewhere.glob("*/*/*") if path.suffix != ".npy"}
    assert written <= {"verified.json"}
    other = tmp_path / "other"
    assert cache_folder.list_cache_folders(other)[1] != cache_folder.list_cache_folders(folder)[1]


def make_read_only(monkeypatch: pytest.MonkeyPatch, folder: Path, number: int) -> None:
    """No folder can be created below this one."""
    mkdir = Path.mkdir

    def refuse(self: Path, *args: Any, **options: Any) -> None:
        if self.is_relative_to(folder):
            raise OSError(number, "read-only", str(self))
        mkdir(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("win32", "LOCALAPPDATA", "set"),
        ("linux", "XDG_CACHE_HOME", "set"),
        ("win32", "", "home/AppData/Local"),
        ("linux", "", "home/.cache"),
        ("darwin", "", "home/Library/Caches"),
    ],
)
def test_the_users_cache_folder_is_that_of_the_system(
    platform: str, variable: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCALAPPDATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda _: "home")
    monkeypatch.setattr(sys, "platform", platform)
    if variable:
        monkeypatch.setenv(variable, "set")
    assert find_user_cache().as_posix() == expected
    # a relative folder would be in the current one
    assert len(cache_folder.list_cache_folders(Path("data"))) == 1


def test_refusals(folder: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        fail_to_write(patch, errno.ENOSPC)
        with pytest.raises(UserError, match=r"cannot be written.*--memory-mib"):
            open_pixels(table, folder, 24, in_memory=False)
    with monkeypatch.context() as patch:
        denied = PermissionError(errno.EACCES, "Permission denied", "0.png")
        patch.setattr(Path, "read_bytes", Mock(side_effect=denied))
        with pytest.raises(UserError, match=r"0\.png: Permission denied; run prepare\.py again"):
            open_pixels(table, folder, 24)
    changed, missing = (folder / path for path in table["path"][:2])
    shutil.copy(missing, changed)
    with pytest.raises(UserError, match=rf"{changed.name}: changed since prepare\.py ran"):
        open_pixels(table, folder, 24)
    missing.unlink()
    with pytest.raises(UserError, match=rf"{missing.name}: No such file.*prepare\.py"):
        open_pixels(table, folder, 24)
