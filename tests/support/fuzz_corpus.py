"""Valid images of every kind that the reader supports, with the pixels they show."""

import functools
import gzip
import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from tests.support.dicom_files import BUNDLED, SECRETS, encode_dicom, encode_jpeg_dicom
from tests.support.mat_files import build_cheng, encode_v5, encode_v73

H, W = 24, 40
GREY = np.add.outer(4 * np.arange(H), 4 * np.arange(W)).astype(np.uint8)  # 0 to 248, smooth
DEEP = 16 * GREY.astype(np.uint16) + 15  # 15 to 3983: 12 bits
ROTATED = np.ascontiguousarray(GREY.T[:, ::-1])  # upright by EXIF orientation 6
BINARY = np.where(GREY > 127, 255, 0).astype(np.uint8)
# first row, first column, row step and column step of the passes of an interlaced PNG
_ADAM7 = ("0088", "0488", "4084", "0244", "2042", "0122", "1021")
_NOTE = f"{SECRETS['PatientName']} {SECRETS['PatientID']}"


Images = dict[str, tuple[Any, ...]]  # content and expected frames by format and name


@dataclass(frozen=True)
class Member:
    """An image and its expected frames within `tolerance`; none where they are unknown."""

    name: str
    content: bytes
    frames: tuple[npt.NDArray[np.uint8], ...]
    tolerance: int

    @property
    def format(self) -> str:
        """JPEG, PNG, TIFF, BMP, WebP, GIF, JPEG2000, PNM, DICOM, NIfTI or MATLAB."""
        return self.name.split()[0]


