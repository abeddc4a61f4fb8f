"""Tables of equal arrays in a temporary file, for data sets that do not fit into memory."""

import contextlib
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from helper import UserError


class RowFile:
    """Arrays of one shape and type in a temporary file, which is deleted when it is not used.

    The file is in the usual folder for temporary files, which TMPDIR can change. Threads may share
    the object.
    """

    def __init__(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        """Create an empty file of arrays of this shape and type.

        Raises:
            UserError: There is no folder for temporary files, here; or it is full, on `append`.
        """
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._n_bytes = int(np.prod(shape)) * self.dtype.itemsize
        with _name_folder():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the object)
        self._lock = threading.Lock()
        self._n_rows = 0

    def append(self, array: npt.NDArray) -> int:
        """Write an array at the end and return its place."""
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(f"{array.dtype} {array.shape} is not {self.dtype} {self.shape}")
        with self._lock, _name_folder():
            place = self._n_rows
            self._file.seek(place * self._n_bytes)
            self._file.write(array.tobytes())
            self._n_rows += 1
        return place

    def read(self, place: int) -> npt.NDArray:
        """Return the array at a place."""
        with self._lock:
            self._file.seek(place * self._n_bytes)
            content = self._file.read(self._n_bytes)
        return np.frombuffer(content, self.dtype).reshape(self.shape)


@contextlib.contextmanager
def _name_folder() -> Iterator[None]:
    """Say which folder a temporary file could not be written to, and what to do."""
    try:
        yield
    except OSError as error:
        folder = f" in {tempfile.tempdir}" if tempfile.tempdir else ""
        raise UserError(
            f"temporary files{folder}: {error.strerror or error}; free space there, or name "
            "another folder by the environment variable TMPDIR (Windows: TEMP)"
        ) from error


class StoredRow(NamedTuple):
    """One array of a file."""

    file: RowFile
    place: int

    def read(self) -> npt.NDArray:
        """Return the array."""
        return self.file.read(self.place)


@dataclass(frozen=True)
class StoredRows:
    """A table [N, ...] whose rows are in a file, in any order; only rows that are read use memory.

    Attributes:
        file: Holds the rows, and possibly others.
        places: Place of each row in the file, int64 [N].
    """

    file: RowFile
    places: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Return N."""
        return len(self.places)

    def __getitem__(self, row: int) -> npt.NDArray:
        """Read one row."""
        return self.file.read(int(self.places[row]))

    def take(self, rows: npt.NDArray[np.intp]) -> "StoredRows":
        """Return some rows, in that order, without copying them."""
        return StoredRows(self.file, self.places[rows])

    def join(self, other: "StoredRows") -> "StoredRows":
        """Return the rows of both; those of `other` are copied into the file of this table."""
        added = [self.file.append(other[row]) for row in range(len(other))]
        return StoredRows(self.file, np.append(self.places, np.array(added, np.int64)))


class StoredMapping(Mapping[str, npt.NDArray]):
    """Arrays by name that are read when they are asked for."""

    def __init__(self, rows: Mapping[str, StoredRow]) -> None:
        """Take the rows by name."""
        self._rows = dict(rows)

    def __getitem__(self, name: str) -> npt.NDArray:
        """Read an array."""
        return self._rows[name].read()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._rows)

    def __len__(self) -> int:
        """Return the number of arrays."""
        return len(self._rows)
