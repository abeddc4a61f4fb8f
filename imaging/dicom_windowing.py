"""The values of a DICOM frame as grey: rescaled, windowed, upright in brightness."""

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from imaging.grayscale import Pixels, scale_to_8_bit

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def convert_frame(
    values: npt.NDArray, data: "Dataset", kind: str, bits_stored: int, frame: int = 0
) -> Pixels:
    """Turn the values of one frame into grey.

    Rescaled as the file says, then clipped to its window, whose ends become 0 and 255; without a
    window scaled as any other picture. What an enhanced file says of a single frame goes before
    what it says of all. White is 255 in the end, whatever it was, and padding 0.

    Args:
        values: As stored, [H, W]; of colour RGB, [H, W, 3].
        data: The elements of the file.
        kind: Its photometric interpretation.
        bits_stored: Of a value.
        frame: Number of the frame, from 0.

    Returns:
        uint8 [H, W]
    """
    with np.errstate(all="ignore"):  # numbers of any size give some grey, and no warning
        if kind == "PALETTE COLOR":
            from pydicom.pixels import apply_color_lut

            values = apply_color_lut(values, data)
        if values.ndim == 3:
            return _compute_luma(values)
        if bits_stored == 1:
            pixels = np.where(values > 0, 255, 0).astype(np.uint8)
            return 255 - pixels if kind == "MONOCHROME1" else pixels
        padding = _find_padding(values, data)
        values = _rescale(values, data, frame)
        windowed = _apply_window(values, data, frame)
        if windowed is None and padding.any() and not padding.all():
            values = np.where(padding, values[~padding].min(), values)
        pixels = _scale_rescaled(values) if windowed is None else windowed
        if kind == "MONOCHROME1":
            pixels = 255 - pixels
        pixels[padding] = 0
        return pixels


def _scale_rescaled(values: npt.NDArray) -> Pixels:
    """As any picture; fractions, such as a small slope gives, are stretched from end to end."""
    if values.dtype.kind == "f" and np.isfinite(values).all():
        low, high = values.min(), values.max()
        if high > low and not np.array_equal(values, np.rint(values)):
            values = (values - low) / (high - low)
    return scale_to_8_bit(values)


def _compute_luma(colours: npt.NDArray) -> Pixels:
    if colours.dtype != np.uint8:
        colours = scale_to_8_bit(colours)
    return np.asarray(Image.fromarray(np.ascontiguousarray(colours[..., :3])).convert("L"))


def _find_padding(values: npt.NDArray, data: "Dataset") -> npt.NDArray[np.bool_]:
    """Where the file says that nothing was measured, bool [H, W].

    Padding may be written as a number without sign for pixels that have one, so it is taken modulo
    their range.
    """
    padding = _read_number(data, "PixelPaddingValue")
    if padding is None or values.dtype.kind not in "iu":
        return np.zeros(values.shape, dtype=bool)
    limit = _read_number(data, "PixelPaddingRangeLimit")
    ends = [padding, padding if limit is None else limit]
    low, high = sorted(int(np.int64(end).astype(values.dtype)) for end in ends)
    return (values >= low) & (values <= high)


def _rescale(values: npt.NDArray, data: "Dataset", frame: int) -> npt.NDArray:
    """The values in the unit of the scanner's maker; whole numbers where they stay whole."""
    if tables := data.get("ModalityLUTSequence"):
        return _look_up(values, tables[0], data)[0]
    said = _find_macro(data, "PixelValueTransformationSequence", frame)
    slope = _read_number(said, "RescaleSlope") or 1.0
    intercept = _read_number(said, "RescaleIntercept") or 0.0
    if (slope, intercept) == (1, 0):
        return values
    rescaled = values.astype(np.float64) * slope + intercept
    whole = values.dtype.kind in "iu" and slope.is_integer() and intercept.is_integer()
    return rescaled.astype(np.int64) if whole and np.abs(rescaled).max() < 2**53 else rescaled


def _apply_window(values: npt.NDArray, data: "Dataset", frame: int) -> Pixels | None:
    """Grey by the first table or window of the frame; None where there is none that can be used.

    Source: DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3.
    """
    said = _find_macro(data, "FrameVOILUTSequence", frame)
    if tables := said.get("VOILUTSequence"):
        found, most = _look_up(values, tables[0], data)
        return np.rint(np.clip(found / most, 0, 1) * 255).astype(np.uint8)
    centre, width = _read_number(said, "WindowCenter"), _read_number(said, "WindowWidth")
    function = said.get("VOILUTFunction") or "LINEAR"
    least = 0 if function in {"LINEAR_EXACT", "SIGMOID"} else 1
    if centre is None or width is None or width < least or width == 0:
        return None
    if function == "SIGMOID":
        share = 1 / (1 + np.exp(-4 * (values - centre) / width))
    elif function == "LINEAR_EXACT":
        share = (values - (centre - width / 2)) / width
    elif width == 1:
        share = np.where(values > centre - 0.5, 1.0, 0.0)
    else:
        share = (values - (centre - 0.5)) / (width - 1) + 0.5
    return np.rint(255 * np.clip(np.nan_to_num(share), 0, 1)).astype(np.uint8)


def _look_up(
    values: npt.NDArray, table: "Dataset", data: "Dataset"
) -> tuple[npt.NDArray[np.int64], int]:
    """What a table says for each value, and the most that its depth allows.

    Values under the table's first get its first entry, those over its last the last one.
    """
    n_entries, first, depth = (int(number) for number in table.LUTDescriptor)
    n_entries = n_entries % 2**16 or 2**16
    entries = table.LUTData
    if isinstance(entries, bytes):
        order = "<" if data.original_encoding[1] else ">"
        entries = np.frombuffer(entries, "u1" if len(entries) < 2 * n_entries else f"{order}u2")
    entries = np.atleast_1d(np.asarray(entries, dtype=np.int64))[:n_entries]
    places = np.clip(np.rint(values).astype(np.int64) - first, 0, len(entries) - 1)
    return entries[places], max(2**depth - 1, int(entries.max()))


def _find_macro(data: "Dataset", keyword: str, frame: int) -> "Dataset":
    """Where a file speaks of the frame: in the item of its own, the shared one, or at the top."""
    for groups, place in (
        ("PerFrameFunctionalGroupsSequence", frame),
        ("SharedFunctionalGroupsSequence", 0),
    ):
        items = data.get(groups) or ()
        if place < len(items) and (macro := items[place].get(keyword)):
            return macro[0]
    return data


def _read_number(data: "Dataset", keyword: str) -> float | None:
    """The first number of an element; None for none, or for one that is not finite."""
    value = data.get(keyword)
    if value is not None and not isinstance(value, str | int | float):
        value = value[0] if len(value) else None
    if value is None or value == "":
        return None
    number = float(value)
    return number if math.isfinite(number) else None
