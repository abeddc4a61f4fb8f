"""Read the slices of NIfTI volumes (.nii, .nii.gz) as a radiologist sees them.

nibabel is imported when the first volume is read. It reads the header; the voxels are a view of the
file's bytes. Error messages contain no text of the header, which may name the patient.
"""

import contextlib
import gzip
import io
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from imaging.bit_depth import choose_value_type
from imaging.grayscale import ImageError, ImageTooLargeError, check_size

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

Plane = Literal["auto", "axial", "coronal", "sagittal"]

NIFTI_START_BYTES = 2048  # needed by `is_nifti`: a compressed header may follow a long file name
MAX_SLICES = 10_000
MAX_VOLUME_BYTES = 2**28  # inflated: 512 x 512 x 512 values of 16 bits
MAX_LABELS = 16  # a volume of at most so many whole numbers is a segmentation
EMPTY_SHARE = 0.01  # of the pixels above the background, below which a slice is empty
_BACKGROUND = 0.05  # of the volume's range, above its minimum
_EQUAL_SIZES = 1.01  # ratio of two voxel sizes up to which they count as equal
_HEADER_BYTES = {348: 1, 540: 2}  # version of NIfTI by the size that the header states
_MAGIC = {1: (344, b"n+1\0", b"ni1\0"), 2: (4, b"n+2\0", b"ni2\0")}  # position, single, pair
_GZIP = b"\x1f\x8b"
_CHUNK = 2**20
# axis of RAS+ (right, anterior, superior) that a plane's slices lie along, by precedence
_AXES: dict[str, int] = {"axial": 2, "coronal": 1, "sagittal": 0}
# rows and columns of a slice, as axes of RAS+ and whether they are reversed: the superior or, in
# axial slices, the anterior side is up; the patient's right, or in sagittal ones the face, is left
_ROWS_COLUMNS = {
    "axial": ((1, True), (0, True)),
    "coronal": ((2, True), (0, True)),
    "sagittal": ((2, True), (1, True)),
}


@dataclass(frozen=True)
class Volume:
    """A 3-D volume whose slices are read one at a time.

    Attributes:
        plane: axial, coronal or sagittal.
        n_slices: Number of slices along the axis of the plane, empty ones included.
        spacing_mm: Height and width of a pixel. Pixels that are not square are kept as they are.
    """

    plane: str
    n_slices: int
    spacing_mm: tuple[float, float]
    _values: npt.NDArray  # stored [N, H, W], a view
    _scale: tuple[float, float]  # slope and intercept
    _dtype: np.dtype
    _background: float  # of stored values, after the scale

    def read_slices(self) -> Iterator[tuple[int, npt.NDArray]]:
        """Yield the slices that are not empty.

        Yields:
            Number of the slice, from 1 (inferior, posterior or left), and its values [H, W]: uint8,
            int16, uint16, int32 or float32.
        """
        for number in range(1, self.n_slices + 1):
            values = self._read(number - 1)
            if not self._is_empty(values):
                yield number, values

    def find_empty(self) -> list[int]:
        """Return the numbers of the slices that `read_slices` leaves out."""
        return [number + 1 for number in range(self.n_slices) if self._is_empty(self._read(number))]

    @property
    def is_label_volume(self) -> bool:
        """Whether the volume is a segmentation: at most MAX_LABELS values, all whole numbers."""
        labels: set[float] = set()
        for stored in self._values:
            found = np.unique(stored)
            labels |= set(found.tolist())
            if len(labels) > MAX_LABELS or not (found == np.rint(found)).all():
                return False
        return True

    def _read(self, index: int) -> npt.NDArray:
        return np.ascontiguousarray(_apply_scale(self._values[index], self._scale, self._dtype))

    def _is_empty(self, values: npt.NDArray) -> bool:
        """Return whether a slice is constant or nearly all background; NaN is background."""
        is_inside = values > self._background
        return is_inside.mean() < EMPTY_SHARE or values.min() == values.max()


def is_nifti(start: bytes) -> bool:
    """Return whether the first NIFTI_START_BYTES of a file are NIfTI or ANALYZE, also gzipped."""
    with contextlib.suppress(zlib.error):
        if start.startswith(_GZIP):
            start = zlib.decompressobj(31).decompress(start, NIFTI_START_BYTES)
        return _find_format(start) != ""
    return False


def _find_format(start: bytes) -> str:
    """Return `single` or `pair` for the two forms of NIfTI, `analyze`, or "" for other content."""
    for order in ("<", ">"):
        (size,) = struct.unpack_from(f"{order}i", start.ljust(4, b"\0"))
        if size not in _HEADER_BYTES or len(start) < 348:
            continue
        place, *magics = _MAGIC[_HEADER_BYTES[size]]
        found = start[place : place + 4]
        if found in magics:
            return ("single", "pair")[magics.index(found)]
        (n_dims,) = struct.unpack_from(f"{order}h", start, 40)
        if size == 348 and 1 <= n_dims <= 7:  # ANALYZE 7.5 has no signature
            return "analyze"
    return ""


