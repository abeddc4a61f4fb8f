"""Damage to images: each change takes a random generator and a file, and returns other bytes."""

import functools
import gzip
import random
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from tests.support.fuzz_corpus import Member, build_chunk, build_corpus

NUMBERS = (0, 1, 2, 7, 16, 127, 128, 255, 256, 4096, 32767, 32768, 65500, 65535)
LARGE = (2**24, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
SIDES = (0, 1, 2, 39, 41, 91, 2400, 2449, 4000, 4123, 8000, 16383, 32767, 65500, 65535)
STARTS = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM"),
    *(b"GIF89a", b"\0\x08\0\x05", b"\x08\0\x05\0CS\x0a\0", b"PK\3\4", b"%PDF", b"\0\0\0\x0cjP "),
    bytes(128) + b"DICM",
)
# place and form of the first two numbers of voxels, by the first bytes of NIfTI 1 and 2
NIFTI_SIZES = {b"\x5c\1\0\0": (42, "<hh"), b"\x1c\2\0\0": (24, "<qq")}
JPEG_SIZES = (0xC0, 0xC1, 0xC2, 0xC3, 0xF7)
# elements of group 0x0028 of DICOM
ROWS, COLUMNS = 0x10, 0x11
DICOM_SHORTS = (0x2, 0x6, 0x100, 0x101, 0x102, 0x103)
DICOM_TEXTS = (0x4, 0x8, 0x1050, 0x1051, 0x1052, 0x1053)
TEXTS = (
    *(b"0", b"-1", b"1e308", b"nan", b"inf", b"1e-320", b"9999", b"10000", b"hidden", b""),
    *(b"RGB", b"MONOCHROME1", b"YBR_FULL", b"YBR_FULL_422", b"PALETTE COLOR"),
)
PNG_CHUNKS = (
    *(b"tRNS", b"PLTE", b"gAMA", b"pHYs", b"acTL", b"fcTL", b"fdAT", b"eXIf", b"ABCD", b"cHRM"),
    *(b"sRGB", b"tIME", b"hIST", b"zTXt", b"iTXt", b"IDAT"),
)

Change = Callable[[random.Random, bytes], bytes]


# ---- changes of any file


def choose_offset(draw: random.Random, content: bytes) -> int:
    """Return an offset, half of the time in the first 256 bytes, which hold the header."""
    n_bytes = len(content) if draw.random() < 0.5 else min(256, len(content))
    offset = draw.randrange(max(1, n_bytes))
    offset += 128 if content[128:132] == b"DICM" and n_bytes <= 256 else 0  # after the preamble
    return min(offset, max(0, len(content) - 1))


def replace_run(draw: random.Random, content: bytes, change: Change) -> bytes:
    """Replace a run of bytes, mostly a short one."""
    start = choose_offset(draw, content)
    longest = draw.choice((2, 8, 64, 512, len(content)))
    end = min(len(content), start + draw.randint(1, max(1, longest)))
    return content[:start] + change(draw, content[start:end]) + content[end:]