def encode(image: Image.Image | np.ndarray, format_: str, mode: str = "", **options: Any) -> bytes:
    """Return the file that Pillow writes, converted to `mode` if given."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, format_, **options)
    return buffer.getvalue()


def build_chunk(name: bytes, content: bytes) -> bytes:
    """Return a PNG chunk with its checksum."""
    checked = name + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def build_png(
    side: tuple[int, int], depth: int, colour: int, idat: bytes, *chunks: bytes, interlace: int = 0
) -> bytes:
    """Return a PNG of compressed rows; `chunks` precede them."""
    header = struct.pack(">IIBBBBB", *side, depth, colour, 0, 0, interlace)
    parts = (build_chunk(b"IHDR", header), *chunks, build_chunk(b"IDAT", idat))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + build_chunk(b"IEND", b"")


def compress_rows(*images: np.ndarray) -> bytes:
    """Return the compressed rows of PNG passes, big-endian and with filter 0."""
    rows = (row for values in images for row in values.astype(values.dtype.newbyteorder(">")))
    return zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))


def build_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = 6, _NOTE
    return exif


def build_jpegs() -> Images:
    jpegs: dict[str, dict[str, Any]] = {
        "grey": {"comment": _NOTE},
        "colour": {"mode": "RGB"},
        "full colour": {"mode": "RGB", "subsampling": 0, "optimize": True},
        "progressive": {"mode": "RGB", "progressive": True},
        "progressive grey": {"progressive": True},
        "restarts": {"mode": "RGB", "restart_marker_blocks": 1},
        "CMYK": {"mode": "CMYK"},
        "CMYK progressive": {"mode": "CMYK", "progressive": True},
    }
    images: Images = {
        f"JPEG {name}": (encode(GREY, "JPEG", quality=95, **options), GREY)
        for name, options in jpegs.items()
    }
    images["JPEG rotated"] = encode(GREY, "JPEG", quality=95, exif=build_exif()), ROTATED
    return images


def build_pngs() -> Images:
    rgba = np.dstack([GREY, GREY, GREY, np.full_like(GREY, 255)])
    rgba[:, W // 2 :, 3] = 0
    half = np.where(rgba[..., 3] > 0, GREY, 0).astype(np.uint8)
    palette = Image.fromarray(GREY // 64).convert("P")
    palette.putpalette([number for level in (0, 85, 170, 255) for number in [level] * 3])
    levels = np.array([0, 85, 170, 255], np.uint8)[GREY // 64]
    opaque = np.where(levels == 255, 0, levels).astype(np.uint8)
    wide = DEEP * 16
    deep_colour = compress_rows(np.dstack([GREY.astype(np.uint16) * 257] * 3))
    steps = [map(int, digits) for digits in _ADAM7]
    passes = [GREY[top::down, left::right] for top, left, down, right in steps]
    chunks = {
        b"gAMA": struct.pack(">I", 45455),
        b"tEXt": b"Author\0" + _NOTE.encode(),
        b"zTXt": b"Title\0\0" + zlib.compress(_NOTE.encode()),
        b"iTXt": b"Source\0\0\0en\0\0" + _NOTE.encode(),
        b"iCCP": b"none\0\0" + zlib.compress(bytes(128)),
    }
    texts = [build_chunk(*chunk) for chunk in chunks.items()]
    frames = [Image.fromarray(BINARY)] * 2
    encode(GREY, "PNG", save_all=True, append_images=frames)
    return {
        "PNG 1 bit": (encode(BINARY, "PNG", "1"), BINARY),
        "PNG grey": (encode(GREY, "PNG"), GREY),
        "PNG colour": (encode(GREY, "PNG", "RGB"), GREY),
        "PNG grey with alpha": (encode(rgba, "PNG", "LA"), half),
        "PNG RGBA": (encode(rgba, "PNG"), half),
        "PNG palette": (encode(palette, "PNG", bits=2), levels),
        "PNG palette with alpha": (encode(palette, "PNG", transparency=3), opaque),
        "PNG 16 bit": (encode(wide, "PNG"), np.rint(wide / 257).astype(np.uint8)),
        "PNG 12 in 16 bit": (encode(DEEP, "PNG"), np.rint(DEEP * (255 / 4095)).astype(np.uint8)),
        "PNG 16 bit colour": (build_png((W, H), 16, 2, deep_colour), GREY),
        "PNG interlaced": (build_png((W, H), 8, 0, compress_rows(*passes), interlace=1), GREY),
        "PNG animated": (
            encode(GREY, "PNG", save_all=True, append_images=frames),
            GREY,
            BINARY,
            BINARY,
        ),
        "PNG rotated": (encode(GREY, "PNG", exif=build_exif()), ROTATED),
        "PNG texts": (build_png((W, H), 8, 0, compress_rows(GREY), *texts), GREY),
    }


def build_tiffs_and_bmps() -> Images:
    tags, pages = {270: _NOTE}, [Image.fromarray(GREY)]
    images: Images = {
        "TIFF grey": (encode(GREY, "TIFF", tiffinfo=tags), GREY),
        "TIFF rotated": (encode(GREY, "TIFF", exif=build_exif()), ROTATED),
        "TIFF 16 bit": (encode(DEEP * 16, "TIFF"), np.rint(DEEP * (16 / 257)).astype(np.uint8)),
        "TIFF float": (encode((GREY / 255).astype(np.float32), "TIFF"), GREY),
        "TIFF pages": (encode(GREY, "TIFF", save_all=True, append_images=pages), GREY, GREY),
        "TIFF CMYK": (encode(GREY, "TIFF", "CMYK"), GREY),
        "TIFF fax": (encode(BINARY, "TIFF", "1", compression="group4"), BINARY),
        "BMP grey": (encode(GREY, "BMP"), GREY),
        "BMP colour": (encode(GREY, "BMP", "RGB"), GREY),
        "BMP 1 bit": (encode(BINARY, "BMP", "1"), BINARY),
    }
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        content = encode(GREY, "TIFF", "RGB", compression=compression, tiffinfo=tags)
        images[f"TIFF {compression}"] = content, GREY
    images["TIFF jpeg"] = encode(GREY, "TIFF", compression="jpeg", quality=95), GREY
    return images


def build_others() -> Images:
    frames: dict[str, Any] = {"save_all": True, "append_images": [Image.fromarray(BINARY)]}
    header = f"{W} {H}\n".encode()
    twelve = np.rint(DEEP * (255 / 4095)).astype(np.uint8)
    bits = np.packbits(BINARY == 0, axis=1).tobytes()
    " ".join(map(str, GREY.flat)).encode()
    wide = np.rint(DEEP * (16 / 257)).astype(np.uint8)
    samples = [(scale * DEEP).astype(">u2").tobytes() for scale in (1, 16)]
    return {
        "WebP grey": (encode(GREY, "WEBP", lossless=True), GREY),
        "WebP lossy": (encode(GREY, "WEBP", quality=90), GREY),
        "WebP animated": (encode(GREY, "WEBP", lossless=True, **frames), GREY, BINARY),
        "WebP rotated": (encode(GREY, "WEBP", lossless=True, exif=build_exif()), ROTATED),
        "GIF grey": (encode(GREY, "GIF"), GREY),
        "GIF animated": (encode(GREY, "GIF", **frames), GREY, BINARY),
        "JPEG2000 grey": (encode(GREY, "JPEG2000"), GREY),
        "JPEG2000 colour": (encode(GREY, "JPEG2000", "RGB"), GREY),
        "JPEG2000 codestream": (encode(GREY, "JPEG2000", no_jp2=True), GREY),
        "PNM grey": (encode(GREY, "PPM"), GREY),
        "PNM colour": (encode(GREY, "PPM", "RGB"), GREY),
        "PNM 1 bit": (b"P4\n" + header + bits, BINARY),
        "PNM text": (
            b"P2\n# note\n" + header + b"255\n" + " ".join(map(str, GREY.flat)).encode(),
            GREY,
        ),
        "PNM 12 bit": (b"P5\n" + header + b"4095\n" + samples[0], twelve),
        "PNM 16 bit": (b"P5\n" + header + b"65535\n" + samples[1], wide),
    }


def build_dicoms() -> Images:
    both = np.stack([GREY, GREY[::-1]])
    window: dict[str, Any] = {"WindowCenter": "2048", "WindowWidth": "4096"}
    table = (np.arange(256, dtype="<u2") * 257).tobytes()
    palette: dict[str, Any] = {}
    for colour in ("Red", "Green", "Blue"):
        palette[f"{colour}PaletteColorLookupTableData"] = table
        palette[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
    # a window of 4096 about 2048: v becomes (v - 2047.5) / 4095 + 0.5
    windowed = np.rint(DEEP * (255 / 4095)).astype(np.uint8)
    rescaled = (DEEP.astype(np.int32) - 1024).astype(np.int16)
    rescale = {"RescaleSlope": "1", "RescaleIntercept": "1024"}
    return {
        "DICOM 8 bit": (encode_dicom(GREY), GREY),
        "DICOM MONOCHROME1": (encode_dicom(255 - GREY, "MONOCHROME1"), GREY),
        "DICOM 16 bit": (encode_dicom(DEEP), windowed),
        "DICOM windowed": (encode_dicom(DEEP, **window), windowed),
        "DICOM rescaled": (encode_dicom(rescaled, **rescale, **window), windowed),
        "DICOM frames": (encode_dicom(both, n_frames=2), *both),
        "DICOM colour": (encode_dicom(np.dstack([GREY] * 3), "RGB"), GREY),
        "DICOM palette": (encode_dicom(GREY, "PALETTE COLOR", **palette), GREY),
        "DICOM RLE": (encode_dicom(DEEP, syntax=RLELossless), windowed),
        "DICOM RLE frames": (encode_dicom(both, n_frames=2, syntax=RLELossless), *both),
        "DICOM 12 bit JPEG": (encode_jpeg_dicom(DEEP, 12, **window), windowed),
        "DICOM lossless 8 bit": (encode_jpeg_dicom(GREY, 8, predictor=1), GREY),
        "DICOM lossless 12 bit": (encode_jpeg_dicom(DEEP, 12, 7, **window), windowed),
        "DICOM lossless 16 bit": (encode_jpeg_dicom(DEEP, 16, 1, **window), windowed),
        "DICOM deflated": (encode_dicom(DEEP, syntax=DeflatedExplicitVRLittleEndian), windowed),
    }


def build_volumes() -> Images:
    """Return NIfTI volumes of two axial slices, and MATLAB files of Cheng et al.

    An axial slice shows the voxels [R, A] with R to the left and A up.
    """
    both = [GREY, GREY[:, ::-1]]
    images: Images = {}
    for name, kind in (("1", nibabel.Nifti1Image), ("2", nibabel.Nifti2Image)):
        volume = np.stack([frame.T[::-1, ::-1] for frame in both], axis=2)
        image = kind(volume, np.diag([1, 1, 3, 1]))
        image.header["descrip"] = _NOTE.encode()
        images[f"NIfTI {name}"] = image.to_bytes(), *both
        images[f"NIfTI {name} gzip"] = gzip.compress(image.to_bytes(), mtime=0), *both
    variables = build_cheng(GREY)
    images["MATLAB 5"] = encode_v5(variables, False), GREY
    images["MATLAB 5 deflated"] = encode_v5(variables), GREY
    images["MATLAB 7.3"] = encode_v73(variables), GREY
    return images


# one image in several transfer syntaxes
ENDINGS = ("", "_RLE", "_bigendian", "_expb", "_implicit", "_padded", "_jp2klossless")
SMALL = [f"MR_small{ending}" for ending in (*ENDINGS, "_jpeg_ls_lossless")]
OTHERS = (
    *("JPEG-lossy", "JPGExtended", "JPEG2000", "JPEGLSNearLossless_08", "JPEGLSNearLossless_16"),
    *("SC_rgb_jpeg_gdcm", "SC_rgb_jpeg_dcmtk", "SC_rgb_jls_lossy_line", "SC_rgb_dcmtk_+eb+cy+n1"),
    *("SC_rgb_jls_lossy_sample", "693_J2KI", "SC_rgb_rle_32bit_2frame", "image_dfl", "rtdose_rle"),
    *("SC_rgb_small_odd_jpeg", "GDCMJ2K_TextGBR", "liver_expb_1frame"),
)


def build_bundled() -> Images:
    """Return files of pydicom: one image in several transfer syntaxes, and others."""
    folder = BUNDLED / "test_files"
    values = dcmread(folder / "MR_small.dcm").pixel_array.astype(float)
    # its window: 1600 about 600
    shown = np.rint(255 * np.clip((values - 599.5) / 1599 + 0.5, 0, 1)).astype(np.uint8)
    frames = dict.fromkeys(SMALL, (shown,)) | dict.fromkeys(OTHERS, ())
    return {
        f"DICOM {name}": ((folder / f"{name}.dcm").read_bytes(), *expected)
        for name, expected in frames.items()
    }


@functools.cache
def build_corpus() -> tuple[Member, ...]:
    """Return all members in a fixed order."""
    images = build_jpegs() | build_pngs() | build_tiffs_and_bmps()
    images |= build_others() | build_dicoms() | build_volumes()
    return tuple(
        Member(
            name, content, tuple(frames), 6 if {"JPEG", "jpeg", "lossy"} & set(name.split()) else 0
        )
        for name, (content, *frames) in (images | build_bundled()).items()
    )
