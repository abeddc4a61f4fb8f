"""Convert the stored values of a DICOM frame to grey: rescale, window, invert, mask padding."""

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from imaging.bit_depth import Range, ValueScaler, find_stored_range
from imaging.dicom_pixels import PixelFormat
from imaging.grayscale import Pixels

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def convert_frame(
    values: npt.NDArray,
    data: "Dataset",
    pixel_format: PixelFormat,
    frame: int,
    scaler: ValueScaler,
) -> Pixels:
    """Convert the values of one frame to grey.

    Values are rescaled, then clipped to the first window or VOI LUT, whose ends become 0 and 255.
    Without one, the stored values are scaled by their declared range (`find_stored_range`), or as
    in other formats without one. In the output, black is 0 for both photometric interpretations;
    padding is 0 and does not affect the scale. Colour becomes luma. Values for a single frame of
    an enhanced file override those for all frames.

    Args:
        values: Stored values [H, W]; for colour, RGB [H, W, 3].
        data: Elements of the file before the pixels.
        pixel_format: Description of the pixels.
        frame: Index of the frame.
        scaler: Scales values without a window.

    Returns:
        uint8 [H, W]
    """
    photometric = pixel_format.photometric
    declared = find_stored_range(pixel_format.bits_stored, pixel_format.signed)
    with np.errstate(all="ignore"):  # extreme values must not cause warnings
        if photometric == "PALETTE COLOR":
            from pydicom.pixels import apply_color_lut

            values = apply_color_lut(values, data)
            declared = 0, np.iinfo(values.dtype).max
        if values.ndim == 3:
            colours = values if values.dtype == np.uint8 else scaler.scale(values, declared)
            image = Image.fromarray(np.ascontiguousarray(colours[..., :3]))
            return np.asarray(image.convert("L"))
        if pixel_format.bits_stored == 1:
            pixels = np.where(values > 0, 255, 0).astype(np.uint8)
            return 255 - pixels if photometric == "MONOCHROME1" else pixels
        padding = _find_padding(values, data)
        windowed = _apply_window(_rescale(values, data, frame), data, frame)
        if windowed is None:
            if padding.any() and not padding.all():
                values = np.where(padding, values[~padding].min(), values)
            pixels = _scale_unwindowed(values, data, frame, declared, scaler)
        else:
            pixels = windowed
        if photometric == "MONOCHROME1":
            pixels = 255 - pixels
        pixels[padding] = 0
        return pixels


def _scale_unwindowed(
    values: npt.NDArray,
    data: "Dataset",
    frame: int,
    declared: Range | None,
    scaler: ValueScaler,
) -> Pixels:
    """Scale by the range of the modality LUT, else by that of the stored values.

    A rescale maps the range like the values, so that only its direction matters.
    """
    if tables := data.get("ModalityLUTSequence"):
        output, maximum = _apply_lut(values, tables[0], data)
        return scaler.scale(output, (0, maximum))
    declared = None if values.dtype.kind == "f" else declared
    return scaler.scale(values, declared, inverted=_read_slope(data, frame)[0] < 0)


def _find_padding(values: npt.NDArray, data: "Dataset") -> npt.NDArray[np.bool_]:
    """Return the mask of padding, bool [H, W].

    The padding value of signed pixels may be stored unsigned, so it wraps around to their range.
    """
    padding = _read_number(data, "PixelPaddingValue")
    if padding is None or values.dtype.kind not in "iu":
        return np.zeros(values.shape, dtype=bool)
    limit = _read_number(data, "PixelPaddingRangeLimit")
    ends = [padding, padding if limit is None else limit]
    low, high = sorted(int(np.int64(end).astype(values.dtype)) for end in ends)
    return (values >= low) & (values <= high)


