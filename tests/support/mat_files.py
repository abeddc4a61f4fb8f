"""MATLAB files made for tests: version 5 by scipy, version 7.3 by h5py with MATLAB's header."""

import io
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from scipy.io import savemat

HDF5_HEADER = (b"MATLAB 7.3 MAT-file, Platform: PCWIN64".ljust(116) + bytes(8) + b"\0\2IM").ljust(
    512, b"\0"
)


def encode_v5(variables: dict[str, Any], compressed: bool = True) -> bytes:
    """Return a file of version 5; nested dicts become structures."""
    stream = io.BytesIO()
    savemat(stream, variables, do_compression=compressed)
    return stream.getvalue()


def encode_v73(variables: dict[str, Any]) -> bytes:
    """Return a file of version 7.3; nested dicts become structures, arrays are transposed."""
    stream = io.BytesIO()
    with h5py.File(stream, "w", userblock_size=512) as root:
        _write(root, variables)
    return HDF5_HEADER + stream.getvalue()[512:]


def _write(group: h5py.Group, variables: dict[str, Any]) -> None:
    for name, value in variables.items():
        if isinstance(value, dict):
            child = group.create_group(name)
            child.attrs["MATLAB_class"] = np.bytes_("struct")
            _write(child, value)
        elif isinstance(value, str):
            codes = np.array([[ord(letter)] for letter in value], np.uint16)
            dataset = group.create_dataset(name, data=codes)
            dataset.attrs["MATLAB_class"] = np.bytes_("char")
        else:
            array = np.atleast_2d(value)
            stored = array.astype(np.uint8) if array.dtype == bool else array
            chunks = {"chunks": True, "compression": "gzip"} if array.size > 50 else {}
            dataset = group.create_dataset(name, data=stored.T, **chunks)
            kind = {"bool": "logical", "float64": "double", "float32": "single"}
            dataset.attrs["MATLAB_class"] = np.bytes_(kind.get(array.dtype.name, array.dtype.name))


def build_cheng(
    values: npt.NDArray, label: float = 2.0, patient: Any = "MR040243b", swapped: bool = False
) -> dict[str, Any]:
    """Return the variables of a file of Cheng et al. with a tumour in columns 12-22, rows 4-9."""
    mask = np.zeros(values.shape, bool)
    mask[4:10, 12:23] = True
    corners = np.array([[12, 4], [22, 4], [22, 9], [12, 9]], float) + 1
    border = (corners[:, ::-1] if swapped else corners).reshape(-1, 1)
    return {
        "cjdata": {
            "PID": patient,
            "image": values,
            "label": np.float64(label),
            "tumorBorder": border,
            "tumorMask": mask,
        }
    }
