"""Build DICOM files whose patient data must not appear in any output."""

import io
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    MRImageStorage,
    RLELossless,
)

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
# parts of the secrets, and of values that tests write instead, in lower case
HIDDEN = ("hidden", "person", "4711", "^471", "19470501", "20190203")
BUNDLED = Path(pydicom.__file__).parent / "data"  # files in the package


def build_dataset(
    values: np.ndarray, photometric: str = "MONOCHROME2", n_frames: int = 1, **elements: Any
) -> Dataset:
    """Return a data set of [H, W], [H, W, 3] or [frames, H, W] with SECRETS."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = MRImageStorage
    bits = 8 * values.dtype.itemsize
    is_colour = values.shape[-1] == 3 and photometric[:3] in {"RGB", "YBR"}
    data.Rows, data.Columns = values.shape[-3:-1] if is_colour else values.shape[-2:]
    data.SamplesPerPixel = 3 if is_colour else 1
    data.PlanarConfiguration = 0
    if n_frames > 1:
        data.NumberOfFrames = n_frames
    data.PhotometricInterpretation = photometric
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    data.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2)
    data["PixelData"].VR = "OB" if bits == 8 else "OW"
    for keyword, value in (SECRETS | elements).items():
        setattr(data, keyword, value)
    return data


def encode_dataset(data: Dataset, syntax: str = "") -> bytes:
    """Encode the data set, with another transfer syntax if given."""
    if syntax == RLELossless:
        data.compress(RLELossless, encoding_plugin="pydicom")
    elif syntax:
        data.file_meta.TransferSyntaxUID = UID(syntax)
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def encode_dicom(
    values: np.ndarray, photometric: str = "MONOCHROME2", syntax: str = "", **elements: Any
) -> bytes:
    return encode_dataset(build_dataset(values, photometric, **elements), syntax)


def encode_jpeg_dicom(values: np.ndarray, bits: int, predictor: int = 0, **elements: Any) -> bytes:
    """Encode [H, W] as lossless JPEG with this predictor, or as 12-bit JPEG without one."""
    unsigned = np.asarray(values & (2**bits - 1), "u2" if bits > 8 else "u1")
    options: dict[str, Any] = {"lossless": True, "predictor": predictor} if predictor else {}
    codestream = bytes(imagecodecs.jpeg8_encode(unsigned, 98, bitspersample=bits, **options))
    data = build_dataset(values, **elements)
    data.BitsStored, data.HighBit = bits, bits - 1
    lossless = JPEGLosslessSV1 if predictor == 1 else JPEGLossless
    data.file_meta.TransferSyntaxUID = lossless if predictor else JPEGExtended12Bit
    data.PixelData = encapsulate([codestream])
    return encode_dataset(data)


def wrap_item(**elements: Any) -> list[Dataset]:
    """Return a sequence of one item."""
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return [item]
