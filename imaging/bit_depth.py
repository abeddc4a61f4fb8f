"""Scale values of more than 8 bits: by the range that a file declares, else by one of a data set.

A range is the value that becomes black and the one that becomes white. Scanners store 10 to 12 bits
in 16-bit files, often without stating it: scaled by 65,535 they would be black. A scale that
follows the maximum of each slice would give one tissue another grey in each.
"""

import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from imaging.grayscale import Pixels, scale_to_8_bit

Range = Sequence[float]  # the smallest and the largest value
Ranges = Mapping[str, Range]  # of `integers` and of `floats`, as far as known; plain values
BIT_DEPTHS = (8, 10, 12, 14, 16)
KINDS = ("integers", "floats")
_TIFF_BITS, _TIFF_MAXIMUM = 258, 281
_PNG_HEADER = struct.Struct(">I4s")


class ValueScaler:
    """Scales the values of one file to 8 bits.

    Args:
        ranges: Recorded ranges for files that declare none; without one of their kind, values are
            scaled by their own.

    Attributes:
        extremes: Smallest and largest values without a declared range, by kind.
        is_guessed: Whether values had neither a declared nor a recorded range.
        is_clipped: Whether values were outside the recorded range.
    """

    def __init__(self, ranges: Ranges | None = None) -> None:
        self._ranges = ranges or {}
        self.extremes: dict[str, Range] = {}
        self.is_guessed = self.is_clipped = False

    @property
    def note(self) -> str:
        """What a reader of the prediction should know; "" for most files."""
        if self.is_guessed:
            return "no declared bit depth and none recorded in training: scaled by its own maximum"
        if self.is_clipped:
            return "values outside the range of the training images are clipped"
        return ""

    def scale(
        self, values: npt.NDArray, declared: Range | None = None, *, inverted: bool = False
    ) -> Pixels:
        """Scale values of any numeric type and shape to 8 bits.

        Args:
            values: The values.
            declared: Their range, if the file declares one; else another range is used.
            inverted: The smallest value is white.
        """
        if values.dtype.kind == "f":
            values = _replace_non_finite(values)
        pixels = scale_to_8_bit(values, *(declared or self._choose_range(values)))
        return 255 - pixels if inverted else pixels

    def _choose_range(self, values: npt.NDArray) -> Range:
        """Return the recorded range for values without a declared one, else their own."""
        low, high = values.min().item(), values.max().item()
        kind = "floats" if values.dtype.kind == "f" else "integers"
        self.extremes = merge_extremes([self.extremes, {kind: (low, high)}])
        recorded = self._ranges.get(kind)
        if recorded is None:
            self.is_guessed = True
            return find_range(kind, low, high)
        self.is_clipped |= low < recorded[0] or high > recorded[1]
        return recorded


def merge_extremes(extremes: Iterable[Ranges]) -> dict[str, Range]:
    """Return the smallest and the largest value of each kind."""
    merged: dict[str, Range] = {}
    for ranges in extremes:
        for kind, (low, high) in ranges.items():
            known = merged.get(kind, (low, high))
            merged[kind] = (min(low, known[0]), max(high, known[1]))
    return merged


def find_ranges(extremes: Ranges) -> dict[str, list[float]]:
    """Return the ranges of data with these smallest and largest values, as plain values."""
    return {kind: list(find_range(kind, *extremes[kind])) for kind in KINDS if kind in extremes}


def find_range(kind: str, low: float, high: float) -> Range:
    """Return the range of data without a declared one.

    Integers have the smallest usual bit depth that holds them, from 0 or from a negative minimum.
    Floats in 0..1 have that range, others their own.
    """
    if kind == "floats":
        return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    low = min(low, 0)
    n_bits = int(high - low).bit_length()
    depth = next((depth for depth in BIT_DEPTHS if n_bits <= depth), n_bits)
    return low, low + 2**depth - 1


