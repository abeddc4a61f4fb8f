"""Batches: every slice once, in parts for processes, from memory and from a file alike."""

import contextlib
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from helper import UserError
from loading.image_source import READ_AHEAD, Batch, MemorySlices, PixelFile, StoredSlices
from tests.support.builders import make_slices


def store(slices: MemorySlices, path: Path) -> StoredSlices:
    """The same slices in a file, among others and in another order."""
    n_slices, size_px = len(slices), slices.pixels.shape[-1]
    rows = np.random.default_rng(0).permutation(n_slices + 3)[:n_slices]
    pictures = np.full((n_slices + 3, size_px, size_px), 255, np.uint8)
    pictures[rows] = slices.pixels.squeeze(1).numpy()
    np.save(path, pictures)
    offset = path.stat().st_size - pictures.nbytes
    return StoredSlices(PixelFile(path, offset, size_px), rows, slices.labels)


@pytest.mark.parametrize(("n_slices", "batch_size"), [(24, 8), (25, 8), (33, 32), (5, 8), (9, 4)])
def test_an_epoch_shows_every_slice_once(n_slices: int, batch_size: int) -> None:
    slices = make_slices(n_slices)
    sizes, seen = [], []
    for batch in slices.shuffle(batch_size, seed=0, epoch=0):
        sizes.append(len(batch))
        seen += [tuple(picture.flatten().tolist()) for picture in batch.pixels]
    assert sorted(seen) == sorted(tuple(picture.flatten().tolist()) for picture in slices.pixels)
    assert len(sizes) == slices.count_steps(batch_size) == -(-n_slices // batch_size)
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) > 1


def test_order_is_a_function_of_seed_and_epoch() -> None:
    slices = make_slices(24)

    def order(seed: int, epoch: int) -> list[int]:
        return [
            int(picture.sum())
            for batch in slices.shuffle(8, seed, epoch)
            for picture in batch.pixels.long()
        ]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_iterate_keeps_the_order() -> None:
    slices = make_slices(10)
    assert torch.equal(torch.cat(list(slices.iterate(4))), slices.pixels)


@pytest.mark.parametrize("n_parts", [2, 3])
def test_the_parts_of_processes_are_the_batch(n_parts: int) -> None:
    slices = make_slices(25)
    whole = list(slices.shuffle(8, seed=0, epoch=1))
    divided = zip(*(slices.shuffle(8, 0, 1, part, n_parts) for part in range(n_parts)), strict=True)
    for batch, parts in zip(whole, divided, strict=True):
        assert torch.equal(torch.cat([part.pixels for part in parts]), batch.pixels)
        assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
        assert [part.start for part in parts] == np.cumsum([0, *map(len, parts)])[:-1].tolist()
        assert {part.whole for part in parts} == {len(batch)}
        assert sum(part.share for part in parts) == pytest.approx(1.0)


def test_val_is_divided_in_order() -> None:
    slices = make_slices(11)
    parts = [torch.cat(list(slices.iterate(2, part, 3))) for part in range(3)]
    assert [len(part) for part in parts] == [4, 4, 3]
    assert torch.equal(torch.cat(parts), slices.pixels)


@pytest.mark.parametrize(
    ("largest", "sizes"), [(8, [8]), (4, [4, 4]), (3, [2, 3, 3]), (2, [2] * 4), (1, [2] * 4)]
)
def test_a_batch_in_micro_batches(largest: int, sizes: list[int]) -> None:
    slices = make_slices(8)
    batch = Batch(slices.pixels, slices.labels, start=8, whole=16)
    parts = batch.divide(largest)
    assert [len(part) for part in parts] == sizes
    assert [part.start for part in parts] == (8 + np.cumsum([0, *sizes])[:-1]).tolist()
    assert torch.equal(torch.cat([part.pixels for part in parts]), slices.pixels)
    assert sum(part.share for part in parts) == pytest.approx(0.5)


def test_a_batch_of_one_stays_whole() -> None:
    slices = make_slices(1)
    assert [len(part) for part in Batch(slices.pixels, slices.labels, 0, 1).divide(1)] == [1]


def test_a_file_gives_the_same_batches(tmp_path: Path) -> None:
    slices = make_slices(45)
    stored = store(slices, tmp_path / "pixels.npy")
    for first, second in zip(
        slices.shuffle(4, 3, 2, 1, 2), stored.shuffle(4, 3, 2, 1, 2), strict=True
    ):
        assert torch.equal(first.pixels, second.pixels)
        assert torch.equal(first.labels, second.labels)
        assert (first.start, first.whole) == (second.start, second.whole)
    assert torch.equal(stored.pixels, slices.pixels)
    assert torch.equal(torch.cat(list(stored.iterate(7))), slices.pixels)
    assert torch.equal(stored.take(torch.tensor([5, 2])), slices.pixels[[5, 2]])


def test_no_more_is_read_than_is_needed_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = store(make_slices(100), tmp_path / "pixels.npy")
    loads, load, n_threads = [], StoredSlices._load, threading.active_count()

    def watch(self: StoredSlices, places: torch.Tensor) -> torch.Tensor:
        loads.append(len(places))
        return load(self, places)

    monkeypatch.setattr(StoredSlices, "_load", watch)
    with contextlib.closing(stored.read(torch.arange(100).split(2))) as parts:
        next(parts)
    assert threading.active_count() == n_threads  # an epoch that is broken off leaves none behind
    assert 1 <= len(loads) <= READ_AHEAD + 1


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    stored = store(make_slices(9), tmp_path / "pixels.npy")
    content = (tmp_path / "pixels.npy").read_bytes()
    (tmp_path / "pixels.npy").write_bytes(content[:-2000])
    with pytest.raises(UserError, match=r"pixels\.npy: shorter than it was"):
        list(stored.iterate(4))
