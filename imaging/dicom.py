"""Read DICOM frames as grey uint8, and header values without patient data.

pydicom is imported when the first DICOM file is read. Patient data never reach the output: error
messages contain no text of the file; warnings and log lines of pydicom repeat values and are off.
"""

import contextlib
import functools
import hashlib
import importlib
import io
import logging
import os
import re
import unicodedata
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from imaging.bit_depth import ValueScaler
from imaging.dicom_pixels import UNDEFINED_LENGTH, PixelDataFinder, PixelFormat, decode_frames
from imaging.dicom_windowing import convert_frame
from imaging.grayscale import ImageError, ImageTooLargeError, Pixels, check_size

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MAX_FRAMES = 10_000
MAX_FRAME_PIXELS = 6_000_000  # JPEG 2000 is decoded at about 6 million a second
MAX_INFLATED_BYTES = 2**27  # each core may hold two copies
DIGEST_DIGITS = 16
_SALT = b"brain-cancer-mri-classification"  # fixed, so that pseudonyms agree between archives
_SAMPLES_PER_PIXEL = {  # by PhotometricInterpretation
    **{"MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1},
    **{"RGB": 3, "YBR_FULL": 3, "YBR_FULL_422": 3, "YBR_ICT": 3, "YBR_RCT": 3},
}
# what programs write instead of a PatientID, without case and punctuation
_PLACEHOLDERS = re.compile(
    r"0*|x{2,}|(pat(ient)?)?(id|name|no|nr)?|(no|without)(pat(ient)?)?(id|name)|n[ao]n?|none|nil|null"
    r"|(an[oó]n[yi]m(ous|i[sz]ed|i[sz]é|isiert|o|e|a)?|anon|匿名)(pat(ient)?)?(id|name)?"
    r"|de?identi(fied|fiziert)|de?id|unknown(pat(ient)?)?(id|name)?|not(available|applicable|set)"
    r"|unbekannt|inconnu|desconocido|removed|deleted|redacted|withheld|hidden|private|dummy|default"
    r"|blank|empty|undefined|unspecified|subject|id"
)
_BITS_ALLOCATED = {1, 8, 16, 32, 64}
# modules in which warnings about a file are raised; pydicom attributes some to its caller
_WARNING_MODULES = r"pydicom|imagecodecs|pylibjpeg|openjpeg|imaging\.dicom"
# the transfer syntax element of a deflated file, and the syntax of its inflated content
_DEFLATED_SYNTAX = re.compile(rb"(\x02\0\x10\0UI..)1\.2\.840\.10008\.1\.2\.1\.99", re.DOTALL)
_EXPLICIT_SYNTAX = rb"\g<1>1.2.840.10008.1.2.1" + bytes(3)


@dataclass(frozen=True)
class DicomHeader:
    """Header values that are free of patient data.

    Attributes:
        mode: Photometric interpretation and bit depth, such as `MONOCHROME2 16-bit`.
        series: Pseudonym of the series, "" without SeriesInstanceUID.
        study: Pseudonym of the study, "" without StudyInstanceUID.
    """

    n_frames: int
    width: int
    height: int
    mode: str
    series: str
    study: str


def read_header(source: Path | bytes) -> DicomHeader:
    """Read the elements before the pixel data.

    Raises:
        ImageError: As `read_dicom_frames`, for errors that the header reveals.
    """
    with open_dicom(source) as (_, data, pixel_format, _):
        return DicomHeader(
            n_frames=pixel_format.n_frames,
            width=pixel_format.width,
            height=pixel_format.height,
            mode=f"{pixel_format.photometric} {pixel_format.bits}-bit",
            series=_hash_uid(data, "SeriesInstanceUID"),
            study=_hash_uid(data, "StudyInstanceUID"),
        )


def _hash_uid(data: "Dataset", keyword: str) -> str:
    """Return the pseudonym of a UID, "" if it is missing."""
    uid = _read_text(data, keyword).encode(errors="backslashreplace")
    return hashlib.sha256(uid).hexdigest()[:DIGEST_DIGITS] if uid else ""


def read_dicom_patient(source: Path | bytes) -> str:
    """Return the pseudonym of the patient, "" without PatientID or with a placeholder for it.

    Raises:
        ImageError: As `read_dicom_frames`, for errors that the header reveals.
    """
    with open_dicom(source) as (_, data, _, _):
        patient, issuer = (_read_text(data, key) for key in ("PatientID", "IssuerOfPatientID"))
    return "" if is_placeholder(patient) else hash_patient(patient, issuer)


def is_placeholder(patient: str) -> bool:
    """Return whether a PatientID is what programs write to hide it, such as ANONYMOUS or 0."""
    plain = re.sub(r"[\W_]", "", unicodedata.normalize("NFKC", patient)).casefold()
    return _PLACEHOLDERS.fullmatch(plain) is not None


@functools.lru_cache(maxsize=4096)
def hash_patient(patient: str, issuer: str = "") -> str:
    """Return the pseudonym of a patient ID at its issuer, "" for no ID.

    This is pseudonymization, not anonymization: patient IDs are short, so all of them can be
    tried. scrypt makes each trial cost 4 MiB and some milliseconds. The salt is fixed, so a
    patient has the same pseudonym in all archives.
    """
    if not patient:
        return ""
    text = f"{issuer}\0{patient}".encode(errors="backslashreplace")
    digest = hashlib.scrypt(text, salt=_SALT, n=2**12, r=8, p=1, dklen=DIGEST_DIGITS // 2)
    return f"p{digest.hex()}"


def read_dicom_frames(
    source: Path | bytes, scaler: ValueScaler, single: bool = False
) -> Iterator[Pixels]:
    """Read the frames of a DICOM file as grey, one at a time; see `convert_frame`.

    Yields:
        uint8 [H, W]

    Raises:
        ImageError: No pixel data, truncated, damaged, an unsupported transfer syntax, a frame over
            MAX_FRAME_PIXELS, more than MAX_FRAMES or, if `single`, more than one frame. The
            reason contains no text of the file.
    """
    with open_dicom(source) as (stream, data, pixel_format, finder):
        if single and pixel_format.n_frames > 1:
            raise ImageError(
                f"{pixel_format.n_frames} frames instead of one; save each as a separate file"
            )
        for frame, values in enumerate(decode_frames(stream, data, pixel_format, finder)):
            yield convert_frame(values, data, pixel_format, frame, scaler)


# At import, because filters set in one thread can be reset by another.
warnings.filterwarnings("ignore", module=_WARNING_MODULES)


@functools.cache
def _load_pydicom() -> None:
    """Import pydicom and switch off its log lines and those of its decoders."""
    pydicom = importlib.import_module("pydicom")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    for name in ("pydicom", "pylibjpeg", "openjpeg"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


@contextlib.contextmanager
def open_dicom(
    source: Path | bytes,
) -> Iterator[tuple[BinaryIO, "Dataset", PixelFormat, PixelDataFinder]]:
    """Parse a file up to its pixel data; every error, also in the body, becomes an ImageError."""
    try:
        _load_pydicom()
        from pydicom.filereader import read_partial

        with _open_stream(source) as stream:
            finder = PixelDataFinder(stream)
            data = read_partial(stream, finder, force=True)
            _check_pixel_data(stream, finder)
            yield stream, data, _read_pixel_format(data), finder
    except ImageError as error:
        raise type(error)(error.reason, source) from None
    except Exception as error:  # noqa: BLE001  damaged files raise exceptions of any type
        # `from None`: messages of pydicom repeat values of the file
        reason = error.strerror if isinstance(error, OSError) and error.errno is not None else None
        raise ImageError(reason or f"damaged DICOM ({type(error).__name__})", source) from None


@contextlib.contextmanager
def _open_stream(source: Path | bytes) -> Iterator[BinaryIO]:
    """Open a file, and inflate it if the transfer syntax is deflated."""
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as stream:
        start = stream.read(2**16)
        if _DEFLATED_SYNTAX.search(start):
            yield io.BytesIO(_inflate(start + stream.read()))
        else:
            stream.seek(0)
            yield stream


def _inflate(content: bytes) -> bytes:
    """Inflate a deflated DICOM file to MAX_INFLATED_BYTES at most; pydicom has no such limit."""
    if content[128:140] != b"DICM\2\0\0\0UL\4\0":
        raise ImageError("damaged DICOM (FileMetaInformationGroupLength is missing)")
    end = 144 + int.from_bytes(content[140:144], "little")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(content[end:], MAX_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise ImageTooLargeError(f"inflates to more than {MAX_INFLATED_BYTES / 2**20:.0f} MiB")
    if not inflater.eof:
        raise ImageError("truncated")
    return _DEFLATED_SYNTAX.sub(_EXPLICIT_SYNTAX, content[:end]) + inflated


def _check_pixel_data(stream: BinaryIO, finder: PixelDataFinder) -> None:
    """Raise an ImageError if parsing ended before any pixel data."""
    if finder.is_directory:
        raise ImageError("a DICOMDIR index; give the files that it lists instead")
    if finder.keyword:
        return
    n_bytes = stream.seek(0, os.SEEK_END)
    if finder.length == UNDEFINED_LENGTH:
        stream.seek(-min(8, n_bytes), os.SEEK_END)
        is_cut = stream.read(4) not in {b"\xfe\xff\xdd\xe0", b"\xff\xfe\xe0\xdd"}
    else:
        is_cut = finder.start + finder.length != n_bytes
    if is_cut:
        raise ImageError("truncated")
    raise ImageError("a DICOM file without pixel data (such as a report or a plan)")


def _read_pixel_format(data: "Dataset") -> PixelFormat:
    """Read the description of the pixels; raise an ImageError if it is invalid or too large."""
    n_frames = _read_int(data, "NumberOfFrames", 1) or 1
    if n_frames > MAX_FRAMES:
        raise ImageError(f"NumberOfFrames is over {MAX_FRAMES:,}")
    width, height = _read_int(data, "Columns"), _read_int(data, "Rows")
    check_size(width, height, MAX_FRAME_PIXELS)
    samples, bits = _read_int(data, "SamplesPerPixel", 1), _read_int(data, "BitsAllocated")
    photometric = _read_text(data, "PhotometricInterpretation")
    if photometric not in _SAMPLES_PER_PIXEL:
        raise ImageError("damaged DICOM (PhotometricInterpretation is missing or unknown)")
    if samples != _SAMPLES_PER_PIXEL[photometric] or bits not in _BITS_ALLOCATED or n_frames < 1:
        raise ImageError("damaged DICOM (the description of its pixels is invalid)")
    bits_stored = _read_int(data, "BitsStored", bits)
    signed = bool(_read_int(data, "PixelRepresentation", 0))
    return PixelFormat(n_frames, width, height, photometric, samples, bits, bits_stored, signed)


def _read_int(data: "Dataset", keyword: str, default: int | None = None) -> int:
    value = data.get(keyword)
    value = default if value is None or value == "" else value
    if value is None:
        raise ImageError(f"damaged DICOM ({keyword} is missing)")
    return int(value)


def _read_text(data: "Dataset", keyword: str) -> str:
    return str(data.get(keyword) or "").strip(" \0")
