"""DICOM that cannot be read: limits, damage, and nothing said of the patient."""

import hashlib
import logging
import struct
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import UID, RLELossless

from imaging.dicom import hash_patient, read_header
from imaging.grayscale import ImageError, ImageTooLargeError
from imaging.reader import read_frames, read_grey, read_mode, read_patient, read_size
from tests.support.dicom_files import (
    BUNDLED,
    HIDDEN,
    SECRETS,
    build_dataset,
    encode_dataset,
    encode_dicom,
)

ROW = np.array([[0, 100, 255]], np.uint8)
NOISE = np.random.default_rng(0).integers(0, 4096, (12, 10), dtype=np.uint16)

REASONS = (
    "a DICOM file without pixels (a report or a plan)",
    "a DICOMDIR, which lists other files; give those instead",
    "compressed by ",
    "cut short",
    "damaged DICOM (",
    "not a JPEG, PNG, TIFF, BMP or DICOM picture",
)


def test_every_file_that_pydicom_brings_along() -> None:
    paths = sorted(path for path in BUNDLED.rglob("*") if path.is_file())
    paths = [path for path in paths if path.suffix in {".dcm", ""} or path.name[0] == "D"]
    n_read, refused = 0, {}
    for path in paths:
        try:
            n_read += len(list(read_frames(path))) > 0
        except ImageError as error:
            refused[path.name] = error.reason
    assert n_read >= 95
    assert all(reason.startswith(REASONS) for reason in refused.values())
    assert refused["MR_truncated.dcm"] == refused["rtplan_truncated.dcm"] == "cut short"
    assert refused["rtstruct.dcm"] == REASONS[0]
    assert refused["DICOMDIR"] == refused["DICOMDIR-bigEnd"] == REASONS[1]


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_cut_short_is_an_error(packed: bool) -> None:
    data = build_dataset(NOISE)
    if packed:
        data.compress(RLELossless, encoding_plugin="pydicom")
    content = encode_dataset(data)
    for share in (0.3, 0.5, 0.7, 0.95):
        with pytest.raises(ImageError, match="cut short"):
            read_grey(content[: int(len(content) * share)])


def test_no_pixels() -> None:
    data = build_dataset(ROW)
    del data.PixelData
    with pytest.raises(ImageError, match="a DICOM file without pixels"):
        read_grey(encode_dataset(data))


