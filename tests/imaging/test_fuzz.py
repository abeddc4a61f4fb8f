"""Damaged pictures: each is read right or refused by name, soon and in little memory."""

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from imaging.grayscale import MAX_SCANS, ImageError
from imaging.reader import read_frames, read_grey
from tests.support.builders import ROOT
from tests.support.dicom_files import HIDDEN
from tests.support.fuzz_corpus import GREY, Member, build_chunk, build_corpus, encode
from tests.support.fuzz_mutations import write_tag

WORKER = ROOT / "tests" / "support" / "fuzz_worker.py"
SEED = 1


@pytest.mark.parametrize(
    ("n_mutants", "n_bombs"), [(300, 3), pytest.param(20_000, 99, marks=pytest.mark.slow)]
)
@pytest.mark.timeout(3600)
def test_damaged_pictures_are_read_right_or_refused_by_name(
    tmp_path: Path, n_mutants: int, n_bombs: int
) -> None:
    report = tmp_path / "report.json"
    numbers = (str(number) for number in (0, n_mutants, n_bombs, SEED))
    ended = subprocess.run(
        [sys.executable, "-W", "always", str(WORKER), *numbers, str(report)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}",
            "OMP_NUM_THREADS": "1",
        },
        check=False,
    )
    now = report.with_name("report.json.now")
    told = f"{ended.stderr}\nseed {SEED}, {now.read_text() if now.exists() else 'nothing read'}"
    assert ended.returncode == 0, told
    found = json.loads(report.read_text())
    print(json.dumps({key: found[key] for key in found if key != "faults"}))
    assert not found["faults"], found["faults"][:20]
    assert found["n"] == found["read"] + found["refused"]
    assert found["n"] >= n_mutants + 3
    # neither may all be refused, nor none
    assert 0.2 * n_mutants < found["read"] < 0.8 * n_mutants
    # libtiff has words of its own for damage; they hold nothing of the file's texts
    assert not [part for part in HIDDEN if part in ended.stderr.lower()], ended.stderr
    assert "Warning: " not in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("member", build_corpus(), ids=lambda member: member.name)
def test_undamaged_pictures_show_what_they_should(member: Member) -> None:
    if member.name == "DICOM JPEG-lossy":  # a file of pydicom's that no decoder takes
        with pytest.raises(ImageError, match="damaged DICOM"):
            list(read_frames(member.content))
        return
    frames = list(read_frames(member.content))
    assert frames
    for pixels, known in zip(frames, member.frames or frames, strict=True):
        np.testing.assert_allclose(pixels.astype(int), known, rtol=0, atol=member.tolerance)


def test_png_whose_pixels_are_unlike_their_checksum_is_refused() -> None:
    content = encode(GREY, "PNG")
    start = content.index(b"IDAT")
    n_bytes = int.from_bytes(content[start - 4 : start])
    packed = content[start + 4 : start + 4 + n_bytes]
    other = bytearray(zlib.decompress(packed))
    other[20] ^= 255
    changed = build_chunk(b"IDAT", zlib.compress(bytes(other)))
    head, tail = content[: start - 4], content[start + 8 + n_bytes :]
    assert read_grey(head + changed + tail).shape == GREY.shape
    with pytest.raises(ImageError, match=r"^damaged \(its pixels are unlike their checksum\)$"):
        read_grey(head + changed[:-4] + content[start + 4 + n_bytes :])
    with pytest.raises(ImageError, match=r"^cut short$"):
        read_grey(head + changed[:-1])


def test_what_pillow_does_not_know_is_no_number_alone() -> None:
    content = write_tag(encode(GREY, "TIFF"), struct.pack("<HHI", 259, 3, 1), 43291)  # compression
    with pytest.raises(ImageError, match=r"^damaged \(a number in it is unknown\)$"):
        read_grey(content)


def test_jpeg_of_more_scans_than_any_picture_has_is_refused() -> None:
    content = encode(GREY, "JPEG", progressive=True)
    place = content.rindex(b"\xff\xda")
    for times, is_read in ((MAX_SCANS // 2, True), (MAX_SCANS + 1, False)):
        longer = content[:place] + content[place:-2] * times + content[-2:]
        if is_read:
            assert read_grey(longer).shape == GREY.shape
        else:
            with pytest.raises(ImageError, match=r"^damaged \(more than 100 scans\)$"):
                read_grey(longer)
    # a film, say, that a telephone hangs on behind the end
    assert read_grey(content + b"\xff\xda\0\x02" * 1000).shape == GREY.shape