def open_volume(source: Path | bytes, plane: Plane = "auto") -> Volume:
    """Read a volume; the slices are converted when they are asked for.

    Args:
        source: Path or content of a file of NIfTI-1 or NIfTI-2, single, gzipped or not.
        plane: Plane of the slices; `auto`: of the best resolution, that is, along the axis of the
            largest voxel size, or axial if several sizes are the largest.

    Raises:
        ImageError: Not NIfTI, a pair of .hdr and .img, truncated, damaged, of several volumes, of
            colour or complex values, too large, or without content.
    """
    try:
        # damaged sizes and scales overflow
        with _open_stream(source) as stream, np.errstate(all="ignore"):
            return _read_volume(stream, plane)
    except ImageError as error:
        raise type(error)(error.reason, source) from None
    except (EOFError, zlib.error) as error:
        reason = "truncated" if isinstance(error, EOFError) else "damaged (gzip)"
        raise ImageError(reason, source) from None
    except OSError as error:  # gzip.BadGzipFile has no errno
        reason = "damaged (gzip)" if error.errno is None else str(error.strerror)
        raise ImageError(reason, source) from None
    except Exception as error:  # noqa: BLE001  damaged headers raise exceptions of any type
        raise ImageError(f"damaged NIfTI ({type(error).__name__})", source) from None


@contextlib.contextmanager
def _open_stream(source: Path | bytes) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """Open a file, inflated as it is read if it is gzipped."""
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as stream:
        start = stream.read(2)
        stream.seek(0)
        if start == _GZIP:
            with gzip.GzipFile(fileobj=stream) as inflated:
                yield inflated
        else:
            yield stream


def _read_volume(stream: IO[bytes] | gzip.GzipFile, plane: Plane) -> Volume:
    import nibabel.nifti1
    import nibabel.nifti2
    from nibabel.affines import voxel_sizes
    from nibabel.orientations import apply_orientation, io_orientation

    start = stream.read(348)
    kind = _find_format(start)
    if kind in {"pair", "analyze"}:
        raise ImageError(
            "header of a pair of .hdr and .img; save both as one file: "
            "python -c \"import nibabel; nibabel.save(nibabel.load('NAME.hdr'), 'NAME.nii.gz')\""
        )
    if not kind:
        raise ImageError("not a NIfTI volume")
    is_second = start[4:7] == b"n+2"
    start += stream.read(540 - 348) if is_second else b""
    header_class = nibabel.nifti2.Nifti2Header if is_second else nibabel.nifti1.Nifti1Header
    header = header_class(start, check=False)  # the checks of nibabel log values of the header
    shape, dtype = _read_shape(header), _read_dtype(header)
    values = _read_values(stream, header, len(start), shape, dtype)
    affine = header.get_best_affine()
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ImageError("damaged NIfTI (its orientation is invalid)")
    orientation = io_orientation(affine)
    values = apply_orientation(values, orientation)  # as nibabel.as_closest_canonical, a view
    sizes_mm = voxel_sizes(affine)[np.argsort(orientation[:, 0])]
    chosen = _choose_plane(values.shape, sizes_mm) if plane == "auto" else plane
    return _build_volume(header, values, chosen, sizes_mm)


def _read_shape(header: "Nifti1Header") -> tuple[int, ...]:
    """Return width, height and depth in voxels; refuse volumes of more dimensions."""
    n_dims, *sizes = (int(size) for size in header["dim"])
    if not 2 <= n_dims <= 7 or min(sizes[:n_dims]) < 1:
        raise ImageError("damaged NIfTI (its dimensions are invalid)")
    shape, more = (*sizes[:n_dims], 1)[:3], sizes[3:n_dims]
    if (n_volumes := math.prod(more)) > 1:
        raise ImageError(
            f"{n_volumes} volumes in one file (such as diffusion or functional MRI); save the one "
            'to be used as a file: python -c "import nibabel; '
            "nibabel.save(nibabel.load('NAME.nii.gz').slicer[..., 0], 'NAME_0.nii.gz')\""
        )
    return shape


def _read_dtype(header: "Nifti1Header") -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except Exception:  # noqa: BLE001  nibabel raises its own error type for an unknown code
        raise ImageError("damaged NIfTI (unknown type of values)") from None
    if dtype.kind not in "iuf":
        what = "complex" if dtype.kind == "c" else "colour"
        raise ImageError(f"{what} values; save a volume of grey values (one number a voxel)")
    return dtype


