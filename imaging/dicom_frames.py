"""Split a DICOM file of several frames into files of one frame."""

import copy
import hashlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy.typing as npt

from imaging.dicom import open_dicom
from imaging.dicom_pixels import PixelFormat, decode_frames
from imaging.dicom_windowing import find_macro

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# functional groups that change the grey of a frame, and their elements
_GROUPS = {
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
}
_FUNCTIONAL_GROUPS = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")


def split_frames(content: bytes) -> Iterator[bytes]:
    """Return each frame of a DICOM file as an uncompressed file; both are read as the same grey.

    The elements before the pixels are kept, so that patient, study and series are, too; a file
    without study and series gives its frames one series. Functional groups of a frame become
    elements of its file.

    Raises:
        ImageError: As `dicom.read_dicom_frames`; valid frames before the error are yielded.
    """
    with open_dicom(content) as (stream, data, pixel_format, finder):
        if not data.get("StudyInstanceUID") and not data.get("SeriesInstanceUID"):
            number = int.from_bytes(hashlib.sha256(content).digest()[:16])
            data.SeriesInstanceUID = f"2.25.{number}"
        bare = copy.deepcopy(data)  # once: the groups of all frames are large
        for keyword in (*_FUNCTIONAL_GROUPS, "NumberOfFrames", "FrameIncrementPointer"):
            _set_element(bare, keyword, None)
        for frame, values in enumerate(decode_frames(stream, data, pixel_format, finder)):
            yield _build_file(values, data, bare, pixel_format, frame)


def _build_file(
    values: npt.NDArray, data: "Dataset", bare: "Dataset", pixel_format: PixelFormat, frame: int
) -> bytes:
    """Return the file of one frame: `bare` is the data set without what concerns all frames."""
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

    single = copy.deepcopy(bare)
    for sequence, keywords in _GROUPS.items():
        macro = find_macro(data, sequence, frame)
        if macro is not data:
            for keyword in keywords:
                _set_element(single, keyword, macro)
    is_little = data.original_encoding[1] is not False
    single.BitsAllocated = 8 * values.dtype.itemsize
    if values.ndim == 3:  # decoded to RGB
        single.PhotometricInterpretation, single.PlanarConfiguration = "RGB", 0
    dtype = values.dtype.newbyteorder("<") if is_little else values.dtype.newbyteorder(">")
    pixels = values.astype(dtype).tobytes()
    keyword = {("f", 4): "FloatPixelData", ("f", 8): "DoubleFloatPixelData"}.get(
        (values.dtype.kind, values.dtype.itemsize), "PixelData"
    )
    setattr(single, keyword, pixels + b"\0" * (len(pixels) % 2))
    if keyword == "PixelData":
        single["PixelData"].VR = "OB" if values.dtype.itemsize == 1 else "OW"
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
    single.file_meta = meta
    file = io.BytesIO()
    pydicom.dcmwrite(
        file, single, implicit_vr=False, little_endian=is_little, enforce_file_format=False
    )
    return file.getvalue()


def _set_element(data: "Dataset", keyword: str, macro: "Dataset | None") -> None:
    """Replace an element by that of a macro, or delete it."""
    if keyword in data:
        delattr(data, keyword)
    if macro is not None and keyword in macro:
        data[keyword] = copy.deepcopy(macro[keyword])
