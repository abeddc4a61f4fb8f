"""Build sources for prepare.py and run the command on them."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import prepare
from tests.support.builders import Capture, expect_refusal

Snapshot = dict[str, tuple[bytes, int]]


def make_picture(seed: int) -> bytes:
    """Return a PNG of 8 x 8 px that differs for each seed."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def build_files(classes: tuple[str, ...] = ("A", "B"), n_each: int = 6) -> dict[str, bytes]:
    return {
        f"top/{label}/{number}.png": make_picture(100 * place + number)
        for place, label in enumerate(classes)
        for number in range(n_each)
    }


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in files.items():
            target.writestr(name, content)
    return path


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as target:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            target.addfile(member, io.BytesIO(content))
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


WRITERS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "zip": write_zip,
    "tar": write_tar,
    "tar.gz": lambda path, files: write_tar(path, files, "w:gz"),
    "folder": write_folder,
}


def take_snapshot(root: Path) -> Snapshot:
    """Return content and modification time of every file, and all folders, by relative path."""
    return {
        path.relative_to(root).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        if path.is_file()
        else (b"", 0)
        for path in root.rglob("*")
    }


def run(*argv: object) -> int:
    return prepare.main([str(part) for part in argv])


def refuse(root: Path, capsys: Capture, pattern: str, *argv: object) -> None:
    """Check that prepare.py fails with one line that has `pattern`, and leaves `root` as it was."""
    before = take_snapshot(root)
    capsys.readouterr()
    assert pattern in expect_refusal(capsys, run(*argv))
    assert take_snapshot(root) == before
