"""DICOM: every frame as grey, and what the header says without saying who the patient is.

pydicom is imported when the first DICOM is met. What a file says of a patient stays in it: errors
are in words of our own, and pydicom's warnings and log lines, which repeat values, are silenced.
"""

import contextlib
import functools
import hashlib
import importlib
import io
import logging
import os
import re
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from imaging.dicom_pixels import UNDEFINED_LENGTH, Layout, PixelFinder, decode_frames
from imaging.dicom_windowing import convert_frame
from imaging.grayscale import ImageError, ImageTooLargeError, Pixels, check_size

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

START_BYTES = 132  # what `is_dicom` and `has_preamble` want to see
MAX_FRAMES = 10_000
MAX_FRAME_PIXELS = 6_000_000  # the decoder of JPEG-LS manages some 4 million a second
MAX_INFLATED_BYTES = 2**27  # every core may hold two copies
DIGEST_DIGITS = 16
_SALT = b"brain-cancer-mri-classification"  # fixed: one patient is one group in every archive
_KINDS = {  # numbers a pixel
    **{"MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1},
    **{"RGB": 3, "YBR_FULL": 3, "YBR_FULL_422": 3, "YBR_ICT": 3, "YBR_RCT": 3},
}
# modules that pydicom's warnings name as theirs, which may be those that call it
_WARNERS = r"pydicom|pylibjpeg|libjpeg|openjpeg|imaging\.(dicom|decoding|window)"
_BITS = {1, 8, 16, 32, 64}
_FIRST_VRS = {b"UL", b"CS", b"UI", b"DA", b"TM", b"LO", b"SH", b"OB"}
# the element that names the transfer syntax, where that is deflate
_DEFLATED = re.compile(rb"(\x02\0\x10\0UI..)1\.2\.840\.10008\.1\.2\.1\.99", re.DOTALL)
_PLAIN = rb"\g<1>1.2.840.10008.1.2.1" + bytes(3)


@dataclass(frozen=True)
class DicomHeader:
    """What may be known of a DICOM file.

    `mode` is how it stores its pixels, such as `MONOCHROME2 16-bit`. `series` is a pseudonym, ""
    where the file names none.
    """

    n_frames: int
    width: int
    height: int
    mode: str
    series: str


def has_preamble(start: bytes) -> bool:
    """Whether a file of this beginning (START_BYTES) is DICOM by its mark at byte 128."""
    return start[128:132] == b"DICM"


def is_dicom(start: bytes) -> bool:
    """Whether a file of this beginning (START_BYTES) is DICOM, with or without the preamble.

    Old files have none and begin with a data element of group 2 or 8. Two elements must fit where
    their kind is not written out, so that nothing else is taken for one.
    """
    if has_preamble(start):
        return True
    if start[:3] == b"\0\x08\0" or (start[:2] in {b"\2\0", b"\x08\0"} and start[3:4] == b"\0"):
        if start[4:6] in _FIRST_VRS:
            return True
        length = int.from_bytes(start[4:8], "little")
        following = start[8 + length : 12 + length]
        return following[:2] == start[:2] and following[2:3] > start[2:3]
    return False


def read_header(source: Path | bytes) -> DicomHeader:
    """Read a DICOM file up to its pixels.

    Raises:
        ImageError: As `read_dicom_frames`, as far as the header tells.
    """
    with _open_dicom(source) as (_, data, layout, _):
        return DicomHeader(
            n_frames=layout.n_frames,
            width=layout.width,
            height=layout.height,
            mode=f"{layout.kind} {layout.bits}-bit",
            series=_hash_series(_read_text(data, "SeriesInstanceUID")),
        )


def read_dicom_patient(source: Path | bytes) -> str:
    """The pseudonym of the patient whom a DICOM file names; "" for none.

    Raises:
        ImageError: As `read_dicom_frames`, as far as the header tells.
    """
    with _open_dicom(source) as (_, data, _, _):
        patient, issuer = (_read_text(data, key) for key in ("PatientID", "IssuerOfPatientID"))
    return hash_patient(patient, issuer)


@functools.lru_cache(maxsize=4096)
def hash_patient(patient: str, issuer: str = "") -> str:
    """The pseudonym of a patient's number at an issuer; "" for no number.

    A patient's number is short, and whoever has the plain hash of one tries all numbers in
    seconds. This one takes 4 MiB and some milliseconds a guess, which makes trying them dear but
    not impossible: it is a pseudonym, and nobody is made anonymous by it. The salt is fixed, so
    that a patient has one pseudonym in all archives and can be followed through them.
    """
    if not patient:
        return ""
    text = f"{issuer}\0{patient}".encode(errors="backslashreplace")
    digest = hashlib.scrypt(text, salt=_SALT, n=2**12, r=8, p=1, dklen=DIGEST_DIGITS // 2)
    return f"p{digest.hex()}"


def _hash_series(uid: str) -> str:
    digest = hashlib.sha256(uid.encode(errors="backslashreplace"))
    return digest.hexdigest()[:DIGEST_DIGITS] if uid else ""


def read_dicom(source: Path | bytes) -> Pixels:
    """Read a DICOM file of one frame; see `read_dicom_frames`.

    Raises:
        ImageError: As there, or several frames.
    """
    with _open_dicom(source) as (stream, data, layout, pixels):
        if layout.n_frames > 1:
            raise ImageError(
                f"{layout.n_frames} frames; a picture has one: save each to a file of its own"
            )
        values = next(decode_frames(stream, data, layout, pixels))
        return convert_frame(values, data, layout.kind, layout.bits_stored)


def read_dicom_frames(source: Path | bytes) -> Iterator[Pixels]:
    """Read the frames of a DICOM file as grey, one at a time.

    Values are rescaled as the file says. A window is obeyed, the first where there are several:
    it is clipped to, and its ends become 0 and 255; a table of grey values stands for a window.
    Without a window the values are scaled as in any other picture (`scale_to_8_bit`). 0 is black,
    also where the file has white there; padding is black and has no say in the scale. Colour
    becomes luma. What an enhanced file says of a single frame is heard for that frame.

    Args:
        source: The file, or its bytes.

    Yields:
        uint8 [H, W]

    Raises:
        ImageError: No pixels, cut short or damaged, compressed as cannot be decoded here, over
            MAX_FRAME_PIXELS or MAX_FRAMES. The reason holds nothing that the file says of its
            patient.
    """
    with _open_dicom(source) as (stream, data, layout, pixels):
        for frame, values in enumerate(decode_frames(stream, data, layout, pixels)):
            yield convert_frame(values, data, layout.kind, layout.bits_stored, frame)


# ---- the file


# Once, and before any thread: a filter that is set in one may be taken back in another.
warnings.filterwarnings("ignore", module=_WARNERS)


@functools.cache
def _load_pydicom() -> None:
    """Import pydicom once, and keep it and its decoders from repeating what files say."""
    pydicom = importlib.import_module("pydicom")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    for name in ("pydicom", "pylibjpeg", "libjpeg", "openjpeg"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


@contextlib.contextmanager
def _open_dicom(
    source: Path | bytes,
) -> Iterator[tuple[BinaryIO, "Dataset", Layout, PixelFinder]]:
    """Parse a file up to its pixels; any failure, also later on, is an ImageError of our words."""
    try:
        _load_pydicom()
        from pydicom.filereader import read_partial

        with _open_stream(source) as stream:
            pixels = PixelFinder(stream)
            data = read_partial(stream, pixels, force=True)
            _check_found(stream, pixels)
            yield stream, data, _read_layout(data), pixels
    except ImageError as error:
        raise type(error)(error.reason, source) from None
    except Exception as error:  # noqa: BLE001  hostile bytes raise anything
        # not `from error`: what pydicom writes there repeats what the file says
        raise ImageError(_explain(error), source) from None


def _explain(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return error.strerror
    return f"damaged DICOM ({type(error).__name__})"


@contextlib.contextmanager
def _open_stream(source: Path | bytes) -> Iterator[BinaryIO]:
    """The file, or, where it is deflated as a whole, what it unpacks to."""
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as stream:
        start = stream.read(2**16)
        if _DEFLATED.search(start):
            yield io.BytesIO(_inflate(start + stream.read()))
        else:
            stream.seek(0)
            yield stream


def _inflate(content: bytes) -> bytes:
    """A deflated DICOM file as a plain one, within MAX_INFLATED_BYTES, which pydicom lacks."""
    if content[128:140] != b"DICM\2\0\0\0UL\4\0":
        raise ImageError("damaged DICOM (the length of its file information is missing)")
    end = 144 + int.from_bytes(content[140:144], "little")
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    unpacked = unpacker.decompress(content[end:], MAX_INFLATED_BYTES)
    if unpacker.unconsumed_tail:
        raise ImageTooLargeError(f"unpacks to more than {MAX_INFLATED_BYTES / 2**20:.0f} MiB")
    if not unpacker.eof:
        raise ImageError("cut short")
    return _DEFLATED.sub(_PLAIN, content[:end]) + unpacked


def _check_found(stream: BinaryIO, pixels: PixelFinder) -> None:
    if pixels.is_directory:
        raise ImageError("a DICOMDIR, which lists other files; give those instead")
    if pixels.keyword:
        return
    n_bytes = stream.seek(0, os.SEEK_END)
    if pixels.length == UNDEFINED_LENGTH:
        stream.seek(-min(8, n_bytes), os.SEEK_END)
        is_cut = stream.read(4) not in {b"\xfe\xff\xdd\xe0", b"\xff\xfe\xe0\xdd"}
    else:
        is_cut = pixels.start + pixels.length != n_bytes
    if is_cut:
        raise ImageError("cut short")
    raise ImageError("a DICOM file without pixels (a report or a plan)")


def _read_layout(data: "Dataset") -> Layout:
    """What the header says of the pixels, held to the limits; a kind that is unknown is refused."""
    n_frames = _read_whole(data, "NumberOfFrames", 1) or 1
    if n_frames > MAX_FRAMES:
        raise ImageError(f"NumberOfFrames is over {MAX_FRAMES:,}")
    width, height = _read_whole(data, "Columns"), _read_whole(data, "Rows")
    check_size(width, height, MAX_FRAME_PIXELS)
    samples, bits = _read_whole(data, "SamplesPerPixel", 1), _read_whole(data, "BitsAllocated")
    kind = _read_text(data, "PhotometricInterpretation")
    if kind not in _KINDS:
        raise ImageError("damaged DICOM (PhotometricInterpretation is missing or unknown)")
    if samples != _KINDS[kind] or bits not in _BITS or n_frames < 1:
        raise ImageError("damaged DICOM (its pixels are described wrongly)")
    bits_stored = _read_whole(data, "BitsStored", bits)
    signed = bool(_read_whole(data, "PixelRepresentation", 0))
    return Layout(n_frames, width, height, kind, samples, bits, bits_stored, signed)


def _read_whole(data: "Dataset", keyword: str, missing: int | None = None) -> int:
    value = data.get(keyword)
    if value is None or value == "":
        if missing is None:
            raise ImageError(f"damaged DICOM ({keyword} is missing)")
        return missing
    return int(value)


def _read_text(data: "Dataset", keyword: str) -> str:
    return str(data.get(keyword) or "").strip(" \0")
