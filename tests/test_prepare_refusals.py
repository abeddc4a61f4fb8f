"""Sources that prepare.py refuses, before anything is written."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.support.sources import build_files, picture, refuse, write_zip


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def large_picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (8001, 8000)).save(buffer, "PNG")
    return buffer.getvalue()


REFUSED: dict[str, tuple[Callable[[], dict[str, bytes]], str]] = {
    "leaves the folder": (lambda: build_files() | {"../x.png": picture(1)}, "leaves the folder"),
    "absolute": (lambda: build_files() | {"/x/y.png": picture(1)}, "is no plain path"),
    "no pictures": (lambda: {"top/A/notes.txt": b"x"}, "no pictures in it"),
    "one class": (lambda: build_files(("A",)), "one class only (A)"),
    "no class folder": (lambda: build_files() | {"x.png": picture(1)}, "is in no class folder"),
    "case": (lambda: build_files(("A", "a")), "class folders A and a"),
    "pixel limit": (
        lambda: build_files() | {"top/A/large.png": large_picture()},
        "large.png: 8001 x 8000 pixels, over the limit of 17 million",
    ),
    "unreadable": (
        lambda: build_files() | {f"top/A/bad{n}.png": b"bad" for n in range(2)},
        "2 of 14 images cannot be read, more than 5% (Images/A/bad0.png, Images/A/bad1.png",
    ),
    "one class readable": (
        lambda: build_files(("A",), 30) | {"top/B/1.png": b"bad"},
        "one class only (A)",
    ),
    "too few to split": (
        lambda: build_files() | {"top/C/1.png": picture(1), "top/C/2.png": picture(2)},
        "class 'C' has 2 group(s)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_sources_are_refused_before_anything_is_written(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build, pattern = REFUSED[case]
    source = write_zip(tmp_path / "source.zip", build())
    refuse(tmp_path, capsys, pattern, source, "--data", tmp_path / "data")


def test_archives_that_are_none_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    refuse(tmp_path, capsys, "no such file or folder", tmp_path / "absent.zip", "--data", data)
    (tmp_path / "text.zip").write_text("no archive " * 100)
    refuse(tmp_path, capsys, "no .zip, .tar", tmp_path / "text.zip", "--data", data)
    source = write_zip(tmp_path / "source.zip", build_files())
    cut(source, 0.7)
    refuse(tmp_path, capsys, "cut short or damaged", source, "--data", data)


def test_encrypted_and_damaged_archives_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_zip(tmp_path / "source.zip", build_files())
    good = source.read_bytes()
    locked = bytearray(good)
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    source.write_bytes(locked)
    refuse(tmp_path, capsys, "is encrypted", source, "--data", tmp_path / "data")
    damaged = bytearray(good)
    damaged[good.index(b"IDAT") + 10] ^= 0xFF
    source.write_bytes(damaged)
    refuse(tmp_path, capsys, "cut short or damaged", source, "--data", tmp_path / "data")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_in_a_tar_are_refused(
    kind: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source.tar"
    with tarfile.open(source, "w") as target:
        member = tarfile.TarInfo("A/1.png")
        member.type, member.linkname = kind, "../../elsewhere.png"
        target.addfile(member)
    refuse(tmp_path, capsys, "is a link", source, "--data", tmp_path / "data")
