"""List and read the variables of MATLAB files: version 5 to 7.2, and 7.3, which is HDF5.

Version 5 is parsed here: a parser of numbers, texts and structures is short, cannot run code, and
reads no more than a file holds, which cannot be said of a general loader. Error messages contain
names of variables, but no values.
"""

import contextlib
import io
import itertools
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from imaging.grayscale import ImageError, ImageTooLargeError

if TYPE_CHECKING:
    import h5py

MAX_INFLATED_BYTES = 2**27
MAX_VARIABLES = 1000
MAX_DEPTH = 4  # of structures in structures
_HEADER_BYTES = 128
_HDF5_FILTERS = {1, 2, 3}  # deflate, shuffle, checksum; others would be loaded from libraries
_STRUCT, _CHAR, _OPAQUE = 2, 4, 17
_MATRIX, _COMPRESSED, _UTF8 = 14, 15, 16
_NAMELESS = "(nameless)"  # such as the data of objects
_CLASSES = {  # of version 5: name, and type of its numbers
    **{6: ("double", "f8"), 7: ("single", "f4"), 8: ("int8", "i1"), 9: ("uint8", "u1")},
    **{10: ("int16", "i2"), 11: ("uint16", "u2"), 12: ("int32", "i4"), 13: ("uint32", "u4")},
    **{14: ("int64", "i8"), 15: ("uint64", "u8"), _CHAR: ("char", "u4")},
    **{1: ("cell", ""), _STRUCT: ("struct", ""), 3: ("object", ""), 5: ("sparse", "")},
    **{16: ("function_handle", ""), _OPAQUE: ("opaque", "")},
}
_STORED = {  # types of the data elements of version 5
    **{1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"},
    **{_UTF8: "u1", 17: "u2", 18: "u4"},  # UTF-8, UTF-16, UTF-32: code units
}
_COMPLEX, _LOGICAL = 0x0800, 0x0200  # flags of a matrix


@dataclass(frozen=True)
class Variable:
    """A variable of a MATLAB file, or a field of a structure.

    Attributes:
        kind: MATLAB's class, such as double, char or logical; `complex` for complex numbers.
        shape: As MATLAB shows it.
        read: Reads numbers, or the codes of a text, in that shape; None for other classes.
    """

    kind: str
    shape: tuple[int, ...]
    read: Callable[[], npt.NDArray] | None = field(default=None, repr=False, compare=False)


def is_matlab(start: bytes) -> bool:
    """Return whether the first 128 bytes of a file are a header of MATLAB from version 5 on."""
    return start.startswith(b"MATLAB ") and start[124:128] in {
        *(b"\0\1IM", b"\1\0MI", b"\0\2IM", b"\2\0MI"),
    }


@contextlib.contextmanager
def open_variables(source: Path | bytes) -> Iterator[dict[str, Variable]]:
    """List the variables of a file; fields of structures are named `structure.field`.

    The variables can be read within the context.

    Raises:
        ImageError: Not a MATLAB file, truncated, damaged, or larger than MAX_INFLATED_BYTES; every
            error in the body becomes one, too.
    """
    try:
        with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as stream:
            header = stream.read(_HEADER_BYTES)
            if not is_matlab(header):
                raise ImageError("not a MATLAB file of version 5 or later")
            if header[124:126] in {b"\0\2", b"\2\0"}:
                with _open_hdf5(stream) as root:
                    yield _collect(_walk_group(root, "", MAX_DEPTH))
            else:
                order = "<" if header[126:128] == b"IM" else ">"
                yield _collect(_walk_file(stream.read(MAX_INFLATED_BYTES + 1), order))
    except ImageError as error:
        raise type(error)(error.reason, source) from None
    except Exception as error:  # noqa: BLE001  damaged files raise exceptions of any type
        reason = error.strerror if isinstance(error, OSError) and error.errno else None
        raise ImageError(
            reason or f"damaged MATLAB file ({type(error).__name__})", source
        ) from None


def _collect(found: Iterator[tuple[str, Variable]]) -> dict[str, Variable]:
    variables = dict(itertools.islice(found, MAX_VARIABLES))
    if next(found, None) is not None:
        raise ImageError(f"more than {MAX_VARIABLES} variables")
    return variables


def _check_bytes(n_bytes: int) -> None:
    if n_bytes > MAX_INFLATED_BYTES:
        raise ImageTooLargeError(f"holds more than {MAX_INFLATED_BYTES / 2**20:.0f} MiB")


# ---- version 5


class _Elements:
    """Reads the data elements of a part of a file, each with its type, one after another."""

    def __init__(self, content: memoryview, order: str) -> None:
        self.content, self.order, self.position = content, order, 0

    def __bool__(self) -> bool:
        return self.position < len(self.content)

    def read(self) -> tuple[int, memoryview]:
        """Return type and content of the next element."""
        kind, n_bytes = self._unpack("II", self.position)
        start = self.position + 8
        if kind >> 16:  # up to 4 bytes beside the type
            kind, n_bytes, start = kind & 0xFFFF, kind >> 16, self.position + 4
            end = self.position + 8
        else:
            padding = 0 if kind == _COMPRESSED else -n_bytes % 8
            end = start + n_bytes + padding
        if start + n_bytes > len(self.content):
            raise ImageError("truncated")
        self.position = end
        return kind, self.content[start : start + n_bytes]

    def read_numbers(self) -> npt.NDArray:
        """Return the next element as numbers."""
        kind, content = self.read()
        return np.frombuffer(content, self.order + _STORED[kind])

    def _unpack(self, form: str, start: int) -> tuple[Any, ...]:
        if start + struct.calcsize(form) > len(self.content):
            raise ImageError("truncated")
        return struct.unpack_from(self.order + form, self.content, start)


def _walk_file(content: bytes, order: str) -> Iterator[tuple[str, Variable]]:
    """List the variables of version 5; compressed ones are inflated."""
    _check_bytes(len(content))
    elements, n_inflated = _Elements(memoryview(content), order), 0
    while elements:
        kind, part = elements.read()
        if kind == _COMPRESSED:
            inflater = zlib.decompressobj()
            try:
                inflated = inflater.decompress(part, MAX_INFLATED_BYTES - n_inflated + 1)
            except zlib.error:
                raise ImageError("damaged MATLAB file (compression)") from None
            n_inflated += len(inflated)
            _check_bytes(n_inflated)
            if not inflater.eof:
                raise ImageError("truncated")
            kind, part = _Elements(memoryview(inflated), order).read()
        if kind == _MATRIX:
            yield from _walk_matrix(part, order, "", MAX_DEPTH)


def _walk_matrix(
    content: memoryview, order: str, name: str, depth: int
) -> Iterator[tuple[str, Variable]]:
    """List a matrix and, if it is one structure, its fields."""
    if not content:
        yield name, Variable("double", (0, 0))  # an empty field
        return
    elements = _Elements(content, order)
    flags = int(elements.read_numbers()[0])
    number = flags & 0xFF
    kind, dtype = _CLASSES.get(number, ("unknown", ""))
    shape: tuple[int, ...] = ()
    if number != _OPAQUE:
        shape = tuple(int(size) for size in elements.read_numbers())
    stored_name = bytes(elements.read()[1]).decode("latin-1")
    name = name or stored_name or _NAMELESS
    if number == _STRUCT and math.prod(shape) == 1 and depth:
        for key in _read_field_names(elements):
            field_kind, part = elements.read()
            if field_kind != _MATRIX:
                raise ImageError("damaged MATLAB file (a field of a structure is no matrix)")
            yield from _walk_matrix(part, order, f"{name}.{key}", depth - 1)
        return
    if flags & _COMPLEX or not dtype:
        yield name, Variable("complex" if dtype else kind, shape)
        return
    kind = "logical" if flags & _LOGICAL else kind
    yield name, Variable(kind, shape, lambda: _read_matrix(elements, shape, dtype))


def _read_field_names(elements: _Elements) -> list[str]:
    length = int(elements.read_numbers()[0])
    names = bytes(elements.read()[1])
    if length < 1 or len(names) // length > MAX_VARIABLES:
        raise ImageError(f"damaged MATLAB file, or a structure of more than {MAX_VARIABLES} fields")
    starts = range(0, len(names) - length + 1, length)
    return [names[start : start + length].split(b"\0")[0].decode("latin-1") for start in starts]


def _read_matrix(elements: _Elements, shape: tuple[int, ...], dtype: str) -> npt.NDArray:
    position = elements.position
    kind, content = elements.read()
    elements.position = position  # a variable can be read again
    if kind == _UTF8:
        numbers = np.frombuffer(bytes(content).decode().encode("utf-32-le"), "<u4")
    else:
        numbers = np.frombuffer(content, elements.order + _STORED[kind])
    _check_bytes(numbers.size * np.dtype(dtype).itemsize)
    return numbers.astype(dtype).reshape(shape, order="F")


# ---- version 7.3, which stores arrays transposed


@contextlib.contextmanager
def _open_hdf5(stream: IO[bytes]) -> Iterator["h5py.File"]:
    import h5py

    stream.seek(0)
    with h5py.File(stream, "r") as root:
        yield root


def _walk_group(group: "h5py.Group", prefix: str, depth: int) -> Iterator[tuple[str, Variable]]:
    import h5py

    for key in group:
        name = f"{prefix}{key}"
        if key in {"#refs#", "#subsystem#"} or not isinstance(
            group.get(key, getlink=True),
            h5py.HardLink,  # others lead to other files
        ):
            continue
        item = group[key]
        stated = item.attrs.get("MATLAB_class", b"")
        kind = stated.decode("latin-1") if isinstance(stated, bytes) else str(stated)
        if isinstance(item, h5py.Group):
            if depth and kind in {"struct", ""}:
                yield from _walk_group(item, f"{name}.", depth - 1)
            else:
                yield name, Variable(kind or "struct", ())
        elif isinstance(item, h5py.Dataset):
            yield name, _describe_dataset(item, kind)


def _describe_dataset(item: "h5py.Dataset", kind: str) -> Variable:
    shape = tuple(int(size) for size in (item.shape or ())[::-1])
    kind = kind or {"f": "double", "i": "int", "u": "uint"}.get(item.dtype.kind, "unknown")
    if "MATLAB_empty" in item.attrs:
        return Variable(kind, (0, 0))
    if item.dtype.kind not in "iufb" or kind in {"cell", "opaque", "function_handle"}:
        is_complex = item.dtype.names == ("real", "imag")
        return Variable("complex" if is_complex else kind, shape)
    return Variable(kind, shape, lambda: _read_dataset(item))


def _read_dataset(item: "h5py.Dataset") -> npt.NDArray:
    plan = item.id.get_create_plist()
    filters = {plan.get_filter(number)[0] for number in range(plan.get_nfilters())}
    if item.external or item.is_virtual or not filters <= _HDF5_FILTERS:
        raise ImageError("stored in other files or by another compression than MATLAB's")
    for n_values in (item.size, math.prod(item.chunks or (1,))):
        _check_bytes(n_values * item.dtype.itemsize)
    values = np.asarray(item[()])
    return (values.astype(np.uint8) if values.dtype.kind == "b" else values).T
