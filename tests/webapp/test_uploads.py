"""Uploaded files: safe names, limits, archives, and nothing left behind."""

import io
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.datastructures import UploadFile

from helper import UserError
from tests.support.builders import Patch
from webapp import uploads


def build(name: str, content: bytes = b"\x89PNG\r\n\x1a\n") -> UploadFile:
    return UploadFile(io.BytesIO(content), filename=name)


def pack(*names: str) -> bytes:
    """Return a ZIP archive of images and, by their suffix, of texts."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, b"text" if name.endswith(".xml") else b"\x89PNG\r\n\x1a\n")
    return content.getvalue()


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
        ("x" * 5_000 + ".png", "x" * (uploads.MAX_NAME - 4) + ".png"),
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
    wrong: list[tuple[UploadFile, str]] = [
        (build("p/a.png", png * 2**18), "p/a.png: over the limit of 1 MiB a file"),
        (build("x.zip", content.getvalue()), "x.zip: 3 images of 0 MiB, over the limit of 2"),
        (build("x.zip", bomb.getvalue()), "x.zip: 1 images of 4 MiB, over the limit of 2 and 3"),
        (build("x.zip", content.getvalue()[:-30]), "x.zip: truncated or damaged"),
        (build("report.docx", pack("word/document.xml")), "report.docx: no images in it"),
    ]
    for file, line in wrong:
        with pytest.raises(UserError) as caught, uploads.store([file], uploads_dir):
            pass
        assert str(caught.value).startswith(line)
        assert str(uploads_dir) not in str(caught.value)
        assert list(uploads_dir.iterdir()) == []
        file.file.seek(0)
        with uploads.store([build("good.png", png), file], uploads_dir) as found:
            assert [found.names[path].name for path in found.files] == ["good.png"]
            ((name, error),) = found.errors
            assert error.startswith(line)
            assert name == line.split(":")[0]
            assert str(uploads_dir) not in error


def test_damaged_archives_name_the_file_of_the_client(uploads_dir: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("1.png", b"\x89PNG\r\n\x1a\n")
    broken = bytearray(content.getvalue())
    broken[broken.index(b"\x89PNG")] ^= 1  # is found when it is unpacked
    with (
        pytest.raises(UserError) as caught,
        uploads.store([build("x.zip", bytes(broken))], uploads_dir),
    ):
        pass
    assert str(caught.value).startswith("x.zip: ")
    assert str(uploads_dir) not in str(caught.value)


def test_archives_that_do_not_fit_on_the_disk_are_refused(
    uploads_dir: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with (
        pytest.raises(UserError, match=r"^x.zip: 1 images of 0 MiB, more than is free"),
        uploads.store([build("x.zip", pack("1.png"))], uploads_dir),
    ):
        pass


def test_files_of_folders_are_archives_by_their_suffix(uploads_dir: Path) -> None:
    office, voxels = pack("word/document.xml"), bytes(64 * 1024) + b"voxels"
    files = [build("p/0.png"), build("p/report.docx", office), build("p/brain.img", voxels)]
    files.append(build("p/more.zip", pack("1.png")))
    with uploads.store(files, uploads_dir) as found:
        shown = [found.names[path].as_posix() for path in found.files]
        assert shown == ["p/0.png", "p/more.zip/1.png"]
        assert found.errors == []
        assert "1 .docx (p/report.docx), 1 .img (p/brain.img)" in found.notes[0]


def test_a_folder_without_images_has_notes(uploads_dir: Path) -> None:
    with uploads.store([build("p/notes.txt", b"text")], uploads_dir) as found:
        assert found.files == []
        assert "1 .txt" in found.notes[0]


def test_each_file_has_its_own_reason(uploads_dir: Path) -> None:
    files = [build("a.zip", b"PK\3\4"), build("b.zip", pack("x.xml")), build("p/x.txt", b"text")]
    with uploads.store(files, uploads_dir) as found:
        assert found.files == []
        reasons = dict(found.errors)
        assert list(reasons) == ["a.zip", "b.zip"]
        assert "damaged" in reasons["a.zip"]
        assert "no images" in reasons["b.zip"]
        assert "1 .txt" in found.notes[0]


def test_numbers_of_equal_names_are_new() -> None:
    names = [Path(name) for name in ("d.zip", "d (2).zip", "d.zip", "d.zip")]
    numbered = uploads.number_equal({Path(f"{i}"): name for i, name in enumerate(names)})
    assert [str(each) for each in numbered.values()] == [
        *("d.zip", "d (2).zip", "d (3).zip", "d (4).zip")
    ]


def test_archives_of_one_name_are_kept_apart(uploads_dir: Path) -> None:
    files = [build("d.zip", pack("a/1.png", "b/1.png")) for _ in range(2)]
    with uploads.store(files, uploads_dir) as found:
        shown = [found.names[path].as_posix() for path in found.files]
        assert shown == [f"{name}/{each}/1.png" for name in ("d.zip", "d (2).zip") for each in "ab"]
        assert found.roots == [Path("d.zip"), Path("d (2).zip")]