def flip_bits(draw: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4, 16, 64))):
        changed[choose_offset(draw, content)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def write_number(draw: random.Random, content: bytes) -> bytes:
    """Write an extreme number of 1, 2 or 4 bytes in either order."""
    changed, n_bytes = bytearray(content), draw.choice((1, 2, 4))
    number = draw.choice(NUMBERS + LARGE) % 256**n_bytes
    start = min(choose_offset(draw, content), max(0, len(content) - n_bytes))
    changed[start : start + n_bytes] = number.to_bytes(n_bytes, draw.choice(("little", "big")))
    return bytes(changed)


def splice(draw: random.Random, content: bytes) -> bytes:
    other = draw.choice(build_corpus()).content
    return content[: choose_offset(draw, content)] + other[draw.randrange(len(other)) :]


RUNS: dict[str, Change] = {
    "overwrite": lambda draw, run: draw.randbytes(len(run)),
    "blank": lambda draw, run: draw.choice((b"\0", b"\xff")) * len(run),
    "insert": lambda draw, run: draw.randbytes(min(512, len(run))) + run,
    "drop": lambda draw, run: b"",
    "repeat": lambda draw, run: run * (draw.choice((2, 2, 3, 50)) if len(run) < 2000 else 2),
}
ANYWHERE: dict[str, Change] = {
    **{name: functools.partial(replace_run, change=change) for name, change in RUNS.items()},
    **{"flip bits": flip_bits, "write number": write_number},
    "splice": splice,
    "other start": lambda draw, content: draw.choice(STARTS) + content[draw.choice((0, 2, 8)) :],
    "cut": lambda draw, content: content[: choose_offset(draw, content)],
    "noise": lambda draw, content: draw.choice(STARTS) + draw.randbytes(draw.randrange(300)),
    "empty": lambda draw, content: bytes(draw.choice((0, 1, 8, 132, len(content)))),
}
WEIGHTS = (3, 2, 2, 2, 2, 4, 4, 1, 1, 2, 0.5, 0.3)
# a PNG with one of these differs from its checksums, unless its pixels are the same
CHECKED = {"overwrite", "blank", "insert", "drop", "flip bits", "cut", "write number"}


# ---- changes of one format, which need a valid file


def choose_size(draw: random.Random) -> tuple[int, int]:
    side = draw.choice(SIDES)
    sizes = ((4123, 4123), (2449, 2449), (91, 65535), (side, side))
    return draw.choice(sizes) if draw.random() < 0.5 else (side, draw.choice(SIDES))


def change_size(draw: random.Random, content: bytes) -> bytes:
    """Write another size into the header, and mostly into compressed pixels of DICOM."""
    width, height = choose_size(draw)
    if content.startswith(b"\x89PNG"):
        header = struct.pack(">II", width, height) + content[24:29]
        return content[:8] + build_chunk(b"IHDR", header) + content[33:]
    if content.startswith(b"BM"):
        return content[:18] + struct.pack("<II", width, height) + content[26:]
    if content.startswith(b"II*\0"):
        for tag, number in ((256, width), (257, height)):
            for type_ in (3, 4):
                content = write_tag(content, struct.pack("<HHI", tag, type_, 1), number)
        return content
    if content.startswith((b"\xff\xd8", b"\0\0\0\x0cjP", b"\xff\x4f")):
        return resize_codestream(content, width, height)
    if content.startswith(b"RIFF"):
        canvas = (width.to_bytes(4, "little")[:3], height.to_bytes(4, "little")[:3])
        place = {b"VP8X": 24, b"VP8L": 21}.get(content[12:16], 26)
        size = b"".join(canvas) if place == 24 else struct.pack("<HH", width, height)
        return content[:place] + size + content[place + len(size) :]
    if change := NIFTI_SIZES.get(content[:4]):
        return write_nifti_size(content, change, width, height)
    if content.startswith(b"GIF"):
        return content[:6] + struct.pack("<HH", width, height) + content[10:]
    if re.match(rb"P[1-6]\s", content):
        return re.sub(rb"\d+ \d+", b"%d %d" % (width, height), content, count=1)
    content = resize_dicom(content, width, height)
    return resize_codestream(content, width, height) if draw.random() < 0.7 else content


def write_nifti_size(content: bytes, change: tuple[int, str], width: int, height: int) -> bytes:
    """Write the first two numbers of voxels into an uncompressed NIfTI file."""
    place, form = change
    size = struct.pack(form, width % 2**15, height % 2**15)
    return content[:place] + size + content[place + len(size) :]


def change_packed(draw: random.Random, content: bytes) -> bytes:
    """Change the content of a gzip file, and compress it again."""
    plain = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    change = ANYWHERE[draw.choice(("flip bits", "write number", "overwrite", "blank", "cut"))]
    changed = change_size(draw, plain) if draw.random() < 0.3 else change(draw, plain)
    return changed if plain is content else gzip.compress(changed, mtime=0)


def change_mat_parts(draw: random.Random, content: bytes) -> bytes:
    """Change what follows the header of a MATLAB file, inside its compressed variables if any."""
    head, body = content[:128], content[128:]
    change = ANYWHERE[draw.choice(("flip bits", "write number", "overwrite", "blank"))]
    if body[:4] != b"\x0f\0\0\0":  # not compressed, or of version 7.3
        return head + change(draw, body)
    packed = zlib.compress(change(draw, zlib.decompress(body[8:])))
    return head + body[:4] + struct.pack("<I", len(packed)) + packed


def resize_dicom(content: bytes, width: int, height: int) -> bytes:
    for element, number in ((COLUMNS, width), (ROWS, height)):
        content = write_element(content, element, struct.pack("<H", number % 2**16))
    return content


def write_tag(content: bytes, start: bytes, number: int) -> bytes:
    """Write the value of the TIFF tag that begins with `start`."""
    head, found, tail = content.partition(start)
    return head + found + struct.pack("<I", number) + tail[4:] if found else content


def resize_codestream(content: bytes, width: int, height: int) -> bytes:
    """Write another size into the first frame header of JPEG or JPEG 2000."""
    changed = bytearray(content)
    offset = content.find(b"\xff\x4f\xff\x51")
    if offset >= 0:
        struct.pack_into(">II", changed, offset + 8, width, height)
        struct.pack_into(">II", changed, offset + 24, width, height)  # one tile
        return bytes(changed)
    for marker in JPEG_SIZES:
        offset = content.find(bytes((0xFF, marker, 0)))
        if 0 <= offset < len(content) - 9:
            struct.pack_into(">HH", changed, offset + 5, height % 2**16, width % 2**16)
            break
    return bytes(changed)


def write_element(content: bytes, element: int, value: bytes) -> bytes:
    """Write a value of the same length into a little-endian DICOM file."""
    offset = content.find(struct.pack("<HH", 0x28, element), 128)
    if offset < 0:
        return content
    explicit = content[offset + 4 : offset + 6].isalpha()
    length = content[offset + 6 : offset + 8] if explicit else content[offset + 4 : offset + 8]
    n_bytes = min(int.from_bytes(length, "little"), 64)
    value = value[:n_bytes].ljust(n_bytes, b"\0" if len(value) == 2 else b" ")
    return content[: offset + 8] + value + content[offset + 8 + n_bytes :]


def change_element(draw: random.Random, content: bytes) -> bytes:
    """Change one or two elements of DICOM that describe the pixels."""
    number = struct.pack("<H", draw.choice(NUMBERS))
    changes = [(draw.choice(DICOM_SHORTS), number), (draw.choice(DICOM_TEXTS), draw.choice(TEXTS))]
    for element, value in draw.choices(changes, k=draw.randint(1, 2)):
        content = write_element(content, element, value)
    return content


def change_parts(draw: random.Random, parts: list[bytes], name: str) -> None:
    """Move, repeat, drop or change one of the chunks or segments of a file."""
    index = draw.randrange(len(parts))
    part, action = parts.pop(index), draw.randrange(4)
    if action == 0:
        parts.insert(draw.randrange(len(parts) + 1), part)
    elif action == 1:
        parts[index:index] = [part] * draw.choice((2, 3, 301))
    elif action == 2:
        parts.insert(index, part[:4] + ANYWHERE[name](draw, part[4:] or b"\0"))


def change_chunks(draw: random.Random, content: bytes) -> bytes:
    """Change, add or inflate chunks of PNG, with valid checksums."""
    chunks, offset = [], 8
    while offset + 12 <= len(content):
        end = offset + 8 + int.from_bytes(content[offset : offset + 4])
        chunks.append(content[offset + 4 : end])
        offset = end + 4
    action = draw.random()
    if action < 0.66:
        change_parts(draw, chunks, draw.choice(("flip bits", "overwrite", "cut", "repeat")))
    elif action < 0.83:
        noise = draw.randbytes(draw.choice((0, 1, 2, 6, 26, 768, 2000)))
        chunks.insert(draw.randrange(len(chunks)), draw.choice(PNG_CHUNKS) + noise)
    else:
        start = draw.choice((b"iCCPname\0\0", b"zTXtname\0\0", b"iTXtname\0\1\0\0\0"))
        chunks.insert(1, start + compress_zeros())
    return content[:8] + b"".join(build_chunk(chunk[:4], chunk[4:]) for chunk in chunks)


@functools.cache
def compress_zeros() -> bytes:
    return zlib.compress(bytes(2**26))


def split_segments(content: bytes) -> list[bytes]:
    """Return the segments of a JPEG, each scan with its data."""
    return [segment for segment in re.split(rb"(?=\xff[\xc0-\xcf\xd8-\xfe])", content) if segment]


def change_segments(draw: random.Random, content: bytes) -> bytes:
    """Change a segment of JPEG, and sometimes also the size."""
    first, *segments, last = split_segments(content)
    change_parts(draw, segments, draw.choice(("flip bits", "overwrite", "blank", "write number")))
    content = b"".join([first, *segments, last])
    return resize_codestream(content, *choose_size(draw)) if draw.random() < 0.3 else content


def add_harmless(draw: random.Random, member: Member) -> bytes:
    """Add what no reader may refuse: a comment, bytes after the end, another DICOM preamble."""
    content, noise = member.content, draw.randbytes(draw.randint(1, 300))
    if member.format == "DICOM":
        start = draw.choice((*STARTS, noise))[:128]
        return start + draw.randbytes(128 - len(start)) + content[128:]
    if member.format in {"NIfTI", "MATLAB"}:  # bytes after the end are damage of gzip and MATLAB
        return content
    if member.name == "PNM text":
        return content + draw.choice((b"\n", b" \n\n", b"\t"))
    if member.format == "PNG" and draw.random() < 0.7:
        name = draw.choice((b"tEXt", b"teXt", b"prVt"))
        return content[:33] + build_chunk(name, b"Comment\0" + noise) + content[33:]
    if member.format == "JPEG" and draw.random() < 0.7:
        marker = draw.choice((0xFE, 0xE4, 0xE7, 0xEF))
        return content[:2] + struct.pack(">BBH", 0xFF, marker, 2 + len(noise)) + noise + content[2:]
    return content + noise


OF_FORMAT: dict[str, tuple[Change, ...]] = {
    **{"PNG": (change_size, change_chunks), "JPEG": (change_size, change_segments)},
    **{"TIFF": (change_size,), "BMP": (change_size,), "DICOM": (change_size, change_element)},
    **dict.fromkeys(("WebP", "GIF", "JPEG2000", "PNM"), (change_size,)),
    **{"NIfTI": (change_packed,), "MATLAB": (change_mat_parts,)},
}


@dataclass(frozen=True)
class Mutant:
    """A changed file."""

    name: str
    member: Member
    content: bytes
    must_read: bool = False
    must_match: bool = False  # if it is read


def mutate(seed: int, number: int) -> Mutant:
    """Return the mutant of this seed and number."""
    draw = random.Random(f"{seed} {number}")
    member = draw.choice(build_corpus())
    chance = draw.random()
    if chance < 0.07:
        content = member.content if chance < 0.02 else add_harmless(draw, member)
        return Mutant(f"harmless to {member.name}", member, content, True, True)
    content, names = member.content, list[str]()
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if not names and draw.random() < 0.35:
            change = draw.choice(OF_FORMAT[member.format])
            name = change.__name__
        else:
            (name,) = draw.choices(tuple(ANYWHERE), WEIGHTS)
            change = ANYWHERE[name]
        content = change(draw, content) if content else content
        names.append(name)
    must_match = member.format == "PNG" and CHECKED.issuperset(names)
    return Mutant(f"{' and '.join(names)} to {member.name}", member, content, False, must_match)
