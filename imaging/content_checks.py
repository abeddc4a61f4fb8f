"""Check bytes of a file before or beside Pillow, which does not check them."""

import os
import struct
import zlib
from typing import IO

from imaging.grayscale import ImageError


def check_png_checksums(stream: IO[bytes]) -> None:
    """Verify the checksums of pixel data; Pillow verifies only those of the chunks before them."""
    stream.seek(8)
    while len(start := stream.read(8)) == 8:
        n_bytes, name = struct.unpack(">I4s", start)
        if name == b"IEND":
            return
        if name not in {b"IDAT", b"fdAT", b"fcTL"}:  # the last two are of animations
            stream.seek(n_bytes + 4, os.SEEK_CUR)
            continue
        checksum = zlib.crc32(name)
        while n_bytes and (block := stream.read(min(n_bytes, 2**20))):
            checksum, n_bytes = zlib.crc32(block, checksum), n_bytes - len(block)
        stored = stream.read(4)
        if len(stored) < 4:
            raise ImageError("truncated")
        if checksum != int.from_bytes(stored):
            raise ImageError("damaged (pixel data does not match its checksum)")


def read_webp_size(start: bytes) -> tuple[int, int]:
    """Return width and height by the first chunk of a WebP file.

    Source: RFC 9649, sections 2.5 to 2.7.
    """
    chunk = start[12:16]
    if chunk == b"VP8X":
        sides = (int.from_bytes(start[place : place + 3], "little") for place in (24, 27))
        width, height = (side + 1 for side in sides)
    elif chunk == b"VP8L":
        bits = int.from_bytes(start[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (value & 0x3FFF for value in struct.unpack("<HH", start[26:30]))
    return width, height