def test_limits_are_found_in_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode_dicom(ROW, Rows=9000, Columns=9000)
    for reader in (read_grey, read_size, read_mode):
        with pytest.raises(
            ImageTooLargeError, match=r"^9000 x 9000 pixels, over the limit of 6 mi"
        ):
            reader(content)
    with pytest.raises(ImageError, match="a picture of 3 x 0 pixels"):
        read_size(encode_dicom(ROW, Rows=0))
    with pytest.raises(ImageError, match=r"^NumberOfFrames is over 10,000$"):
        read_size(encode_dicom(ROW, NumberOfFrames=10_001))


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"PhotometricInterpretation": "HIDDEN"}, "PhotometricInterpretation is missing or unk"),
        ({"SamplesPerPixel": 3}, "its pixels are described wrongly"),
        ({"BitsAllocated": 4711}, "its pixels are described wrongly"),
        ({"NumberOfFrames": -1}, "its pixels are described wrongly"),
        ({"Columns": None}, "Columns is missing"),
    ],
)
def test_wrong_descriptions_of_pixels(elements: dict[str, Any], reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        read_grey(encode_dicom(ROW, **elements))
    assert_nothing_hidden(str(caught.value))


def test_ways_of_packing_are_named_when_the_standard_has_a_name_for_them() -> None:
    data = build_dataset(NOISE)
    data.compress(RLELossless, encoding_plugin="pydicom")
    data.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.102")
    with pytest.raises(ImageError) as caught:
        read_grey(encode_dataset(data))
    assert caught.value.reason.startswith("compressed by MPEG-4 AVC/H.264 High Profile")
    assert caught.value.reason.endswith(", which cannot be decoded here")
    with pytest.raises(ImageError) as caught:
        read_grey(make_private(data))
    reason = "compressed by an unknown transfer syntax, which cannot be decoded here"
    assert caught.value.reason == reason


@pytest.mark.parametrize("name", ["MR_small_jp2klossless", "MR_small_jpeg_ls_lossless"])
def test_compressed_pixels_may_not_be_larger_than_the_header_says(name: str) -> None:
    content = (BUNDLED / "test_files" / f"{name}.dcm").read_bytes()
    siz, sof = content.find(b"\xff\x4f\xff\x51"), content.find(b"\xff\xf7")
    place = siz + 8 + 2 if siz > 0 else sof + 5  # 64 pixels, which become 64 * 257
    assert content[place : place + 2] == b"\0\x40"
    content = content[:place] + b"\x40\x40" + content[place + 2 :]
    with pytest.raises(ImageError, match="compressed pixels of another size than its header's"):
        read_grey(content)


def build_boxed(*boxes: tuple[bytes, bytes]) -> bytes:
    """A DICOM file whose pixels are boxes of a JP2 file, after the one by which it is known."""
    data = dcmread(BUNDLED / "test_files" / "MR_small_jp2klossless.dcm")
    plain = next(generate_frames(data.PixelData, number_of_frames=1))
    content = bytes.fromhex("0000000c6a5020200d0a870a")
    for kind, inside in boxes:
        inside = inside.replace(b"PLAIN", plain)
        content += struct.pack(">I4s", 8 + len(inside), kind) + inside
    data.PixelData = encapsulate([content])
    return encode_dataset(data)


SIZ = b"\xff\x4f\xff\x51" + struct.pack(">HHIIII", 41, 0, 64, 64, 0, 0)
LARGE = b"\xff\x4f\xff\x51" + struct.pack(">HHIIII", 41, 0, 64000, 64000, 0, 0)
ONE_SAMPLE = struct.pack(">IIIIH", 64, 64, 0, 0, 1) + bytes(64)


@pytest.mark.parametrize(
    "boxes",
    [
        [(b"xml ", SIZ + ONE_SAMPLE), (b"jp2c", LARGE + ONE_SAMPLE)],
        [(b"jp2h", struct.pack(">I4s", 12, b"pclr") + bytes(4)), (b"jp2c", SIZ + ONE_SAMPLE)],
        [
            (b"jp2h", struct.pack(">I4s", 99, b"jp2c") + SIZ + ONE_SAMPLE),
            (b"jp2c", LARGE + ONE_SAMPLE),
        ],
    ],
)
def test_the_size_of_jpeg_2000_is_not_to_be_hidden_by_boxes(
    boxes: list[tuple[bytes, bytes]],
) -> None:
    with pytest.raises(ImageError, match="compressed pixels of another size than its header's"):
        read_grey(build_boxed(*boxes))


def test_jpeg_2000_may_lie_in_boxes() -> None:
    header = struct.pack(">I4sIIHBBBB", 22, b"ihdr", 64, 64, 1, 0x8F, 7, 0, 0)
    header += struct.pack(">I4sBBBI", 15, b"colr", 1, 0, 0, 17)
    boxed = build_boxed((b"ftyp", b"jp2 \0\0\0\0jp2 "), (b"jp2h", header), (b"jp2c", b"PLAIN"))
    plain = (BUNDLED / "test_files" / "MR_small_jp2klossless.dcm").read_bytes()
    assert np.array_equal(read_grey(boxed), read_grey(plain))


ENCODED = [
    encode_dicom(ROW),
    *(
        (BUNDLED / "test_files" / f"{name}.dcm").read_bytes()
        for name in ("MR_small_jp2klossless", "MR_small_jpeg_ls_lossless", "MR_small_RLE")
    ),
    (BUNDLED / "test_files" / "SC_rgb_rle_2frame.dcm").read_bytes(),
]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(ENCODED),
    st.lists(st.tuples(st.integers(128, 10_000), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_altered_files_give_arrays_or_an_image_error(
    content: bytes, changes: list[tuple[int, int]]
) -> None:
    altered = bytearray(content)
    for place, value in changes:
        altered[place % len(altered)] = value
    reason, shapes = "", set()
    try:
        shapes |= {(pixels.ndim, pixels.dtype.name) for pixels in read_frames(bytes(altered))}
    except ImageError as error:
        reason = error.reason
    assert shapes <= {(2, "uint8")}
    assert shapes or len(reason.splitlines()) == 1


# ---- the patient


def make_private(data: Dataset) -> bytes:
    """The bytes of packed data under a transfer syntax of nobody's."""
    data.file_meta.TransferSyntaxUID = RLELossless
    return encode_dataset(data).replace(RLELossless.encode(), b"1.2.3.4711.55.66.77")


def assert_nothing_hidden(text: str) -> None:
    found = [part for part in HIDDEN if part in text.lower()]
    assert not found, text


def test_pseudonyms_are_of_the_patient_and_the_issuer() -> None:
    pseudonym = hash_patient(SECRETS["PatientID"], SECRETS["IssuerOfPatientID"])
    assert read_patient(encode_dicom(ROW)) == pseudonym
    assert read_patient(encode_dicom(ROW, PatientID="")) == ""
    assert read_patient(encode_dicom(ROW, PatientID="  17 ", IssuerOfPatientID=None)) == (
        hash_patient("17")
    )


def test_a_series_has_a_pseudonym() -> None:
    series = read_header(encode_dicom(ROW)).series
    assert len(series) == 16
    assert series != read_header(encode_dicom(ROW, SeriesInstanceUID="1.2.3")).series
    assert read_header(encode_dicom(ROW, SeriesInstanceUID="")).series == ""


def test_a_pseudonym_never_changes_and_is_no_plain_hash() -> None:
    assert hash_patient("17") == "p25963db4169e03c9"
    assert hash_patient("17") != hash_patient("17", "clinic") != hash_patient("18", "clinic")
    assert hashlib.sha256(b"17").hexdigest()[:16] not in hash_patient("17")
    assert hash_patient("") == hash_patient("", "clinic") == ""


def build_broken() -> dict[str, bytes]:
    """Files that fail in many ways, most with a value of the patient's at fault."""
    odd = build_dataset(NOISE)
    odd.compress(RLELossless, encoding_plugin="pydicom")
    packed = encode_dataset(odd)
    whole = encode_dicom(NOISE, RescaleSlope="1.25", WindowCenter="10", WindowWidth="20")
    latin = encode_dicom(ROW, SpecificCharacterSet="ISO_IR 100")
    without = build_dataset(NOISE)
    del without.PixelData
    return {
        "cut": whole[:-50],
        "cut in the header": whole[:500],
        "no pixels": encode_dataset(without),
        "packing": make_private(odd),
        "run lengths": packed.replace(b"\2\0\0\0\x40\0\0\0", b"\x63\0\0\0\x40\0\0\0"),
        "number": whole.replace(b"1.25", b"^471"),
        "character set": latin.replace(b"ISO_IR 100", b"HIDDEN4711"),
        "kind": whole.replace(b"MONOCHROME2", b"HIDDEN^4711"),
        "length": whole.replace(b"LO\x0c\0hidden-4711", b"LO\xff\xffhidden-4711"),
        "many frames": encode_dicom(NOISE, NumberOfFrames=9),
    }


BROKEN = build_broken()


@pytest.mark.parametrize("name", BROKEN)
def test_no_message_says_who_the_patient_is(
    name: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    said = []
    for reader in (read_grey, read_mode, read_patient, lambda source: list(read_frames(source))):
        try:
            reader(BROKEN[name])
        except ImageError as error:
            said += traceback.format_exception(error)
    captured = capfd.readouterr()
    lines = [line for line in said if not line.lstrip().startswith("File ")]
    assert_nothing_hidden("".join([*lines, caplog.text, captured.out, captured.err]))


QUIET = """
import sys
from pathlib import Path
from typing import Any
import imaging.reader
assert "pydicom" not in sys.modules, "imported before a DICOM was met"
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        list(imaging.reader.read_frames(path))
    except imaging.reader.ImageError as error:
        print(error.reason)
assert "pydicom" in sys.modules
"""


def test_a_new_process_warns_of_nothing(tmp_path: Path) -> None:
    for name, content in BROKEN.items():
        (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-W", "always", "-c", QUIET, str(tmp_path)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    assert done.stderr == ""
    # an unknown set of characters hides no pixels
    assert len(done.stdout.splitlines()) == len(BROKEN) - 1
    assert_nothing_hidden(done.stdout)
