"""Decoded slices in batches on the training device, held in memory or read from disk."""

import abc
import copy
import itertools
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from helper import UserError, build_generator

READ_AHEAD = 4  # batches read from disk before they are needed


@dataclass(frozen=True)
class Batch:
    """The slices of one training step, or a part of them.

    Attributes:
        pixels: uint8 [B, 1, S, S].
        labels: Class indices [B].
        targets: Class probabilities [B, K] instead of the labels, or None.
        offset: Position of the first slice in the global batch.
        global_size: Slices in the global batch, over all parts and processes.
    """

    pixels: Tensor
    labels: Tensor
    offset: int
    global_size: int
    targets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def loss_weight(self) -> float:
        """Fraction of the global batch, 0 to 1."""
        return len(self) / self.global_size

    def split(self, max_size: int, n_processes: int = 1) -> "list[Batch]":
        """Split into nearly equal parts of two or more slices, at most `max_size` if possible.

        Batch norm needs two slices; only a batch of one slice gives a part of one slice. All
        processes split their parts of the global batch into the same number of parts.

        Args:
            max_size: Largest part.
            n_processes: Processes that share the global batch.
        """
        smallest, largest = self.global_size // n_processes, -(-self.global_size // n_processes)
        n_parts = max(1, min(-(-largest // max_size), smallest // 2))
        bounds = [len(self) * part // n_parts for part in range(n_parts + 1)]
        targets = self.targets
        return [
            Batch(
                *(self.pixels[i:j], self.labels[i:j], self.offset + i, self.global_size),
                None if targets is None else targets[i:j],
            )
            for i, j in itertools.pairwise(bounds)
        ]


class SliceSource(abc.ABC):
    """The slices of one split.

    Attributes:
        labels: Class indices [N], on the device of the batches.
        pixels: All slices, uint8 [N, 1, S, S]; `DiskSlices` reads them.
        brightness: Brightness statistics [N, 7] of the slices, see `imaging.brightness`; None if
            they are not needed.
        targets: Class probabilities [N, K] to train on instead of the labels, on their device; None
            for the labels.
    """

    labels: Tensor
    targets: Tensor | None = None
    pixels: Tensor
    brightness: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Device of the batches."""
        return self.labels.device

    @abc.abstractmethod
    def read(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield uint8 slices [B, 1, S, S] on the device for each batch of indices.

        Args:
            batches: Indices [B] into the slices, on the CPU.
        """

    def take(self, indices: Tensor) -> Tensor:
        """Return the slices at indices [B]: uint8 [B, 1, S, S] on the device."""
        return next(self.read([indices]))

    def compute_batch_size(self, batch_size: int) -> int:
        """Return the size of every batch: `batch_size`, or N if there are fewer slices."""
        return min(batch_size, len(self))

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
        """Yield the batches of an epoch, in the order given by seed and epoch.

        All batches have the same size, so that compiled code and the choice of algorithms are made
        for one shape. The last batch is filled with the first slices of the same order, so every
        slice is used once, and fewer than `batch_size` slices are used twice.

        Args:
            batch_size: Largest global batch.
            seed: Seed of the run.
            epoch: Number of the epoch.
            part: Index of this process among `n_parts`; only its part of each batch is yielded.
            n_parts: Number of processes; the global batches do not depend on it.
            first: Batches to skip, when an epoch is resumed.
        """
        size = self.compute_batch_size(batch_size)
        order = torch.randperm(len(self), generator=build_generator(seed, "order", epoch))
        n_missing = self.count_steps(batch_size) * size - len(order)
        steps = torch.cat([order, order[:n_missing]]).view(-1, size)[first:]  # [steps, B]
        if not len(steps):
            return
        parts = steps.tensor_split(n_parts, dim=1)
        own, offset = parts[part], sum(each.shape[1] for each in parts[:part])
        on_device = own.to(self.device)
        labels = self.labels[on_device]
        targets = [None] * len(own) if self.targets is None else self.targets[on_device]
        for pixels, batch_labels, probs in zip(
            self.read(own.unbind()), labels, targets, strict=True
        ):
            yield Batch(pixels, batch_labels, offset, size, probs)


class MemorySlices(SliceSource):
    """Slices in memory: on the device of the batches, or on the host if they do not fit there.

    Args:
        pixels: uint8 [N, 1, S, S], on the device or on the CPU.
        labels: Class indices [N], on the device.
        brightness: See `SliceSource`.
    """

    def __init__(
        self, pixels: Tensor, labels: Tensor, brightness: NDArray[np.float64] | None = None
    ) -> None:
        self.pixels, self.labels, self.brightness = pixels, labels, brightness

    @property
    def is_on_device(self) -> bool:
        """True if no batch has to be copied from the host."""
        return self.pixels.device == self.device

    def to(self, device: torch.device) -> "MemorySlices":
        """Copy the slices to a device."""
        return MemorySlices(self.pixels.to(device), self.labels.to(device), self.brightness)

    def keep_on_host(self, device: torch.device) -> "MemorySlices":
        """Keep the slices in the memory of the host and copy each batch to the device."""
        return MemorySlices(self.pixels.cpu(), self.labels.to(device), self.brightness)

    def move_to_host(self) -> None:
        """Free the memory of the device; batches that are read from now on come from the host."""
        self.pixels = self.pixels.cpu()

    def read(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield slices as `SliceSource.read`; all indices are copied to the device once."""
        on_host = torch.cat(list(batches))
        on_device = on_host.to(self.device)
        bounds = itertools.accumulate((len(batch) for batch in batches), initial=0)
        for start, end in itertools.pairwise(bounds):
            if self.is_on_device:
                yield self.pixels[on_device[start:end]]
            else:
                yield copy_async(self.pixels[on_host[start:end]], self.device)


class DiskSlices(SliceSource):
    """Slices in an .npy file; a thread reads a few batches ahead.

    Rows are read, not memory-mapped, so that only the batches in use are in memory and the file is
    open only while it is read.

    Args:
        file: uint8 [rows, S, S]; only its path, offset and S are used.
        rows: Rows of the slices in the file, [N].
        labels: Class indices [N].
        brightness: See `SliceSource`.
    """

    def __init__(
        self,
        file: np.memmap,
        rows: NDArray[np.integer[Any]],
        labels: Tensor,
        brightness: NDArray[np.float64] | None = None,
    ) -> None:
        self.path, self.size_px, self._start = Path(str(file.filename)), file.shape[-1], file.offset
        self.rows, self.labels, self.brightness = rows, labels, brightness

    @property
    def pixels(self) -> Tensor:  # type: ignore[override]
        """All slices, uint8 [N, 1, S, S] on the device."""
        return self.take(torch.arange(len(self)))

    def to(self, device: torch.device) -> "DiskSlices":
        """Read the same file for another device."""
        other = copy.copy(self)
        other.labels = self.labels.to(device)
        return other

    def read(self, batches: Sequence[Tensor]) -> Generator[Tensor]:
        """Yield slices as `SliceSource.read`.

        Raises:
            UserError: The file is truncated.
        """
        pending: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(1) as reader:
            for indices in batches:
                pending.append(reader.submit(self._load, indices))
                if len(pending) > READ_AHEAD:
                    yield copy_async(pending.popleft().result(), self.device)
            while pending:
                yield copy_async(pending.popleft().result(), self.device)

    def _load(self, indices: Tensor) -> Tensor:
        n_bytes = self.size_px**2
        pixels = torch.empty(len(indices), 1, self.size_px, self.size_px, dtype=torch.uint8)
        with self.path.open("rb", buffering=0) as file:
            for target, row in zip(pixels.numpy(), self.rows[indices.numpy()], strict=True):
                file.seek(self._start + int(row) * n_bytes)
                if file.readinto(target.data) != n_bytes:
                    raise UserError(f"{self.path}: truncated; delete it and run the command again")
        return pixels


def copy_async(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device; neither the host nor a CUDA device waits for the other."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
