"""Decoded slices in batches on the training device, held in memory or read from disk."""

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

READ_AHEAD = 4  # batches read from disk before they are needed


@dataclass(frozen=True)
class Batch:
    """The slices of one training step, or a part of them.

    Attributes:
        pixels: uint8 [B, 1, S, S].
        labels: Class indices [B].
        offset: Position of the first slice in the global batch.
        global_size: Slices in the global batch, over all parts and processes.
    """

    pixels: Tensor
    labels: Tensor
    offset: int
    global_size: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def loss_weight(self) -> float:
        """Fraction of the global batch, 0 to 1."""
        return len(self) / self.global_size

    def split(self, max_size: int) -> "list[Batch]":
        """Split into nearly equal parts of two or more slices, at most `max_size` if possible.

        Batch norm needs two slices; only a batch of one slice gives a part of one slice.
        """
        n_parts = max(1, min(-(-len(self) // max_size), len(self) // 2))
        bounds = [len(self) * part // n_parts for part in range(n_parts + 1)]
        return [
            Batch(self.pixels[i:j], self.labels[i:j], self.offset + i, self.global_size)
            for i, j in itertools.pairwise(bounds)
        ]


class SliceSource(abc.ABC):
    """The slices of one split.

    Attributes:
        labels: Class indices [N], on the device.
        pixels: All slices, uint8 [N, 1, S, S] on the device; `DiskSlices` reads them.
    """

    labels: Tensor
    pixels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @abc.abstractmethod
    def to(self, device: torch.device) -> "SliceSource":
        """Return the same slices for another device."""

    @abc.abstractmethod
    def read(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield uint8 slices [B, 1, S, S] on the device for each batch of indices.

        Args:
            batches: Indices [B] into the slices, on the CPU.
        """

    def take(self, indices: Tensor) -> Tensor:
        """Return the slices at indices [B]: uint8 [B, 1, S, S] on the device."""
        return next(self.read([indices]))

    def count_steps(self, batch_size: int) -> int:
        """Return the number of batches per epoch."""
        return -(-len(self) // batch_size)

    def iterate(self, batch_size: int, part: int = 0, n_parts: int = 1) -> Iterator[Tensor]:
        """Yield every slice once in order, or one of `n_parts` sections: [B, 1, S, S]."""
        indices = torch.arange(len(self)).tensor_split(n_parts)[part]
        return self.read(indices.split(batch_size)) if len(indices) else iter(())

    def shuffle(
        self,
        batch_size: int,
        seed: int,
        epoch: int,
        part: int = 0,
        n_parts: int = 1,
        first: int = 0,
    ) -> Iterator[Batch]:
        """Yield every slice once, in the order given by seed and epoch.

        Batch sizes differ by one at most: a last batch of one slice would break batch norm and
        give that slice more weight.

        Args:
            batch_size: Largest global batch.
            seed: Seed of the run.
            epoch: Number of the epoch.
            part: Index of this process among `n_parts`; only its part of each batch is yielded.
            n_parts: Number of processes; the global batches do not depend on it.
            first: Batches to skip, when an epoch is resumed.
        """
        order = torch.randperm(len(self), generator=build_generator(seed, "order", epoch))
        steps = order.tensor_split(self.count_steps(batch_size))[first:]
        if not steps:
            return
        parts = [step.tensor_split(n_parts) for step in steps]
        own = [step_parts[part] for step_parts in parts]
        labels = self.labels[torch.cat(own).to(self.labels.device)]
        own_labels = labels.split([len(indices) for indices in own])
        for pixels, batch_labels, step_parts, step in zip(
            self.read(own), own_labels, parts, steps, strict=True
        ):
            yield Batch(pixels, batch_labels, sum(map(len, step_parts[:part])), len(step))


class MemorySlices(SliceSource):
    """Slices in the memory of the device.

    Args:
        pixels: uint8 [N, 1, S, S].
        labels: Class indices [N].
    """

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        self.pixels, self.labels = pixels, labels

    def to(self, device: torch.device) -> "MemorySlices":
        """Copy the slices to another device."""
        return MemorySlices(self.pixels.to(device), self.labels.to(device))

    def read(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield slices as `SliceSource.read`; all indices are copied to the device once."""
        indices = torch.cat(list(batches)).to(self.pixels.device)
        return (self.pixels[own] for own in indices.split([len(batch) for batch in batches]))


class DiskSlices(SliceSource):
    """Slices in an .npy file; a thread reads a few batches ahead.

    Rows are read, not memory-mapped, so that only the batches in use are in memory.

    Args:
        file: uint8 [rows, S, S]; only its path, offset and S are used.
        rows: Rows of the slices in the file, [N].
        labels: Class indices [N].
    """

    def __init__(self, file: np.memmap, rows: np.ndarray, labels: Tensor) -> None:
        self.file, self.rows, self.labels = file, rows, labels

    @property
    def pixels(self) -> Tensor:  # type: ignore[override]
        """All slices, uint8 [N, 1, S, S] on the device."""
        return self.take(torch.arange(len(self)))

    def to(self, device: torch.device) -> "DiskSlices":
        """Return the same file, read for another device."""
        return DiskSlices(self.file, self.rows, self.labels.to(device))

    def read(self, batches: Sequence[Tensor]) -> Generator[Tensor]:
        """Yield slices as `SliceSource.read`.

        Raises:
            UserError: The file is truncated.
        """
        device = self.labels.device
        pending: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(1) as reader:
            for indices in batches:
                pending.append(reader.submit(self._load, indices))
                if len(pending) > READ_AHEAD:
                    yield pending.popleft().result().to(device, non_blocking=True)
            while pending:
                yield pending.popleft().result().to(device, non_blocking=True)

    def _load(self, indices: Tensor) -> Tensor:
        path, size_px = Path(str(self.file.filename)), self.file.shape[-1]
        pixels = torch.empty(len(indices), 1, size_px, size_px, dtype=torch.uint8)
        with path.open("rb", buffering=0) as file:
            for target, row in zip(pixels.numpy(), self.rows[indices.numpy()], strict=True):
                file.seek(self.file.offset + int(row) * size_px**2)
                if file.readinto(target.data) != size_px**2:
                    raise UserError(f"{path}: truncated; delete it and run the command again")
        return pixels.pin_memory() if self.labels.is_cuda else pixels