def _read_values(
    stream: IO[bytes] | gzip.GzipFile,
    header: "Nifti1Header",
    n_read: int,
    shape: tuple[int, ...],
    dtype: np.dtype,
) -> npt.NDArray:
    """Read the voxels [X, Y, Z] as they are stored, up to the end of the file."""
    for sides in ((0, 1), (0, 2), (1, 2)):
        check_size(shape[sides[0]], shape[sides[1]])
    n_bytes, offset = math.prod(shape) * dtype.itemsize, float(header["vox_offset"])
    offset = max(int(offset) if math.isfinite(offset) else 0, n_read + 4)
    if offset + n_bytes > MAX_VOLUME_BYTES or max(shape) > MAX_SLICES:
        raise ImageTooLargeError(
            f"{' x '.join(map(str, shape))} voxels of {dtype.itemsize} bytes, over the limit of "
            f"{MAX_VOLUME_BYTES / 2**20:.0f} MiB or {MAX_SLICES:,} slices"
        )
    _read_exactly(stream, offset - n_read)
    content = _read_exactly(stream, n_bytes)
    n_more = 0
    while chunk := stream.read(_CHUNK):  # the checksum of gzip is at its end
        n_more += len(chunk)
        if n_more > MAX_VOLUME_BYTES:
            raise ImageTooLargeError(f"inflates to more than {MAX_VOLUME_BYTES / 2**20:.0f} MiB")
    return np.frombuffer(content, dtype).reshape(shape, order="F")


def _read_exactly(stream: IO[bytes] | gzip.GzipFile, n_bytes: int) -> bytearray:
    """Read bytes in chunks, so that memory follows what the file holds, not what it states."""
    content = bytearray()
    while len(content) < n_bytes:
        chunk = stream.read(min(_CHUNK, n_bytes - len(content)))
        if not chunk:
            raise ImageError("truncated")
        content += chunk
    return content


def _choose_plane(shape: tuple[int, ...], sizes_mm: npt.NDArray) -> str:
    """Return the plane of the best resolution; that of the slice if there is one slice only."""
    thin = [plane for plane, axis in _AXES.items() if shape[axis] == 1]
    if len(thin) == 1:
        return thin[0]
    return next(
        plane for plane, axis in _AXES.items() if sizes_mm[axis] * _EQUAL_SIZES >= sizes_mm.max()
    )


def _build_volume(
    header: "Nifti1Header", values: npt.NDArray, plane: str, sizes_mm: npt.NDArray
) -> Volume:
    (row_axis, rows_reversed), (column_axis, columns_reversed) = _ROWS_COLUMNS[plane]
    slices = values.transpose(_AXES[plane], row_axis, column_axis)
    slices = slices[:, :: -1 if rows_reversed else 1, :: -1 if columns_reversed else 1]
    scale = _read_scale(header)
    dtype = _choose_dtype(values, scale)
    thinned = values[tuple(slice(None, None, max(1, size // 64)) for size in values.shape)]
    sample = _apply_scale(thinned, scale, dtype)
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        raise ImageError("a volume without finite values")
    low, high = float(sample.min()), float(np.quantile(sample, 0.999))
    volume = Volume(
        plane,
        slices.shape[0],
        (float(sizes_mm[row_axis]), float(sizes_mm[column_axis])),
        slices,
        scale,
        dtype,
        low + _BACKGROUND * (high - low),
    )
    if next(volume.read_slices(), None) is None:
        raise ImageError("a volume without content: every slice is empty")
    return volume


def _read_scale(header: "Nifti1Header") -> tuple[float, float]:
    """Return slope and intercept; 1 and 0 if the header states none."""
    slope, intercept = (float(header[name]) for name in ("scl_slope", "scl_inter"))
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0
    return slope, intercept if math.isfinite(intercept) else 0.0


def _choose_dtype(values: npt.NDArray, scale: tuple[float, float]) -> np.dtype:
    """Return the type of the values after the scale, one for all slices of a volume.

    Whole numbers stay whole numbers if they fit into 32 bits.
    """
    if scale == (1.0, 0.0):
        return choose_value_type(values.dtype, values.min(), values.max())
    if values.dtype.kind == "f" or not all(part.is_integer() for part in scale):
        return np.dtype(np.float32)
    ends = [int(end) * int(scale[0]) + int(scale[1]) for end in (values.min(), values.max())]
    return choose_value_type(np.dtype(np.int64), min(ends), max(ends))


def _apply_scale(values: npt.NDArray, scale: tuple[float, float], dtype: np.dtype) -> npt.NDArray:
    with np.errstate(over="ignore", invalid="ignore"):  # too large for float32: infinite
        if scale != (1.0, 0.0):
            wide = np.int64 if dtype.kind in "iu" else np.float64
            values = values.astype(wide) * wide(scale[0]) + wide(scale[1])
        return values.astype(dtype, copy=False)
