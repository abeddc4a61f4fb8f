"""Pictures that are as they should be, of every kind that the reader knows, and what they show."""

import functools
import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, RLELossless

from tests.support.dicom_files import BUNDLED, SECRETS, build_dataset, encode_dataset, encode_dicom

H, W = 24, 40
GREY = np.add.outer(4 * np.arange(H), 4 * np.arange(W)).astype(np.uint8)  # 0 to 248, smooth
DEEP = 16 * GREY.astype(np.uint16) + 15  # 15 to 3983: 12 bits
TURNED = np.ascontiguousarray(GREY.T[:, ::-1])  # upright by EXIF orientation 6
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2))
_NOTE = f"{SECRETS['PatientName']} {SECRETS['PatientID']}"


@dataclass(frozen=True)
class Member:
    """A picture, and what reading it must give within `tolerance`; frames empty: not known."""

    name: str
    content: bytes
    frames: tuple[npt.NDArray[np.uint8], ...] = ()
    tolerance: int = 0

    @property
    def kind(self) -> str:
        """The first word of the name: JPEG, PNG, TIFF, BMP or DICOM."""
        return self.name.split()[0]


def encode(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    """The bytes of a file that Pillow writes."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def build_chunk(name: bytes, inside: bytes) -> bytes:
    """A chunk of PNG with the right sum."""
    checked = name + inside
    return struct.pack(">I", len(inside)) + checked + struct.pack(">I", zlib.crc32(checked))


def build_png(
    size: tuple[int, int], depth: int, colour: int, rows: bytes, *chunks: bytes, interlace: int = 0
) -> bytes:
    """A PNG of these rows, each with its filter before it, and further chunks before them."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlace)
    data = build_chunk(b"IDAT", zlib.compress(rows))
    middle = b"".join(chunks)
    return (
        b"\x89PNG\r\n\x1a\n"
        + build_chunk(b"IHDR", header)
        + middle
        + data
        + build_chunk(b"IEND", b"")
    )


def filter_rows(values: np.ndarray) -> bytes:
    """Rows as PNG wants them, unfiltered; of 16 bits big endian."""
    values = values.astype(values.dtype.newbyteorder(">"))
    return b"".join(b"\0" + row.tobytes() for row in values)


def build_interlaced() -> bytes:
    """GREY in the seven passes of Adam7."""
    passes = [GREY[top::down, left::right] for top, left, down, right in _ADAM7]
    passes.append(GREY[1::2])
    rows = b"".join(filter_rows(part) for part in passes)
    return build_png((W, H), 8, 0, rows, interlace=1)


def build_tags() -> Image.Exif:
    """Turned by a quarter, and a name that no message may repeat."""
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = 6, _NOTE
    return exif


def build_jpegs() -> list[Member]:
    """JPEG: baseline, progressive, grey, CMYK, turned, with restarts."""
    grey = Image.fromarray(GREY)
    colour, inks = grey.convert("RGB"), grey.convert("CMYK")
    found = {
        "grey": encode(grey, "JPEG", quality=95, comment=_NOTE),
        "colour": encode(colour, "JPEG", quality=95),
        "full colour": encode(colour, "JPEG", quality=95, subsampling=0, optimize=True),
        "progressive": encode(colour, "JPEG", quality=95, progressive=True),
        "progressive grey": encode(grey, "JPEG", quality=95, progressive=True),
        "restarts": encode(colour, "JPEG", quality=95, restart_marker_blocks=1),
        "CMYK": encode(inks, "JPEG", quality=95),
        "CMYK progressive": encode(inks, "JPEG", quality=95, progressive=True),
    }
    members = [Member(f"JPEG {name}", content, (GREY,), 6) for name, content in found.items()]
    turned = encode(grey, "JPEG", quality=95, exif=build_tags())
    return [*members, Member("JPEG turned", turned, (TURNED,), 6)]


def build_pngs() -> list[Member]:
    """PNG: of 1 to 16 bits, grey and colour, palettes, transparent, interlaced, animated."""
    grey = Image.fromarray(GREY)
    two = np.where(GREY > 127, 255, 0).astype(np.uint8)
    clear = np.dstack([GREY, GREY, GREY, np.full_like(GREY, 255)])
    clear[:, W // 2 :, 3] = 0
    half = GREY.copy()
    half[:, W // 2 :] = 0
    palette = Image.fromarray(GREY // 64).convert("P")
    palette.putpalette([number for level in (0, 85, 170, 255) for number in [level] * 3])
    steps = np.array([0, 85, 170, 255], np.uint8)[GREY // 64]
    holes = np.where(GREY // 64 == 3, 0, steps).astype(np.uint8)
    wide = DEEP * 16
    found = {
        "1 bit": (encode(Image.fromarray(two).convert("1"), "PNG"), two),
        "grey": (encode(grey, "PNG"), GREY),
        "colour": (encode(grey.convert("RGB"), "PNG"), GREY),
        "grey with alpha": (encode(Image.fromarray(clear).convert("LA"), "PNG"), half),
        "RGBA": (encode(Image.fromarray(clear), "PNG"), half),
        "palette": (encode(palette, "PNG", bits=2), steps),
        "palette with holes": (encode(palette, "PNG", transparency=3), holes),
        "16 bit": (encode(wide, "PNG"), np.rint(wide / 257).astype(np.uint8)),
        "12 in 16 bit": (encode(DEEP, "PNG"), np.rint(DEEP * (255 / 4095)).astype(np.uint8)),
        "16 bit colour": (
            build_png((W, H), 16, 2, filter_rows(np.dstack([GREY.astype(np.uint16) * 257] * 3))),
            GREY,
        ),
        "interlaced": (build_interlaced(), GREY),
        "animated": (
            encode(grey, "PNG", save_all=True, append_images=[Image.fromarray(two)] * 2),
            GREY,
        ),
        "turned": (encode(grey, "PNG", exif=build_tags()), TURNED),
        "texts": (
            build_png(
                (W, H),
                8,
                0,
                filter_rows(GREY),
                build_chunk(b"gAMA", struct.pack(">I", 45455)),
                build_chunk(b"tEXt", b"Author\0" + _NOTE.encode()),
                build_chunk(b"zTXt", b"Title\0\0" + zlib.compress(_NOTE.encode())),
                build_chunk(b"iTXt", b"Source\0\0\0en\0\0" + _NOTE.encode()),
                build_chunk(b"iCCP", b"none\0\0" + zlib.compress(bytes(128))),
            ),
            GREY,
        ),
    }
    return [Member(f"PNG {name}", content, (grey,)) for name, (content, grey) in found.items()]


def build_tiffs() -> list[Member]:
    """TIFF and BMP: plain and packed in several ways."""
    grey = Image.fromarray(GREY)
    two = np.where(GREY > 127, 255, 0).astype(np.uint8)
    tags = {270: _NOTE}
    found: dict[str, tuple[bytes, np.ndarray]] = {
        "TIFF grey": (encode(grey, "TIFF", tiffinfo=tags), GREY),
        "TIFF turned": (encode(grey, "TIFF", exif=build_tags()), TURNED),
        "TIFF 16 bit": (encode(DEEP * 16, "TIFF"), np.rint(DEEP * (16 / 257)).astype(np.uint8)),
        "TIFF float": (encode((GREY / 255).astype(np.float32), "TIFF"), GREY),
        "TIFF pages": (encode(grey, "TIFF", save_all=True, append_images=[grey]), GREY),
        "TIFF CMYK": (encode(grey.convert("CMYK"), "TIFF"), GREY),
        "TIFF fax": (encode(Image.fromarray(two).convert("1"), "TIFF", compression="group4"), two),
        "BMP grey": (encode(grey, "BMP"), GREY),
        "BMP colour": (encode(grey.convert("RGB"), "BMP"), GREY),
        "BMP 1 bit": (encode(Image.fromarray(two).convert("1"), "BMP"), two),
    }
    for packing in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        content = encode(grey.convert("RGB"), "TIFF", compression=packing, tiffinfo=tags)
        found[f"TIFF {packing}"] = content, GREY
    members = [Member(name, content, (grey,)) for name, (content, grey) in found.items()]
    packed = encode(grey, "TIFF", compression="jpeg", quality=95)
    return [*members, Member("TIFF jpeg", packed, (GREY,), 6)]


def pack(data: Dataset, syntax: str) -> bytes:
    """The data set under another transfer syntax: run lengths, deflated or big endian."""
    if syntax == RLELossless:
        data.compress(RLELossless, encoding_plugin="pydicom")
    else:
        data.file_meta.TransferSyntaxUID = UID(syntax)
    return encode_dataset(data)


def build_dicoms() -> list[Member]:
    """DICOM made here: plain, windowed, of several frames, in colour, packed."""
    other = GREY[::-1].copy()
    both = np.stack([GREY, other])
    window = {"WindowCenter": "2048", "WindowWidth": "4096"}
    levels = np.arange(256, dtype="<u2") * 257
    tables = {f"{name}PaletteColorLookupTableData": levels.tobytes() for name in COLOURS}
    shapes = {f"{name}PaletteColorLookupTableDescriptor": [256, 0, 16] for name in COLOURS}
    # a window of 4096 about 2048: v becomes (v - 2047.5) / 4095 + 0.5
    windowed = np.rint(DEEP * (255 / 4095)).astype(np.uint8)
    lifted = (DEEP.astype(np.int32) - 1024).astype(np.int16)
    found: dict[str, tuple[bytes, tuple[np.ndarray, ...]]] = {
        "8 bit": (encode_dicom(GREY), (GREY,)),
        "MONOCHROME1": (encode_dicom(255 - GREY, "MONOCHROME1"), (GREY,)),
        "16 bit": (encode_dicom(DEEP), (windowed,)),
        "windowed": (encode_dicom(DEEP, **window), (windowed,)),
        "rescaled": (
            encode_dicom(lifted, RescaleSlope="1", RescaleIntercept="1024", **window),
            (windowed,),
        ),
        "frames": (encode_dataset(build_dataset(both, n_frames=2)), (GREY, other)),
        "colour": (encode_dicom(np.dstack([GREY] * 3), "RGB"), (GREY,)),
        "palette": (encode_dicom(GREY, "PALETTE COLOR", **tables, **shapes), (GREY,)),
        "run lengths": (pack(build_dataset(DEEP), RLELossless), (windowed,)),
        "frames of run lengths": (
            pack(build_dataset(both, n_frames=2), RLELossless),
            (GREY, other),
        ),
        "deflated": (pack(build_dataset(DEEP), DeflatedExplicitVRLittleEndian), (windowed,)),
    }
    return [Member(f"DICOM {name}", *built) for name, built in found.items()]


COLOURS = ("Red", "Green", "Blue")
# one picture packed in several ways
_SMALL = (
    *("MR_small", "MR_small_RLE", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless"),
    *("MR_small_implicit", "MR_small_bigendian"),
)
_BUNDLED = (
    *("JPEG-lossy", "JPGExtended", "JPEG2000", "JPEGLSNearLossless_08", "JPEGLSNearLossless_16"),
    *("SC_rgb_jpeg_gdcm", "SC_rgb_jpeg_dcmtk", "SC_rgb_jls_lossy_line", "SC_rgb_dcmtk_+eb+cy+n1"),
    *("SC_rgb_jls_lossy_sample", "693_J2KI", "SC_rgb_rle_32bit_2frame", "image_dfl", "rtdose_rle"),
    *("SC_rgb_small_odd_jpeg", "GDCMJ2K_TextGBR", "liver_expb_1frame"),
)


def build_bundled() -> list[Member]:
    """DICOM that pydicom brings along: JPEG, JPEG lossless, JPEG-LS, JPEG 2000, floats, old."""
    from pydicom import dcmread

    folder = BUNDLED / "test_files"
    values = dcmread(folder / "MR_small.dcm").pixel_array.astype(float)
    # its window: 1600 about 600
    shown = np.rint(255 * np.clip((values - 599.5) / 1599 + 0.5, 0, 1)).astype(np.uint8)
    members = [
        Member(f"DICOM {name}", (folder / f"{name}.dcm").read_bytes(), (shown,)) for name in _SMALL
    ]
    return members + [
        Member(f"DICOM {name}", (folder / f"{name}.dcm").read_bytes()) for name in _BUNDLED
    ]


@functools.cache
def build_corpus() -> tuple[Member, ...]:
    """Every member, in one order."""
    return (*build_jpegs(), *build_pngs(), *build_tiffs(), *build_dicoms(), *build_bundled())
