"""Recognise what a file is by its first bytes, whatever its name."""

import re
from collections.abc import Callable
from pathlib import Path

from imaging.volumes import VOLUME_SUFFIXES, find_volume_kind

START_BYTES = 2048  # needed by `find_kind`
DICOM = "DICOM"
# suffixes of files that are meant as images: if their content is none, they count as unreadable
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif"),
    *(".jp2", ".j2k", ".jpx", ".pgm", ".ppm", ".pnm", ".dcm", ".dicom", ".ima"),
    *(".nii", ".nii.gz", ".mat"),
)
_SIGNATURES = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
    "BMP": re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL),
    "WebP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    "JPEG 2000": re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"),
    "PNM": re.compile(
        rb"P(?:[1-6](?:\s+#[^\n]*\n)?\s+(?:#[^\n]*\n\s*)*\d+\s+\d+\s|[fF]\s\d+\s+\d+)"
    ),
}
FORMATS = (*_SIGNATURES, *VOLUME_SUFFIXES, DICOM)
_FIRST_VRS = {b"UL", b"CS", b"UI", b"DA", b"TM", b"LO", b"SH", b"OB"}


def find_kind(start: bytes) -> str:
    """Return the format of an image by the first START_BYTES of its file, "" for other files."""
    if is_dicom(start):
        return DICOM
    found = next((kind for kind, pattern in _SIGNATURES.items() if pattern.match(start)), "")
    return found or find_volume_kind(start) or ""


def is_image_file(name: str, peek: Callable[[], bytes]) -> bool:
    """Return whether a file is an image by its content, or is meant as one by its suffix.

    Hidden files are none. A DICOMDIR only lists files.

    Args:
        name: File name without folders.
        peek: Reads the first START_BYTES of the file; called only if the suffix says nothing.
    """
    if name.startswith(".") or name.upper() == "DICOMDIR":
        return False
    return name.lower().endswith(IMAGE_SUFFIXES) or bool(find_kind(peek()))


def read_first_bytes(path: Path) -> bytes:
    """Return the first START_BYTES of a file."""
    with path.open("rb") as stream:
        return stream.read(START_BYTES)


def has_preamble(start: bytes) -> bool:
    """Return whether the first bytes of a file have the DICOM prefix at byte 128."""
    return start[128:132] == b"DICM"


def is_dicom(start: bytes) -> bool:
    """Return whether the first bytes of a file are DICOM, with or without preamble.

    Files without preamble begin with a data element of group 2 or 8. With implicit VR, a second
    element must follow, so that no other format is mistaken for DICOM.
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
