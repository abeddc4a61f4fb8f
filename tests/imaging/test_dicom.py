"""DICOM files: recognition, headers, refusals, and no patient data in any output."""

import hashlib
import io
import logging
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

import imaging.dicom
from imaging.dicom import hash_patient, is_placeholder, read_header
from imaging.grayscale import ImageError, ImageTooLargeError
from imaging.kinds import has_preamble, is_dicom
from imaging.reader import read_frames, read_grey, read_mode, read_patient, read_size
from tests.support.builders import ROOT
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
NO_PIXELS, DIRECTORY = "a DICOM file without pixel data", "a DICOMDIR index"
REASONS = (NO_PIXELS, DIRECTORY, "compressed with ", "truncated", "damaged DICOM (", "not a JPEG")


# ---- recognition


@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True), (False, False)])
def test_files_without_preamble_are_recognized(implicit: bool, little: bool) -> None:
    data = build_dataset(ROW)
    del data.file_meta
    buffer = io.BytesIO()
    data.save_as(buffer, implicit_vr=implicit, little_endian=little)
    content = buffer.getvalue()
    assert is_dicom(content[:132])
    assert not has_preamble(content[:132])
    assert read_grey(content).tolist() == [[0, 100, 255]]
    assert is_dicom(encode_dicom(ROW)[132:])  # begins with the file meta information


def test_other_files_are_not_dicom() -> None:
    for start in (b"", b"\x08\0", bytes(132), b"PatientName: hidden" * 9, b"\x08\0\x05\0" * 33):
        assert not is_dicom(start[:132])


def test_files_of_pydicom_are_read_or_refused() -> None:
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
    assert refused["MR_truncated.dcm"] == refused["rtplan_truncated.dcm"] == "truncated"
    assert refused["rtstruct.dcm"].startswith(NO_PIXELS)
    assert refused["DICOMDIR"] == refused["DICOMDIR-bigEnd"]
    assert refused["DICOMDIR"].startswith(DIRECTORY)


# ---- headers and refusals


def test_several_frames_are_not_one_image() -> None:
    content = encode_dicom(np.stack([ROW] * 2), n_frames=2)
    with pytest.raises(ImageError, match="2 frames instead of one"):
        read_grey(content)
    assert read_size(content) == (3, 1)
    assert read_mode(content) == "MONOCHROME2 8-bit"
    assert read_header(content).n_frames == 2


def test_deflated_files(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode_dicom(NOISE, syntax=DeflatedExplicitVRLittleEndian)
    with pytest.raises(ImageError, match="truncated"):
        read_grey(content[:-40])
    with pytest.raises(ImageError, match="FileMetaInformationGroupLength is missing"):
        read_grey(content.replace(b"UL\4\0", b"UN\4\0", 1))
    monkeypatch.setattr(imaging.dicom, "MAX_INFLATED_BYTES", 100)
    with pytest.raises(ImageTooLargeError, match="inflates to more than"):
        read_size(content)


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"Rows": 9000, "Columns": 9000}, "^9000 x 9000 pixels, over the limit of 6 mi"),
        ({"Rows": 0}, "image of 3 x 0 pixels"),
        ({"NumberOfFrames": 10_001}, "NumberOfFrames is over 10,000"),
        ({"PhotometricInterpretation": "HIDDEN"}, "PhotometricInterpretation is missing or unk"),
        ({"SamplesPerPixel": 3}, "description of its pixels is invalid"),
        ({"BitsAllocated": 4711}, "description of its pixels is invalid"),
        ({"NumberOfFrames": -1}, "description of its pixels is invalid"),
        ({"Columns": None}, "Columns is missing"),
    ],
)
def test_invalid_headers_are_refused(elements: dict[str, Any], reason: str) -> None:
    for read in (read_grey, read_size, read_mode):
        with pytest.raises(ImageError, match=reason) as caught:
            read(encode_dicom(ROW, **elements))
        assert_nothing_hidden(str(caught.value))
        assert isinstance(caught.value, ImageTooLargeError) == ("limit of" in reason)


# ---- patient data


def assert_nothing_hidden(text: str) -> None:
    assert not [part for part in HIDDEN if part in text.lower()], text


