"""Batches of slices: complete, in parts for processes, equal from memory and disk."""

import contextlib
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from helper import UserError
from loading import image_source
from loading.image_source import READ_AHEAD, Batch, DiskSlices, MemorySlices
from tests.support.builders import make_slices


def store(slices: MemorySlices, path: Path) -> DiskSlices:
    """Write the slices to a file with other rows and in another order."""
    n_slices, size_px = len(slices), slices.pixels.shape[-1]
    rows = np.random.default_rng(0).permutation(n_slices + 3)[:n_slices]
    pixels = np.full((n_slices + 3, size_px, size_px), 255, np.uint8)
    pixels[rows] = slices.pixels.squeeze(1).numpy()
    np.save(path, pixels)
    file = np.load(path, mmap_mode="r")
    return DiskSlices(file, rows, slices.labels)


@pytest.mark.parametrize(("n_slices", "batch_size"), [(24, 8), (25, 8), (33, 32), (5, 8), (9, 4)])
def test_an_epoch_has_every_slice_in_batches_of_one_size(n_slices: int, batch_size: int) -> None:
    slices = make_slices(n_slices)
    batches = list(slices.shuffle(batch_size, seed=0, epoch=0))
    seen = torch.cat([batch.pixels for batch in batches]).flatten(1).tolist()
    assert sorted(seen[:n_slices]) == sorted(slices.pixels.flatten(1).tolist())
    assert seen[n_slices:] == seen[: len(seen) - n_slices]  # fill the last batch
    sizes = [len(batch) for batch in batches]
    assert len(sizes) == slices.count_steps(batch_size) == -(-n_slices // batch_size)
    assert set(sizes) == {min(batch_size, n_slices)} == {slices.compute_batch_size(batch_size)}


def test_order_depends_on_seed_and_epoch() -> None:
    slices = make_slices(24)

    def order(seed: int, epoch: int) -> list[int]:
        batches = slices.shuffle(8, seed, epoch)
        return torch.cat([batch.pixels.sum((1, 2, 3)) for batch in batches]).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


@pytest.mark.parametrize("n_parts", [2, 3])
def test_parts_of_processes_form_the_batch(n_parts: int) -> None:
    slices = make_slices(25)
    batches = list(slices.shuffle(8, seed=0, epoch=1))
    divided = zip(*(slices.shuffle(8, 0, 1, part, n_parts) for part in range(n_parts)), strict=True)
    for batch, parts in zip(batches, divided, strict=True):
        assert torch.equal(torch.cat([part.pixels for part in parts]), batch.pixels)
        assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
        assert [part.offset for part in parts] == np.cumsum([0, *map(len, parts)])[:-1].tolist()
        assert {part.global_size for part in parts} == {len(batch)}
        assert sum(part.loss_weight for part in parts) == pytest.approx(1.0)


def test_iterate_keeps_the_order() -> None:
    slices = make_slices(11)
    assert torch.equal(torch.cat(list(slices.iterate(4))), slices.pixels)
    parts = [torch.cat(list(slices.iterate(2, part, 3))) for part in range(3)]
    assert [len(part) for part in parts] == [4, 4, 3]
    assert torch.equal(torch.cat(parts), slices.pixels)


@pytest.mark.parametrize(
    ("max_size", "sizes"),
    [(8, [8]), (4, [4, 4]), (3, [2, 3, 3]), (2, [2] * 4), (1, [2] * 4), (1, [1])],
)
def test_batch_is_split_into_micro_batches(max_size: int, sizes: list[int]) -> None:
    n_slices = sum(sizes)
    slices = make_slices(n_slices)
    batch = Batch(slices.pixels, slices.labels, offset=8, global_size=2 * n_slices)
    parts = batch.split(max_size, n_processes=2)
    assert [len(part) for part in parts] == sizes
    assert [part.offset for part in parts] == (8 + np.cumsum([0, *sizes])[:-1]).tolist()
    assert torch.equal(torch.cat([part.pixels for part in parts]), slices.pixels)
    assert sum(part.loss_weight for part in parts) == pytest.approx(0.5)


@pytest.mark.parametrize("max_size", [1, 2, 3, 4, 8])
def test_processes_split_their_parts_equally(max_size: int) -> None:
    shares = next(zip(*(make_slices(9).shuffle(9, 0, 0, part, 2) for part in (0, 1)), strict=True))
    assert [len(share) for share in shares] == [5, 4]
    splits = [share.split(max_size, n_processes=2) for share in shares]
    assert len(splits[0]) == len(splits[1])
    assert min(len(part) for parts in splits for part in parts) >= 2


def test_disk_gives_the_same_batches(tmp_path: Path) -> None:
    slices = make_slices(45)
    stored = store(slices, tmp_path / "pixels.npy").to(torch.device("cpu"))
    for first, second in zip(
        slices.shuffle(4, 3, 2, 1, 2), stored.shuffle(4, 3, 2, 1, 2), strict=True
    ):
        assert torch.equal(first.pixels, second.pixels)
        assert torch.equal(first.labels, second.labels)
        assert (first.offset, first.global_size) == (second.offset, second.global_size)
    assert torch.equal(stored.pixels, slices.pixels)
    assert torch.equal(torch.cat(list(stored.iterate(7))), slices.pixels)
    assert torch.equal(stored.take(torch.tensor([5, 2])), slices.pixels[[5, 2]])


def test_slices_that_move_to_the_host_give_the_same_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The host is emulated by copies of which every batch is counted."""
    slices, copied = make_slices(20), []
    expected = list(slices.iterate(8))
    moved = make_slices(20)

    def copy(values: torch.Tensor, device: torch.device) -> torch.Tensor:
        copied.append(len(values))
        return values

    monkeypatch.setattr(image_source, "copy_async", copy)
    batches = moved.iterate(8)
    assert torch.equal(next(batches), expected[0])
    monkeypatch.setattr(MemorySlices, "is_on_device", False)
    moved.move_to_host()  # in the middle of an epoch
    assert all(map(torch.equal, batches, expected[1:]))
    assert copied == [8, 4]


def test_only_a_few_batches_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = store(make_slices(100), tmp_path / "pixels.npy")
    sizes, load, n_threads = [], DiskSlices._load, threading.active_count()

    def record(self: DiskSlices, indices: torch.Tensor) -> torch.Tensor:
        sizes.append(len(indices))
        return load(self, indices)

    monkeypatch.setattr(DiskSlices, "_load", record)
    with contextlib.closing(stored.read(torch.arange(100).split(2))) as batches:
        next(batches)
    assert threading.active_count() == n_threads  # an aborted epoch leaves no thread
    assert 1 <= len(sizes) <= READ_AHEAD + 1


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pixels.npy"
    stored = store(make_slices(9), path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 2000)
    with pytest.raises(UserError, match=r"pixels\.npy: truncated"):
        list(stored.iterate(4))
