"""Damage to pictures: each kind takes a member of the corpus and a draw, and gives bytes."""

import functools
import random
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
    *(
        b"GIF89a",
        b"\0\x08\0\x05",
        b"\x08\0\x05\0CS\x0a\0",
        b"PK\x03\x04",
        b"%PDF",
        b"\0\0\0\x0cjP  ",
    ),
)
JPEG_SIZES = (0xC0, 0xC1, 0xC2, 0xC3, 0xF7)
# lengths and places in a DICOM file: rows, columns, frames and so on as group and element
DICOM_SIZES = {"rows": (0x28, 0x10), "columns": (0x28, 0x11)}
DICOM_SHORTS = ((0x28, 2), (0x28, 6), (0x28, 0x100), (0x28, 0x101), (0x28, 0x102), (0x28, 0x103))
DICOM_TEXTS = ((0x28, 4), (0x28, 8), (0x28, 0x1050), (0x28, 0x1051), (0x28, 0x1052), (0x28, 0x1053))

TEXTS = (
    *(b"0", b"-1", b"1e308", b"nan", b"inf", b"1e-320", b"9999", b"10000", b"hidden", b""),
    *(b"RGB", b"MONOCHROME1", b"YBR_FULL", b"YBR_FULL_422", b"PALETTE COLOR"),
)


def choose_place(draw: random.Random, content: bytes) -> int:
    """A byte, every second time of the first 256: headers break more than pixels."""
    n_bytes = len(content) if draw.random() < 0.5 else min(256, len(content))
    place = draw.randrange(max(1, n_bytes))
    # the first 128 bytes of DICOM mean nothing
    place += 128 if content[128:132] == b"DICM" and n_bytes <= 256 else 0
    return min(place, max(0, len(content) - 1))


def choose_run(draw: random.Random, content: bytes) -> tuple[int, int]:
    """Where a run of bytes begins and ends, mostly a short one."""
    start = choose_place(draw, content)
    longest = draw.choice((2, 8, 64, 512, len(content)))
    return start, min(len(content), start + draw.randint(1, max(1, longest)))