def choose_value_type(dtype: np.dtype, low: float, high: float) -> np.dtype:
    """Return the type in which values of `dtype` from `low` to `high` are stored as pictures.

    uint8, int16 and uint16 are kept. Others become int16, uint16 or int32, never uint8, which would
    exclude them from the common scale; floats and larger whole numbers become float32.
    """
    if (dtype.kind, dtype.itemsize) in {("u", 1), ("u", 2), ("i", 2)}:
        return dtype.newbyteorder("=")
    limits = [np.iinfo(kind) for kind in (np.int16, np.uint16, np.int32) if dtype.kind in "iu"]
    fitting = (limit.dtype for limit in limits if limit.min <= low and high <= limit.max)
    return next(fitting, np.dtype(np.float32))


def is_ranges(value: Any) -> bool:
    """Return whether a value read from a file has the form of `find_ranges`."""
    return isinstance(value, dict) and all(
        kind in KINDS
        and isinstance(ends, list)
        and [type(end) in {int, float} and math.isfinite(end) for end in ends] == [True, True]
        and ends[0] <= ends[1]
        for kind, ends in value.items()
    )


# ---- what a file declares


def find_stored_range(bits_stored: int, is_signed: bool) -> Range | None:
    """Return the range of DICOM integers by BitsStored.

    None for 16 bits and more, which many scanners write for 12; and for signed ones, whose smallest
    value is black in some files, and 0 in others.
    """
    return None if is_signed or bits_stored >= 16 else (0, 2 ** max(8, bits_stored) - 1)


def find_tiff_range(tags: Mapping[int, Any]) -> Range | None:
    """Return the range of a TIFF of 9 to 15 bits, or by a MaxSampleValue of such a bit depth.

    Another MaxSampleValue is the maximum of this slice alone.
    """
    bits = max(np.ravel(tags.get(_TIFF_BITS, 16)))
    maximum = max(np.ravel(tags.get(_TIFF_MAXIMUM, 0)))
    declared = 2 ** int(bits) - 1 if 8 < bits < 16 else int(maximum)
    n_bits = declared.bit_length()
    return (0, declared) if 8 <= n_bits < 16 and declared == 2**n_bits - 1 else None


def find_png_range(stream: IO[bytes], values: npt.NDArray) -> Range | None:
    """Return the range of a 16-bit grey PNG by its sBIT chunk, the number of significant bits.

    The standard scales such values up to 16 bits, so that their lower bits are zero or repeat the
    upper ones. Some programs store them as they are.
    """
    n_bits = _read_significant_bits(stream)
    if not 8 <= n_bits < 16:
        return None
    is_scaled = values.max() >= 2**n_bits or not (values & (2 ** (16 - n_bits) - 1)).any()
    return (0, 65535) if is_scaled else (0, 2**n_bits - 1)


def find_pnm_range(stream: IO[bytes]) -> Range | None:
    """Return the range of a PNM of more than 8 bits; None if its maximum is that of 16 bits.

    Pillow scales values with a smaller maximum up to 16 bits.
    """
    stream.seek(0)
    header = re.sub(rb"#[^\n]*", b"", stream.read(4096)).split(maxsplit=4)
    return None if header[3:4] in ([b"65535"], []) else (0, 65535)


def _read_significant_bits(stream: IO[bytes]) -> int:
    """Return the first byte of the sBIT chunk, which stands before the pixels; 0 without one."""
    stream.seek(8)
    while len(start := stream.read(8)) == 8:
        n_bytes, name = _PNG_HEADER.unpack(start)
        if name == b"IDAT":
            break
        content = stream.read(n_bytes + 4)  # with its checksum
        if name == b"sBIT" and n_bytes:
            return content[0]
    return 0


def _replace_non_finite(values: npt.NDArray) -> npt.NDArray:
    """Replace NaN and infinities by the smallest finite value, or by 0."""
    finite = np.isfinite(values)
    if finite.all():
        return values
    return np.where(finite, values, values[finite].min() if finite.any() else 0.0)
