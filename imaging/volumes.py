"""Files of slices as arrays: NIfTI volumes and MATLAB files, behind one interface."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy.typing as npt

from imaging.grayscale import ImageError
from imaging.mat_files import is_matlab
from imaging.matlab import MatFields, parse_fields, read_mat
from imaging.nifti import MAX_LABELS, NIFTI_START_BYTES, Plane, Volume, is_nifti, open_volume

VolumeKind = Literal["NIfTI", "MATLAB"]

VOLUME_START_BYTES = NIFTI_START_BYTES  # needed by `find_volume_kind`
VOLUME_SUFFIXES: dict[VolumeKind, str] = {"NIfTI": ".nii .nii.gz", "MATLAB": ".mat"}


@dataclass(frozen=True)
class VolumeOptions:
    """How files of slices are read.

    Attributes:
        plane: Plane of the slices of NIfTI volumes.
        fields: Variables of MATLAB files; None: those of Cheng et al.
    """

    plane: Plane = "auto"
    fields: MatFields | None = None


class Slice(NamedTuple):
    """A slice: its number in the file, from 1, and its values [H, W] of up to 32 bits."""

    number: int
    values: npt.NDArray


class SliceCount(NamedTuple):
    """Number of slices that are read, and of empty ones that are left out."""

    n_slices: int
    n_empty: int = 0


class Stated(NamedTuple):
    """What a file states of its image: class, pseudonym and outline; "" for unknown.

    Attributes:
        outline: x,y pairs in px from 0, separated by blanks.
    """

    label: str = ""
    patient: str = ""
    outline: str = ""


def build_options(plane: str, named: str | None) -> VolumeOptions:
    """Return the options of `--axis` and `--mat-fields`; raises as `parse_fields`."""
    return VolumeOptions(cast(Plane, plane), parse_fields(named) if named is not None else None)


def find_volume_kind(start: bytes) -> VolumeKind | None:
    """Return the kind of a file by its first VOLUME_START_BYTES; None for others."""
    if is_matlab(start):
        return "MATLAB"
    return "NIfTI" if is_nifti(start) else None


def read_slices(
    source: Path | bytes, kind: VolumeKind, options: VolumeOptions | None = None
) -> Iterator[Slice]:
    """Read the slices of a file, one at a time; empty ones are left out.

    Raises:
        ImageError: As `open_volume` and `read_mat`, or a segmentation instead of an image.
    """
    options = options or VolumeOptions()
    if kind == "MATLAB":
        yield Slice(1, read_mat(source, options.fields).values)
    else:
        yield from map(Slice._make, _open_image_volume(source, options).read_slices())


def count_slices(
    source: Path | bytes, kind: VolumeKind, options: VolumeOptions | None = None
) -> SliceCount:
    """Count the slices that `read_slices` yields; raises as it does."""
    options = options or VolumeOptions()
    if kind == "MATLAB":
        read_mat(source, options.fields)
        return SliceCount(1)
    volume = _open_image_volume(source, options)
    n_empty = len(volume.find_empty())
    return SliceCount(volume.n_slices - n_empty, n_empty)


def read_stated(
    source: Path | bytes, kind: VolumeKind, options: VolumeOptions | None = None
) -> Stated:
    """Read what a file states of its image; NIfTI files state nothing. Raises as `read_slices`."""
    if kind == "NIfTI":
        return Stated()
    image = read_mat(source, (options or VolumeOptions()).fields)
    return Stated(image.label, image.patient, image.outline)


def _open_image_volume(source: Path | bytes, options: VolumeOptions) -> Volume:
    volume = open_volume(source, options.plane)
    if volume.is_label_volume:
        raise ImageError(
            f"a segmentation (at most {MAX_LABELS} different whole numbers), and no image", source
        )
    return volume
