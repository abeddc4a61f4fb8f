"""Uploaded files: safe names, limits, archives, and nothing left behind."""

import io
import zipfile
from pathlib import Path

import pytest
from starlette.datastructures import UploadFile

from helper import UserError
from tests.support.builders import Patch
from webapp import uploads


def build(name: str, content: bytes = b"\x89PNG\r\n\x1a\n") -> UploadFile:
    return UploadFile(io.BytesIO(content), filename=name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.png", "a.png"),
        ("p1/a.png", "p1/a.png"),
        ("../../etc/passwd", "etc/passwd"),
        ("/etc/passwd", "etc/passwd"),
        ("C:\\x\\a.png", "C:/x/a.png"),
        ("..", "file"),
        ("", "file"),
        ("a\n\x1b[31m.png", "a[31m.png"),
        ("x" * 500 + ".png", "x" * (uploads.MAX_NAME - 4) + ".png"),
    ],
)
def test_names_of_clients_are_cleaned(name: str, expected: str) -> None:
    assert uploads.clean_name(name) == Path(expected)


def test_files_are_stored_in_their_folders_and_deleted(uploads_dir: Path) -> None:
    names = [
        "../../a.png",
        "a.b:c",
        "p/1.png",
        "q/1.png",
        "p/2.png",
        "p/1_mask.png",
        "p/x.txt",
        "a.png",
    ]
    files = [build(name, *([b"text"] if name.endswith("txt") else [])) for name in names]
    with uploads.store(files, uploads_dir) as found:
        assert all(path.is_relative_to(uploads_dir) for path in found.names)
        shown = [found.names[path].as_posix() for path in found.files]
        assert {path.suffix for path in found.names} <= {".png", ".txt", ""}
        assert sorted(shown) == ["a.b:c", "a.png", "a.png", "p/1.png", "p/2.png", "q/1.png"]
        parents = {found.names[path].as_posix(): path.parent for path in found.files}
        assert parents["p/1.png"] == parents["p/2.png"] != parents["q/1.png"]
        assert found.roots == [Path("p"), Path("q")]
        assert any("1 .txt" in note for note in found.notes)
        assert any("masks of tumours" in note for note in found.notes)
    assert list(uploads_dir.iterdir()) == []


def test_large_files_and_archives_are_refused(uploads_dir: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(uploads, "MAX_FILE_MIB", 1)
    monkeypatch.setattr(uploads, "MAX_UNPACKED", 2)
    monkeypatch.setattr(uploads, "MAX_UNPACKED_MIB", 3)
    png = b"\x89PNG\r\n\x1a\n"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("1.png", "2.png", "3.png"):
            archive.writestr(name, png)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.png", png + bytes(4 * 2**20))
    for file, line in (
        (build("p/a.png", png * 2**18), "p/a.png: over the limit of 1 MiB a file"),
        (build("x.zip", content.getvalue()), "x.zip: 3 images of 0 MiB, over the limit of 2"),
        (build("x.zip", bomb.getvalue()), "x.zip: 1 images of 4 MiB, over the limit of 2 and 3"),
        (build("x.zip", content.getvalue()[:-30]), "x.zip: truncated or damaged"),
    ):
        with pytest.raises(UserError) as caught, uploads.store([file], uploads_dir):
            pass
        assert str(caught.value).startswith(line)
        assert str(uploads_dir) not in str(caught.value)
        assert list(uploads_dir.iterdir()) == []