def _rescale(values: npt.NDArray, data: "Dataset", frame: int) -> npt.NDArray:
    """Apply the modality LUT or rescale slope and intercept; integers stay integers if possible."""
    if tables := data.get("ModalityLUTSequence"):
        return _apply_lut(values, tables[0], data)[0]
    slope, intercept = _read_slope(data, frame)
    if (slope, intercept) == (1, 0):
        return values
    rescaled = values.astype(np.float64) * slope + intercept
    is_integer = values.dtype.kind in "iu" and slope.is_integer() and intercept.is_integer()
    return rescaled.astype(np.int64) if is_integer and np.abs(rescaled).max() < 2**53 else rescaled


def _read_slope(data: "Dataset", frame: int) -> tuple[float, float]:
    """Return rescale slope and intercept of a frame, 1 and 0 by default."""
    macro = find_macro(data, "PixelValueTransformationSequence", frame)
    slope = _read_number(macro, "RescaleSlope") or 1.0
    return slope, _read_number(macro, "RescaleIntercept") or 0.0


def _apply_window(values: npt.NDArray, data: "Dataset", frame: int) -> Pixels | None:
    """Apply the first VOI LUT or window of the frame; None without a valid one.

    Source: DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3.
    """
    macro = find_macro(data, "FrameVOILUTSequence", frame)
    if tables := macro.get("VOILUTSequence"):
        output, maximum = _apply_lut(values, tables[0], data)
        return np.rint(np.clip(output / maximum, 0, 1) * 255).astype(np.uint8)
    centre, width = _read_number(macro, "WindowCenter"), _read_number(macro, "WindowWidth")
    function = macro.get("VOILUTFunction") or "LINEAR"
    min_width = 0 if function in {"LINEAR_EXACT", "SIGMOID"} else 1
    if centre is None or width is None or width < min_width or width == 0:
        return None
    if function == "SIGMOID":
        scaled = 1 / (1 + np.exp(-4 * (values - centre) / width))
    elif function == "LINEAR_EXACT":
        scaled = (values - (centre - width / 2)) / width
    elif width == 1:
        scaled = np.where(values > centre - 0.5, 1.0, 0.0)
    else:
        scaled = (values - (centre - 0.5)) / (width - 1) + 0.5
    return np.rint(255 * np.clip(np.nan_to_num(scaled), 0, 1)).astype(np.uint8)


def _apply_lut(
    values: npt.NDArray, table: "Dataset", data: "Dataset"
) -> tuple[npt.NDArray[np.int64], int]:
    """Return the LUT output for each value, and the largest output of its bit depth.

    Values below the first mapped value give the first entry, values above the last one the last.
    """
    n_entries, first, depth = (int(number) for number in table.LUTDescriptor)
    n_entries = n_entries % 2**16 or 2**16
    entries = table.LUTData
    if isinstance(entries, bytes):
        order = "<" if data.original_encoding[1] else ">"
        entries = np.frombuffer(entries, "u1" if len(entries) < 2 * n_entries else f"{order}u2")
    entries = np.atleast_1d(np.asarray(entries, dtype=np.int64))[:n_entries]
    indices = np.clip(np.rint(values).astype(np.int64) - first, 0, len(entries) - 1)
    return entries[indices], max(2**depth - 1, int(entries.max()))


def find_macro(data: "Dataset", keyword: str, frame: int) -> "Dataset":
    """Return the functional group macro of the frame, else the shared one, else the file itself."""
    for groups, index in (
        ("PerFrameFunctionalGroupsSequence", frame),
        ("SharedFunctionalGroupsSequence", 0),
    ):
        items = data.get(groups) or ()
        if index < len(items) and (macro := items[index].get(keyword)):
            return macro[0]
    return data


def _read_number(data: "Dataset", keyword: str) -> float | None:
    """Return the first number of an element; None if it is missing or not finite."""
    value = data.get(keyword)
    if value is not None and not isinstance(value, str | int | float):
        value = value[0] if len(value) else None
    if value is None or value == "":
        return None
    number = float(value)
    return number if math.isfinite(number) else None