def flip_bits(draw: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4, 16, 64))):
        changed[choose_place(draw, content)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def overwrite(draw: random.Random, content: bytes) -> bytes:
    start, end = choose_run(draw, content)
    return content[:start] + draw.randbytes(end - start) + content[end:]


def blank(draw: random.Random, content: bytes) -> bytes:
    start, end = choose_run(draw, content)
    return content[:start] + draw.choice((b"\0", b"\xff")) * (end - start) + content[end:]


def cut(draw: random.Random, content: bytes) -> bytes:
    return content[: draw.choice((choose_place(draw, content), draw.randrange(len(content))))]


def insert(draw: random.Random, content: bytes) -> bytes:
    start, end = choose_run(draw, content)
    return content[:start] + draw.randbytes(min(512, end - start)) + content[start:]


def drop(draw: random.Random, content: bytes) -> bytes:
    start, end = choose_run(draw, content)
    return content[:start] + content[end:]


def repeat(draw: random.Random, content: bytes) -> bytes:
    start, end = choose_run(draw, content)
    times = draw.choice((2, 2, 3, 50)) if end - start < 2000 else 2
    return content[:start] + content[start:end] * times + content[end:]


def write_number(draw: random.Random, content: bytes) -> bytes:
    """A number that is likely to hurt, of 1 to 4 bytes in either order."""
    changed, n_bytes = bytearray(content), draw.choice((1, 2, 4))
    number = draw.choice(NUMBERS + LARGE) % 256**n_bytes
    start = min(choose_place(draw, content), max(0, len(content) - n_bytes))
    changed[start : start + n_bytes] = number.to_bytes(n_bytes, draw.choice(("little", "big")))
    return bytes(changed)


def splice(draw: random.Random, content: bytes) -> bytes:
    """The beginning of this file and the end of another."""
    other = draw.choice(build_corpus()).content
    return content[: choose_place(draw, content)] + other[draw.randrange(len(other)) :]


def swap_start(draw: random.Random, content: bytes) -> bytes:
    """The first bytes of another format."""
    start = draw.choice(STARTS)
    if draw.random() < 0.2:
        return bytes(128) + b"DICM" + content
    return start + content[len(start) if draw.random() < 0.5 else 0 :]


def empty(draw: random.Random, content: bytes) -> bytes:
    """Nothing, or nothing but zeros."""
    return bytes(draw.choice((0, 1, 8, 132, len(content))))


def choose_size(draw: random.Random) -> tuple[int, int]:
    """Width and height: odd, too large, or large and within the limit."""
    return (
        draw.choice(((4123, 4123), (2449, 2449), (91, 65535), (draw.choice(SIDES),) * 2))
        if (draw.random() < 0.5)
        else (draw.choice(SIDES), draw.choice(SIDES))
    )


def change_size(draw: random.Random, content: bytes) -> bytes:
    """Another size in the header, with the right sum, and in compressed DICOM in both places."""
    width, height = choose_size(draw)
    if content.startswith(b"\x89PNG"):
        return (
            content[:8]
            + build_chunk(b"IHDR", struct.pack(">II", width, height) + content[24:29])
            + content[33:]
        )
    if content.startswith(b"BM"):
        return content[:18] + struct.pack("<II", width, height) + content[26:]
    if content.startswith(b"II*\0"):
        for tag, number in ((256, width), (257, height)):
            for kind in (3, 4):
                content = write_tag(content, struct.pack("<HHI", tag, kind, 1), number)
        return content
    if content.startswith(b"\xff\xd8"):
        return resize_codestream(content, width, height)
    for element, number in ((DICOM_SIZES["columns"], width), (DICOM_SIZES["rows"], height)):
        content = write_element(content, element, struct.pack("<H", number % 2**16))
    return resize_codestream(content, width, height) if draw.random() < 0.7 else content


def write_tag(content: bytes, start: bytes, number: int) -> bytes:
    place = content.find(start)
    if place < 0:
        return content
    return content[: place + 8] + struct.pack("<I", number) + content[place + 12 :]


def resize_codestream(content: bytes, width: int, height: int) -> bytes:
    """Another size in the first start of frame of JPEG and in that of JPEG 2000."""
    changed = bytearray(content)
    place = content.find(b"\xff\x4f\xff\x51")
    if place >= 0:
        struct.pack_into(">II", changed, place + 8, width, height)
        struct.pack_into(">II", changed, place + 24, width, height)  # one tile
        return bytes(changed)
    for marker in JPEG_SIZES:
        place = content.find(bytes((0xFF, marker, 0)))
        if 0 <= place < len(content) - 9:
            struct.pack_into(">HH", changed, place + 5, height % 2**16, width % 2**16)
            break
    return bytes(changed)


def write_element(content: bytes, element: tuple[int, int], value: bytes) -> bytes:
    """Another value, as long as the old one, in a little endian DICOM file."""
    tag = struct.pack("<HH", *element)
    place = content.find(tag, 128)
    if place < 0:
        return content
    explicit = content[place + 4 : place + 6].isalpha()
    n_bytes = int.from_bytes(
        content[place + 6 : place + 8] if explicit else content[place + 4 : place + 8], "little"
    )
    n_bytes = min(n_bytes, 64)
    value = value[:n_bytes].ljust(n_bytes, b"\0" if len(value) == 2 else b" ")
    return content[: place + 8] + value + content[place + 8 + n_bytes :]


def change_element(draw: random.Random, content: bytes) -> bytes:
    """Other words of a DICOM file about its pixels."""
    for _ in range(draw.randint(1, 2)):
        if draw.random() < 0.5:
            value = struct.pack("<H", draw.choice(NUMBERS))
            content = write_element(content, draw.choice(DICOM_SHORTS), value)
        else:
            content = write_element(content, draw.choice(DICOM_TEXTS), draw.choice(TEXTS))
    return content


def split_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG that is as it should be."""
    chunks, place = [], 8
    while place + 12 <= len(content):
        n_bytes, name = struct.unpack_from(">I4s", content, place)
        chunks.append((name, content[place + 8 : place + 8 + n_bytes]))
        place += 12 + n_bytes
    return chunks


def change_chunks(draw: random.Random, content: bytes) -> bytes:
    """Chunks of PNG in another order, twice, missing, altered or of a bomb, with right sums."""
    chunks = split_chunks(content)
    place = draw.randrange(len(chunks))
    name, inside = chunks[place]
    what = draw.randrange(6)
    if what == 0:
        chunks.insert(draw.randrange(len(chunks)), chunks.pop(place))
    elif what == 1:
        chunks[place:place] = [chunks[place]] * draw.choice((1, 2, 300))
    elif what == 2:
        del chunks[place]
    elif what == 3 and inside:
        chunks[place] = name, draw.choice((flip_bits, overwrite, cut, repeat))(draw, inside)
    elif what == 4:
        names = (b"tRNS", b"PLTE", b"gAMA", b"pHYs", b"acTL", b"fcTL", b"fdAT", b"eXIf", b"ABCD")
        name = draw.choice((*names, b"cHRM", b"sRGB", b"tIME", b"hIST", b"zTXt", b"iTXt", b"IDAT"))
        chunks.insert(place, (name, draw.randbytes(draw.choice((0, 1, 2, 6, 26, 768, 2000)))))
    else:
        bomb = pack_zeros(2**26)
        name = draw.choice((b"iCCP", b"zTXt", b"iTXt"))
        chunks.insert(1, (name, b"name\0" + (b"\1\0\0\0" if name == b"iTXt" else b"\0") + bomb))
    return content[:8] + b"".join(build_chunk(*chunk) for chunk in chunks)


@functools.cache
def pack_zeros(n_bytes: int) -> bytes:
    """So many zeros, deflated."""
    packer, block = zlib.compressobj(9), bytes(2**20)
    parts = [packer.compress(block) for _ in range(n_bytes // len(block))]
    return b"".join([*parts, packer.compress(bytes(n_bytes % len(block))), packer.flush()])


def split_segments(content: bytes) -> list[bytes]:
    """The segments of a JPEG that is as it should be; what follows a scan belongs to it."""
    segments, place = [content[:2]], 2
    while place + 4 <= len(content) and content[place + 1] != 0xD9:
        end = place + 2 + int.from_bytes(content[place + 2 : place + 4])
        if content[place + 1] == 0xDA:
            while end + 1 < len(content) and (
                content[end] != 0xFF or content[end + 1] in {0, *range(0xD0, 0xD8)}
            ):
                end += 1
        segments.append(content[place:end])
        place = end
    return [*segments, content[place:]]


def change_segments(draw: random.Random, content: bytes) -> bytes:
    """Segments of JPEG in another order, many times, missing or altered."""
    segments = split_segments(content)
    place = draw.randrange(1, len(segments) - 1)
    what = draw.randrange(4)
    if what == 0:
        segments.insert(draw.randrange(1, len(segments)), segments.pop(place))
    elif what == 1:
        segments[place:place] = [segments[place]] * draw.choice((1, 2, 300))
    elif what == 2:
        del segments[place]
    else:
        inside = draw.choice((flip_bits, overwrite, blank, write_number))(
            draw, segments[place][4:] or b"\0"
        )
        segments[place] = segments[place][:4] + inside
    if draw.random() < 0.3:
        return resize_codestream(b"".join(segments), *choose_size(draw))
    return b"".join(segments)


def add_harmless(draw: random.Random, member: Member) -> bytes:
    """What no reader may mind: a remark, bytes behind the end, what precedes DICOM."""
    content, noise = member.content, draw.randbytes(draw.randint(1, 300))
    if member.kind == "DICOM":
        start = draw.choice((*STARTS, noise))[:128]
        return start + draw.randbytes(128 - len(start)) + content[128:]
    if member.kind == "PNG" and draw.random() < 0.7:
        chunk = draw.choice((b"tEXt", b"teXt", b"prVt"))
        return content[:33] + build_chunk(chunk, b"Remark\0" + noise) + content[33:]
    if member.kind == "JPEG" and draw.random() < 0.7:
        marker = draw.choice((0xFE, 0xE4, 0xE7, 0xEF))
        segment = struct.pack(">BBH", 0xFF, marker, 2 + len(noise)) + noise
        return content[:2] + segment + content[2:]
    return content + noise


Change = Callable[[random.Random, bytes], bytes]
ANYWHERE: tuple[Change, ...] = (
    *(flip_bits, overwrite, blank, cut, insert, drop, repeat, write_number),
    *(splice, swap_start, empty),
)
# what leaves the sums of PNG wrong, if it changes anything of the picture
SUMMED = (flip_bits, overwrite, blank, cut, insert, drop, write_number)
OF_KIND: dict[str, tuple[Change, ...]] = {
    "PNG": (change_size, change_chunks),
    "JPEG": (change_size, change_segments),
    "TIFF": (change_size,),
    "BMP": (change_size,),
    "DICOM": (change_size, change_element),
}
WEIGHTS = (4, 3, 2, 2, 2, 2, 2, 4, 1, 1, 0.3)


@dataclass(frozen=True)
class Mutant:
    """A damaged file: what was done to it, and what is promised of it.

    `same` is whether it must still show what it did, `sealed` whether it must if it is read.
    """

    what: str
    member: Member
    content: bytes
    same: bool = False
    sealed: bool = False


def mutate(seed: int, number: int) -> Mutant:
    """The mutant of this seed and number."""
    draw = random.Random(f"{seed} {number}")
    member = draw.choice(build_corpus())
    chance = draw.random()
    if chance < 0.02:
        return Mutant(f"nothing to {member.name}", member, member.content, same=True)
    if chance < 0.07:
        return Mutant(f"harmless to {member.name}", member, add_harmless(draw, member), same=True)
    content, sealed, names = member.content, member.kind == "PNG", list[str]()
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        # those of its kind need the file whole, and so come first or not at all
        if not names and draw.random() < 0.35:
            change, sealed = draw.choice(OF_KIND[member.kind]), False
        else:
            (change,) = draw.choices(ANYWHERE, WEIGHTS)
            sealed &= change in SUMMED
        content = change(draw, content) if content else content
        names.append(change.__name__)
    return Mutant(f"{' and '.join(names)} to {member.name}", member, content, sealed=sealed)