def test_pseudonym_of_patient_and_issuer() -> None:
    pseudonym = hash_patient(SECRETS["PatientID"], SECRETS["IssuerOfPatientID"])
    assert read_patient(encode_dicom(ROW)) == pseudonym
    assert read_patient(encode_dicom(ROW, PatientID="")) == ""
    content = encode_dicom(ROW, PatientID="  17 ", IssuerOfPatientID=None)
    assert read_patient(content) == hash_patient("17")


PLACEHOLDERS = (
    *("0", "000", "---", "XXXX", "N/A", "none", "NULL", "anon", "unknown", "not available"),
    *("ANONYMOUS", "Anonymized^Patient", "anonymisiert", "anónimo", "De-Identified"),
    *("PATIENT_ID", "No Name"),
)


@pytest.mark.parametrize("text", PLACEHOLDERS)
def test_placeholders_are_no_patients(text: str) -> None:
    assert is_placeholder(text)
    assert read_patient(encode_dicom(ROW, PatientID=text)) == ""


@pytest.mark.parametrize("text", ["1", "P0", "anon1", "ID_07", "Anna", "X1", "patient 3", "noah"])
def test_short_ids_are_patients(text: str) -> None:
    assert not is_placeholder(text)


def test_pseudonym_of_series() -> None:
    uids = (SECRETS["SeriesInstanceUID"], "1.2.3", "")
    series = [read_header(encode_dicom(ROW, SeriesInstanceUID=uid)).series for uid in uids]
    assert series[0] != series[1]
    assert [len(each) for each in series] == [16, 16, 0]


def test_pseudonym_is_fixed_and_not_a_plain_hash() -> None:
    assert hash_patient("17") == "p25963db4169e03c9"
    assert hash_patient("17") != hash_patient("17", "clinic") != hash_patient("18", "clinic")
    assert hashlib.sha256(b"17").hexdigest()[:16] not in hash_patient("17")
    assert hash_patient("") == hash_patient("", "clinic") == ""


def build_invalid() -> dict[str, bytes]:
    """Return files that fail in many ways, most of them with a secret as the invalid value."""
    rle = encode_dicom(NOISE, syntax=RLELossless)
    whole = encode_dicom(NOISE, RescaleSlope="1.25", WindowCenter="10", WindowWidth="20")
    latin = encode_dicom(ROW, SpecificCharacterSet="ISO_IR 100")
    header = build_dataset(NOISE)
    del header.PixelData
    return {
        "truncated": whole[:-50],
        "truncated header": whole[:500],
        "no pixels": encode_dataset(header),
        "transfer syntax": rle.replace(RLELossless.encode(), b"1.2.3.4711.55.66.77"),
        "RLE": rle.replace(b"\2\0\0\0\x40\0\0\0", b"\x63\0\0\0\x40\0\0\0"),
        "number": whole.replace(b"1.25", b"^471"),
        "character set": latin.replace(b"ISO_IR 100", b"HIDDEN4711"),
        "photometric": whole.replace(b"MONOCHROME2", b"HIDDEN^4711"),
        "length": whole.replace(b"LO\x0c\0hidden-4711", b"LO\xff\xffhidden-4711"),
        "many frames": encode_dicom(NOISE, NumberOfFrames=9),
    }


INVALID = build_invalid()


@pytest.mark.parametrize("name", INVALID)
def test_messages_contain_no_patient_data(
    name: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    lines = []
    for read in (read_grey, read_mode, read_patient, lambda source: list(read_frames(source))):
        try:
            read(INVALID[name])
        except ImageError as error:
            lines += traceback.format_exception(error)
    captured = capfd.readouterr()
    lines = [line for line in lines if not line.lstrip().startswith("File ")]
    assert_nothing_hidden("".join([*lines, caplog.text, captured.out, captured.err]))


SCRIPT = """
import sys
from pathlib import Path
import imaging.reader
assert "pydicom" not in sys.modules, "imported before the first DICOM file"
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        list(imaging.reader.read_frames(path))
    except imaging.reader.ImageError as error:
        print(error.reason)
assert "pydicom" in sys.modules
"""


@pytest.mark.integration
def test_new_process_prints_no_warning(tmp_path: Path) -> None:
    for name, content in INVALID.items():
        (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-W", "always", "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stderr == ""
    # an unknown character set does not affect the pixels
    assert len(done.stdout.splitlines()) == len(INVALID) - 1
    assert "compressed with an unknown transfer syntax, which is not supported" in done.stdout
    assert_nothing_hidden(done.stdout)
