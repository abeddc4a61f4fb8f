"""Tables and slices of a run: splits, labels, class weights, and refusals."""

from pathlib import Path
from unittest.mock import Mock

import pandas as pd
import pytest
import torch

import dataset
from helper import UserError
from loading import memory_budget
from loading.image_source import DiskSlices, MemorySlices
from tests.support.builders import make_data_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_data_folder(tmp_path / "data")


@pytest.mark.parametrize("in_memory", [True, False])
def test_slices_and_labels_follow_the_table(folder: Path, in_memory: bool) -> None:
    table = dataset.load_table(folder)
    slices = dataset.take_slices(table, "train", folder, ["A", "B"], 24, in_memory=in_memory)
    assert type(slices) is (MemorySlices if in_memory else DiskSlices)
    rows = table[table["split"] == "train"]
    assert [("A", "B")[label] for label in slices.labels.tolist()] == rows["label"].tolist()
    pixels, brightness, row_of = dataset.open_pixels(table, folder, 24)
    expected = torch.tensor(pixels[[row_of[digest] for digest in rows["sha256"]]])
    assert torch.equal(slices.pixels.squeeze(1), expected)
    assert slices.pixels.dtype == torch.uint8
    assert slices.brightness is not None
    assert slices.brightness.tolist() == [
        brightness[row_of[digest]].tolist() for digest in rows["sha256"]
    ]


@pytest.mark.parametrize(
    ("host_mib", "device_mib", "limit_mib", "where"),
    [(9, 9, None, "device"), (9, 0, None, "host"), (0, 9, None, "disk"), (0, 1, 1, "device")],
)
def test_slices_are_kept_where_there_is_memory(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    host_mib: int,
    device_mib: int,
    limit_mib: int | None,
    where: str,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(memory_budget, "measure_host_budget_mib", lambda _: host_mib)
    monkeypatch.setattr(memory_budget, "measure_device_budget_mib", lambda *_: device_mib)
    table, device = dataset.load_table(folder), torch.device("meta")  # as a second device
    options = (folder, ["A", "B"], 24, device)
    for slices in dataset.load_slices(table, ["train", "val"], *options, limit_mib=limit_mib):
        assert slices.device == device
        if where == "disk":
            assert isinstance(slices, DiskSlices)
        else:
            assert isinstance(slices, MemorySlices)
            assert slices.is_on_device == (where == "device")
    words = {"device": "", "host": "kept in the memory of the host", "disk": "read from disk"}
    assert words[where] in caplog.text
    assert bool(caplog.text) == (where != "device")


def test_all_splits_must_fit_and_room_is_left_for_the_trainer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, device = dataset.load_table(folder), torch.device("meta")  # as a second device
    sizes = [dataset.count_bytes(table, split, 24) / 2**20 for split in ("train", "val")]
    host = Mock(return_value=9)
    on_device = Mock(return_value=max(sizes))  # for each split, but not for both
    monkeypatch.setattr(memory_budget, "measure_host_budget_mib", host)
    monkeypatch.setattr(memory_budget, "measure_device_budget_mib", on_device)
    options = (table, ["train", "val"], folder, ["A", "B"], 24, device)
    for slices in dataset.load_slices(*options, reserved_mib=7.0, n_processes=3):
        assert isinstance(slices, MemorySlices)
        assert not slices.is_on_device
    host.assert_called_once_with(3)
    on_device.assert_called_once_with(device, None, 7.0)


def test_empty_split_is_refused(folder: Path) -> None:
    table = dataset.load_table(folder).assign(split="train")
    with pytest.raises(UserError, match="no slice in the val split"):
        dataset.take_slices(table, "val", folder, ["A", "B"], 24)


def test_group_in_two_splits_is_refused(folder: Path) -> None:
    path = folder / "CSV" / "images.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    first_of_splits = table.groupby("split").head(1).index[:2]
    table.loc[first_of_splits, "group"] = "g0"
    table.to_csv(path, index=False)
    with pytest.raises(UserError, match="g0"):
        dataset.load_table(folder)


@pytest.mark.parametrize("split_by", ["group", "image"])
def test_new_split_depends_on_its_seed(folder: Path, split_by: str) -> None:
    first, again, other = (
        dataset.load_table(folder, split_by, seed)["split"].tolist() for seed in (1, 1, 2)
    )
    assert set(first) == {"train", "val", "test"}
    assert first == again
    assert first != other


@pytest.mark.parametrize("content", ['{"schema": 3, "value_ranges": {}}', "{"])
def test_a_folder_of_another_version_is_refused(folder: Path, content: str) -> None:
    (folder / "CSV" / "audit.json").write_text(content, "utf-8")
    with pytest.raises(UserError, match=r"audit\.json .*run prepare\.py again"):
        dataset.load_table(folder)
    with pytest.raises(UserError, match="run prepare\\.py again"):
        dataset.load_fold_tables(folder, "group", None, 2)


def test_recorded_split_is_restored(folder: Path) -> None:
    table = dataset.load_table(folder)
    record = dataset.record_split(table)
    assert dataset.assign_split(table.assign(split=""), record).equals(table)
    half = {key: values[:6] for key, values in record.items()}
    assert dataset.assign_split(table, half)["split"].eq("").sum() == 6
    changed = (table.assign(**{column: "x"}) for column in ("sha256", "label", "split"))
    fingerprints = {dataset.compute_fingerprint(each) for each in (table, table[::-1], *changed)}
    assert len(fingerprints) == 5


def test_related_slices_share_a_group_with_training() -> None:
    table = pd.DataFrame({"group": ["a", "b", "c"], "split": ["train", "val", "test"]})
    rows = pd.DataFrame({"group": ["a", "c", "d", "a"]})
    assert dataset.find_related(table, rows).tolist() == [True, False, False, True]


def test_bytes_of_splits_by_hand(folder: Path) -> None:
    table = dataset.load_table(folder).assign(split=["train"] * 7 + ["val"] * 3 + ["test"] * 2)
    sizes = [dataset.count_bytes(table, split, 24) for split in ("train", "val", "all")]
    assert sizes == [7 * 24 * 24, 3 * 24 * 24, 12 * 24 * 24]


def test_class_weights_by_hand() -> None:
    weights = dataset.compute_class_weights(torch.tensor([0, 0, 0, 1]), 3)
    # four slices over three classes: 4 / (3 * 3) and 4 / (3 * 1)
    assert torch.allclose(weights, torch.tensor([4 / 9, 4 / 3, 0.0]))
