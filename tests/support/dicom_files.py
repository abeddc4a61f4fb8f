"""DICOM files made in the tests, of a patient whom no output may name."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

SECRETS = {
    "PatientName": "Hidden^Person",
    "PatientID": "hidden-4711",
    "PatientBirthDate": "19470501",
    "IssuerOfPatientID": "Hidden Clinic",
    "StudyDate": "20190203",
    "StudyInstanceUID": "1.2.826.0.1.4711.1",
    "SeriesInstanceUID": "1.2.826.0.1.4711.2",
    "SOPInstanceUID": "1.2.826.0.1.4711.3",
    "InstitutionName": "Hidden Hospital",
}
# parts of them and of what tests put in their place, in lower case
HIDDEN = ("hidden", "person", "4711", "^471", "19470501", "20190203")
BUNDLED = Path(pydicom.__file__).parent / "data"  # what lies in the package; nothing is fetched


def build_dataset(
    values: np.ndarray, kind: str = "MONOCHROME2", n_frames: int = 1, **elements: Any
) -> Dataset:
    """A data set of these values, [H, W], [H, W, 3] or [frames, H, W], and SECRETS."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = MRImageStorage
    bits = 8 * values.dtype.itemsize
    in_colour = values.shape[-1] == 3 and kind[:3] in {"RGB", "YBR"}
    data.Rows, data.Columns = values.shape[-3:-1] if in_colour else values.shape[-2:]
    data.SamplesPerPixel = 3 if in_colour else 1
    if in_colour:
        data.PlanarConfiguration = 0
    if n_frames > 1:
        data.NumberOfFrames = n_frames
    data.PhotometricInterpretation = kind
    data.BitsAllocated = data.BitsStored = bits
    data.HighBit = bits - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    data.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2)
    data["PixelData"].VR = "OB" if bits == 8 else "OW"
    for keyword, value in (SECRETS | elements).items():
        setattr(data, keyword, value)
    return data


def encode_dataset(data: Dataset) -> bytes:
    """The data set as the bytes of a file."""
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def encode_dicom(values: np.ndarray, kind: str = "MONOCHROME2", **elements: Any) -> bytes:
    """The bytes of a file of one frame."""
    return encode_dataset(build_dataset(values, kind, **elements))


def wrap_item(**elements: Any) -> list[Dataset]:
    """A sequence of one item."""
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return [item]
