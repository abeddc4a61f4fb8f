"""From the manifest to slices: the cache, divisions, and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import dataset
from helper import UserError
from loading.image_source import MemorySlices, StoredSlices
from tests.support.builders import make_data_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_data_folder(tmp_path / "data")


@pytest.mark.parametrize("in_memory", [True, False])
def test_slices_labels_and_rows_are_in_step(folder: Path, in_memory: bool) -> None:
    table = dataset.load_table(folder)
    slices = dataset.take_slices(table, "train", folder, ["A", "B"], 24, in_memory=in_memory)
    assert type(slices) is (MemorySlices if in_memory else StoredSlices)
    rows = table[table["split"] == "train"]
    assert [("A", "B")[label] for label in slices.labels.tolist()] == rows["label"].tolist()
    assert slices.pixels.shape == (len(rows), 1, 24, 24)
    assert slices.pixels.dtype == torch.uint8
    from imaging.orientation import fit_slice
    from imaging.reader import read_grey

    for pixels, path in zip(slices.pixels, rows["path"], strict=True):
        assert np.array_equal(pixels[0].numpy(), fit_slice(read_grey(folder / path), 24))


def test_the_cache_is_made_once_and_keyed_by_content_and_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = dataset.load_table(folder)
    first, _ = dataset.open_pixels(table, folder, 24)
    decode = dataset._decode
    monkeypatch.setattr(dataset, "_decode", lambda *_: pytest.fail("decoded again"))
    again, _ = dataset.open_pixels(table.sample(frac=1, random_state=0), folder, 24)
    assert np.array_equal(first, again)
    monkeypatch.setattr(dataset, "_decode", decode)
    assert dataset.open_pixels(table, folder, 16)[0].shape[1:] == (16, 16)
    assert len(dataset.open_pixels(table[1:], folder, 24)[0]) == len(first) - 1
    assert len(list((folder / "cache").glob("*.npy"))) == 3


def test_a_folder_that_cannot_be_written_still_works(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "cache")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", refuse)
    pixels, position = dataset.open_pixels(dataset.load_table(folder), folder, 24)
    assert len(pixels) == len(position) == 12
    assert [path.name for path in (folder / "cache").iterdir()] == [".lock"]


def test_a_cache_that_was_cut_short_is_made_anew(folder: Path) -> None:
    table = dataset.load_table(folder)
    whole = np.array(dataset.open_pixels(table, folder, 24)[0])
    (path,) = (folder / "cache").glob("*.npy")
    for size in (len(path.read_bytes()) - 1, 40, 0):
        path.write_bytes(path.read_bytes()[:size])
        (folder / "cache" / ".part-half.npy").touch()
        assert np.array_equal(dataset.open_pixels(table, folder, 24)[0], whole)
        assert not list((folder / "cache").glob(".part-*"))


def test_no_place_for_slices_that_exceed_the_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device", "cache")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", refuse)
    table = dataset.load_table(folder)
    with pytest.raises(UserError, match=r"No space left on device.*raise --memory-mib"):
        dataset.take_slices(table, "train", folder, ["A", "B"], 24, in_memory=False)


def test_a_cache_is_written_chunk_by_chunk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = dataset.load_table(folder)
    whole, _ = dataset.open_pixels(table, folder, 24)
    shutil.rmtree(folder / "cache")
    monkeypatch.setattr(dataset, "CHUNK_SLICES", 5)
    chunks = [len(chunk) for chunk in _decode_all(table, folder)]
    assert chunks == [5, 5, 2]
    assert np.array_equal(dataset.open_pixels(table, folder, 24)[0], whole)


def _decode_all(table: pd.DataFrame, folder: Path) -> list[np.ndarray]:
    paths = [folder / path for path in table["path"]]
    return list(dataset._decode(paths, table["sha256"].tolist(), 24))


def test_bytes_of_splits_by_hand(folder: Path) -> None:
    table = dataset.load_table(folder).assign(split=["train"] * 7 + ["val"] * 3 + ["test"] * 2)
    assert dataset.count_bytes(table, ("train", "val"), 24) == 10 * 24 * 24


def test_a_changed_picture_is_refused(folder: Path) -> None:
    table = dataset.load_table(folder)
    path = folder / table["path"][0]
    shutil.copy(folder / table["path"][1], path)
    with pytest.raises(UserError, match=rf"{path.name}: changed since prepare.py ran"):
        dataset.open_pixels(table, folder, 24)


def test_a_missing_picture_is_refused(folder: Path) -> None:
    table = dataset.load_table(folder)
    (folder / table["path"][3]).unlink()
    with pytest.raises(UserError, match=rf"{Path(table['path'][3]).name}: No such file.*prepare"):
        dataset.open_pixels(table, folder, 24)


def test_an_empty_split_is_refused(folder: Path) -> None:
    table = dataset.load_table(folder).assign(split="train")
    with pytest.raises(UserError, match="no slice in the val split"):
        dataset.take_slices(table, "val", folder, ["A", "B"], 24)


def test_a_group_in_two_splits_is_refused(folder: Path) -> None:
    path = folder / "CSV" / "images.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    apart = table.groupby("split").head(1).index[:2]
    table.loc[apart, "group"] = "g0"
    table.to_csv(path, index=False)
    with pytest.raises(UserError, match="g0"):
        dataset.load_table(folder)


@pytest.mark.parametrize("split_by", ["group", "image"])
def test_a_split_of_ones_own(folder: Path, split_by: str) -> None:
    first, again, other = (
        dataset.load_table(folder, split_by, seed)["split"].tolist() for seed in (1, 1, 2)
    )
    assert set(first) == {"train", "val", "test"}
    assert first == again
    assert first != other


def test_the_record_of_a_split_assigns_it_again(folder: Path) -> None:
    table = dataset.load_table(folder)
    record = dataset.record_split(table)
    assert dataset.assign_split(table.assign(split=""), record).equals(table)
    half = {key: values[:6] for key, values in record.items()}
    assert dataset.assign_split(table, half)["split"].eq("").sum() == 6


def test_class_weights_by_hand() -> None:
    weights = dataset.compute_class_weights(torch.tensor([0, 0, 0, 1]), 3)
    # four slices over three classes: 4 / (3 * 3) and 4 / (3 * 1)
    assert torch.allclose(weights, torch.tensor([4 / 9, 4 / 3, 0.0]))
