"""Slices in batches on the device, whether they lie in memory or on disk."""

import abc
import itertools
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from helper import UserError, build_generator

# Batches that are read from disk ahead of the one in use.
READ_AHEAD = 4


@dataclass(frozen=True)
class Batch:
    """The slices of one training step, or a part of them.

    Attributes:
        pixels: uint8 [B, 1, S, S].
        labels: Class indices [B].
        start: Place of the first among the slices of the whole step.
        whole: Slices of the whole step, over all parts and processes.
    """

    pixels: Tensor
    labels: Tensor
    start: int
    whole: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def share(self) -> float:
        """Of the slices of the whole step, 0 to 1."""
        return len(self) / self.whole

    def divide(self, largest: int) -> "list[Batch]":
        """Parts of at most `largest` slices, alike in size; two at least, for batch norm's sake."""
        n_parts = max(1, min(-(-len(self) // largest), len(self) // 2))
        bounds = [len(self) * part // n_parts for part in range(n_parts + 1)]
        return [
            Batch(self.pixels[low:high], self.labels[low:high], self.start + low, self.whole)
            for low, high in itertools.pairwise(bounds)
        ]


class Slices(abc.ABC):
    """The slices of one split.

    Attributes:
        labels: Class indices [N], on the device.
        pixels: All of them, uint8 [N, 1, S, S] on the device; those on disk are read for it.
    """

    labels: Tensor
    pixels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @abc.abstractmethod
    def to(self, device: torch.device) -> "Slices":
        """The same slices for another device."""

    @abc.abstractmethod
    def read(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Slices by their places: uint8 [B, 1, S, S] on the device for each part.

        Args:
            parts: Places [B] among the slices, on the CPU.
        """

    def take(self, places: Tensor) -> Tensor:
        """The slices at some places [B]: uint8 [B, 1, S, S] on the device."""
        return next(self.read([places]))

    def count_steps(self, batch_size: int) -> int:
        """Batches an epoch."""
        return -(-len(self) // batch_size)

    def iterate(self, batch_size: int, part: int = 0, n_parts: int = 1) -> Iterator[Tensor]:
        """Every slice once, in order: pixels [B, 1, S, S]; or one of several runs of them."""
        places = torch.arange(len(self)).tensor_split(n_parts)[part]
        return self.read(places.split(batch_size)) if len(places) else iter(())

    def shuffle(
        self,
        batch_size: int,
        seed: int,
        epoch: int,
        part: int = 0,
        n_parts: int = 1,
        first: int = 0,
    ) -> Iterator[Batch]:
        """Every slice once, in the order of this seed and epoch; or one part of each batch.

        An epoch that was begun goes on with its batch number `first`.

        Batches differ by one slice at most: a last batch of one would break batch norm and weigh
        its slice more than others. The parts of a batch are the whole batch, however many they are.
        """
        order = torch.randperm(len(self), generator=build_generator(seed, "order", epoch))
        steps = order.tensor_split(self.count_steps(batch_size))[first:]
        if not steps:
            return
        parts = [step.tensor_split(n_parts) for step in steps]
        own = [divided[part] for divided in parts]
        labels = self.labels[torch.cat(own).to(self.labels.device)].split(
            [len(each) for each in own]
        )
        for pixels, own_labels, divided, step in zip(
            self.read(own), labels, parts, steps, strict=True
        ):
            yield Batch(pixels, own_labels, sum(map(len, divided[:part])), len(step))


class MemorySlices(Slices):
    """Slices in the memory of the device.

    Args:
        pixels: uint8 [N, 1, S, S].
        labels: Class indices [N].
    """

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        self.pixels, self.labels = pixels, labels

    def to(self, device: torch.device) -> "MemorySlices":
        """The same slices in the memory of another device."""
        return MemorySlices(self.pixels.to(device), self.labels.to(device))

    def read(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """As `Slices.read`; the places are copied to the device once."""
        places = torch.cat(list(parts)).to(self.pixels.device)
        return (self.pixels[some] for some in places.split([len(part) for part in parts]))


class StoredSlices(Slices):
    """Slices that stay in a file of pixels; a thread reads a few batches ahead.

    They are read at their places rather than mapped, so that what is in memory is the batches under
    way and nothing else.

    Args:
        store: The file and where in it the pictures begin.
        rows: Which pictures of the file, [N].
        labels: Class indices [N].
    """

    def __init__(self, store: "PixelFile", rows: np.ndarray, labels: Tensor) -> None:
        self.store, self.rows, self.labels = store, rows, labels

    @property
    def pixels(self) -> Tensor:  # type: ignore[override]
        """Every slice, uint8 [N, 1, S, S] on the device."""
        return self.take(torch.arange(len(self)))

    def to(self, device: torch.device) -> "StoredSlices":
        """The same file, read for another device."""
        return StoredSlices(self.store, self.rows, self.labels.to(device))

    def read(self, parts: Sequence[Tensor]) -> Generator[Tensor]:
        """As `Slices.read`."""
        device = self.labels.device
        ahead: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(1) as reader:
            for part in parts:
                ahead.append(reader.submit(self._load, part))
                if len(ahead) > READ_AHEAD:
                    yield ahead.popleft().result().to(device, non_blocking=True)
            while ahead:
                yield ahead.popleft().result().to(device, non_blocking=True)

    def _load(self, places: Tensor) -> Tensor:
        pixels = self.store.read(self.rows[places.numpy()])
        return pixels.pin_memory() if self.labels.is_cuda else pixels


@dataclass(frozen=True)
class PixelFile:
    """An .npy file of pictures, of which some are read at a time.

    Attributes:
        path: The file, uint8 [pictures, S, S].
        offset: Where its first picture begins, bytes.
        size_px: S.
    """

    path: Path
    offset: int
    size_px: int

    def read(self, rows: np.ndarray) -> Tensor:
        """Some pictures: uint8 [B, 1, S, S].

        Raises:
            UserError: The file has been cut short.
        """
        pixels = torch.empty(len(rows), 1, self.size_px, self.size_px, dtype=torch.uint8)
        with self.path.open("rb", buffering=0) as file:
            for picture, row in zip(pixels.numpy(), rows.tolist(), strict=True):
                file.seek(self.offset + row * self.size_px**2)
                if file.readinto(picture.data) != self.size_px**2:
                    raise UserError(f"{self.path}: shorter than it was; delete it, it is made anew")
        return pixels
