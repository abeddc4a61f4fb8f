"""One interface for files of slices: kinds, counts, what a file states, and segmentations."""

import gzip
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from imaging.bit_depth import choose_value_type
from imaging.dicom import hash_patient
from imaging.grayscale import ImageError
from imaging.nifti import Plane
from imaging.volumes import (
    VOLUME_START_BYTES,
    VolumeOptions,
    count_slices,
    find_volume_kind,
    read_slices,
    read_stated,
)
from tests.imaging.test_nifti import NOISE, build_head, encode
from tests.support.mat_files import build_cheng, encode_v5, encode_v73

VALUES = np.arange(600, dtype=np.uint16).reshape(20, 30)


@pytest.mark.parametrize(
    ("plane", "shape", "n_empty"),
    [("axial", (24, 20), 8), ("coronal", (28, 20), 8), ("sagittal", (28, 24), 8)],
)
def test_volumes_are_counted_as_they_are_read(
    plane: Plane, shape: tuple[int, int], n_empty: int
) -> None:
    head = build_head()
    head += (head > 0) * np.random.default_rng(0).integers(0, 99, head.shape, dtype=np.int16)
    content, options = gzip.compress(encode(head)), VolumeOptions(plane)
    assert find_volume_kind(content[:VOLUME_START_BYTES]) == "NIfTI"
    slices = list(read_slices(content, "NIfTI", options))
    assert {each.values.shape for each in slices} == {shape}
    assert [each.number for each in slices] == list(range(5, 5 + len(slices)))
    assert count_slices(content, "NIfTI", options) == (len(slices), n_empty)
    assert read_stated(content, "NIfTI") == ("", "", "")


@pytest.mark.parametrize("values", [NOISE % 3, (NOISE % 5).astype(np.float32), NOISE * 0 + 7])
def test_segmentations_are_no_images(values: npt.NDArray) -> None:
    with pytest.raises(ImageError, match=r"segmentation|without content"):
        count_slices(encode(values), "NIfTI")


@pytest.mark.parametrize("encode_mat", [encode_v5, encode_v73])
def test_matlab_files_state_class_patient_and_outline(
    encode_mat: Callable[[dict[str, Any]], bytes],
) -> None:
    content = encode_mat(build_cheng(VALUES, 3, "100"))
    assert find_volume_kind(content[:VOLUME_START_BYTES]) == "MATLAB"
    assert count_slices(content, "MATLAB") == (1, 0)
    (only,) = read_slices(content, "MATLAB")
    assert np.array_equal(only.values, VALUES)
    stated = read_stated(content, "MATLAB")
    assert stated.label == "pituitary"
    assert stated.patient == hash_patient("100")
    assert stated.outline.count(",") == 4


@pytest.mark.parametrize(
    ("stored", "ends", "expected"),
    [
        *(("uint8", (0, 9), "uint8"), ("int16", (0, 9), "int16"), ("uint16", (0, 9), "uint16")),
        *(("int8", (-9, 9), "int16"), ("uint32", (0, 60_000), "uint16")),
        *(("int64", (-1, 60_000), "int32"), ("uint64", (0, 2**40), "float32")),
        *(("float64", (0, 1), "float32"), (">i2", (0, 9), "int16")),
    ],
)
def test_types_of_values(stored: str, ends: tuple[int, int], expected: str) -> None:
    assert choose_value_type(np.dtype(stored), *ends) == np.dtype(expected)
