"""Sources for prepare.py, and prepare.py run on them."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import prepare

Snapshot = dict[str, tuple[bytes, int]]


def picture(seed: int, side: int = 8) -> bytes:
    """A small PNG that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def build_files(classes: tuple[str, ...] = ("A", "B"), n_each: int = 6) -> dict[str, bytes]:
    return {
        f"top/{label}/{number}.png": picture(100 * place + number)
        for place, label in enumerate(classes)
        for number in range(n_each)
    }


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as target:
        for name, content in files.items():
            target.writestr(name, content)
    return path


def take_snapshot(root: Path) -> Snapshot:
    return {
        path.relative_to(root).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file()
    } | {path.relative_to(root).as_posix(): (b"", 0) for path in root.rglob("*") if path.is_dir()}


def run(*argv: object) -> int:
    return prepare.main([str(part) for part in argv])


def refuse(
    root: Path, capsys: pytest.CaptureFixture[str], pattern: str, *argv: object, status: int = 1
) -> None:
    """The command fails with one line that holds `pattern`, and `root` is as it was."""
    before = take_snapshot(root)
    capsys.readouterr()
    assert run(*argv) == status
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert pattern in error
    assert take_snapshot(root) == before
