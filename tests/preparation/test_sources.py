"""Archives and folders: all kinds are read alike, unsafe ones are refused."""

import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from helper import UserError
from preparation import sources
from preparation.sources import open_source
from tests.support.builders import Patch
from tests.support.sources import WRITERS, write_folder, write_tar, write_zip

FILES = {"set/B/2.png": b"two", "set/A/1.jpg": b"one", "set/A/notes.txt": b"text"}
HIDDEN = {"__MACOSX/set/A/._1.jpg": b"x", "set/A/.1.jpg": b"x", "set/A/Thumbs.db": b"x"}


def refuse(path: Path, pattern: str) -> None:
    with pytest.raises(UserError, match=pattern) as caught, open_source(path):
        pass
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_is_recognised_by_its_content(kind: str, tmp_path: Path) -> None:
    dot = "./" if kind.startswith("tar") else ""
    files = {dot + name: content for name, content in (FILES | HIDDEN).items()}
    with open_source(WRITERS[kind](tmp_path / "source.bin", files)) as source:
        assert [entry.name for entry in source.entries] == ["set/A/1.jpg", "set/B/2.png"]
        assert [entry.read() for entry in source.entries] == [b"one", b"two"]
        assert [entry.size for entry in source.entries] == [3, 3]
        assert source.others == ["set/A/notes.txt"]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_names_that_leave_the_folder_are_refused(kind: str, tmp_path: Path) -> None:
    for name in (
        *("../x.jpg", "A/../../x.jpg", "/x.jpg", "C:/x.jpg", "c:x.jpg", "..\\x.jpg", "\\x.jpg"),
        *("A/x\n.jpg", "../notes.txt"),
    ):
        refuse(WRITERS[kind](tmp_path / "source", FILES | {name: b"x"}), "entry ")


def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path) -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        path = write_tar(tmp_path / "source.tar", FILES)
        with tarfile.open(path, "a") as target:
            member = tarfile.TarInfo("set/A/3.jpg")
            member.type, member.linkname = kind, "set/A/1.jpg"
            target.addfile(member)
        refuse(path, "is a link or device")


def test_links_in_a_zip_and_encryption_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "source.zip", FILES)
    with zipfile.ZipFile(path, "a") as target:
        info = zipfile.ZipInfo("set/A/3.jpg")
        info.create_system = 3
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        target.writestr(info, "/etc/passwd")
    refuse(path, "is a link or device")
    write_zip(path, FILES)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    path.write_bytes(content)
    refuse(path, "is encrypted")


# ---- archives of other programs


def patch_zip(path: Path, files: dict[str, bytes], *changes: tuple[bytes, bytes]) -> Path:
    """Write a zip and replace bytes, such as names, without changing any length."""
    content = write_zip(path, files).read_bytes()
    for before, after in changes:
        assert before in content
        content = content.replace(before, after)
    path.write_bytes(content)
    return path


def list_names(path: Path) -> list[str]:
    with open_source(path) as source:
        return [entry.name for entry in source.entries]


def test_backslashes_are_folders(tmp_path: Path) -> None:
    files = {"brain#yes#1.jpg": b"x", "brain#no#1.jpg": b"x"}
    change = (b"#", b"\\")
    path = patch_zip(tmp_path / "a.zip", files, change)
    assert list_names(path) == ["brain/no/1.jpg", "brain/yes/1.jpg"]


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [("méningiome".encode(), "méningiome"), ("脑瘤脑".encode(), "脑瘤脑")],
)
def test_names_are_utf8_without_the_flag(encoded: bytes, expected: str, tmp_path: Path) -> None:
    name = "x" * len(encoded)
    path = patch_zip(tmp_path / "a.zip", {f"{name}/1.jpg": b"x"}, (name.encode(), encoded))
    assert list_names(path) == [f"{expected}/1.jpg"]


def test_folder_names_in_an_unknown_encoding_are_refused(tmp_path: Path) -> None:
    path = patch_zip(tmp_path / "a.zip", {"mXningiome/1.jpg": b"x"}, (b"mX", b"m\xe9"))
    refuse(path, "encoding of the folder name")
    path = patch_zip(tmp_path / "b.zip", {"A/caX.jpg": b"x"}, (b"caX", b"ca\xe9"))
    assert len(list_names(path)) == 1


@pytest.mark.parametrize(
    ("method", "name"), [(9, "Deflate64"), (97, "number 97"), (93, "Zstandard")]
)
def test_compression_that_python_lacks_is_named(method: int, name: str, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"A/1.jpg": b"x" * 99})
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02") + 10  # the method in the central directory
    content[place : place + 2] = method.to_bytes(2, "little")
    path.write_bytes(content)
    refuse(path, f"1.jpg.*method.*{name}.*unpack it")


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"Rar!\x1a\x07\0", "a RAR archive; unpack"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer; fetch"),
        (b"\xef\xbb\xbf\n<!DOCTYPE HTML><html>", "a web page; download"),
        (b"%PDF-1.7", "a PDF document"),
        (b"\xff\xd8\xff\xe0", "a single JPEG image"),
    ],
)
def test_other_files_are_named_for_what_they_are(start: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(start + bytes(99))
    refuse(tmp_path / "source", words)


def test_archives_inside_are_named(tmp_path: Path) -> None:
    inner = write_zip(tmp_path / "inner.zip", FILES).read_bytes()
    refuse(write_zip(tmp_path / "a.zip", {"data/inner.zip": inner}), "such as data/inner.zip")
    with open_source(write_zip(tmp_path / "b.zip", FILES | {"inner.zip": inner})) as source:
        assert "inner.zip" in source.others


def test_folders_are_listed_also_without_images(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "folder", FILES)
    (root / "set/healthy").mkdir()
    with open_source(root) as source:
        assert "set/healthy" in source.folders
    path = write_zip(tmp_path / "a.zip", FILES)
    with zipfile.ZipFile(path, "a") as target:
        target.writestr("set/healthy/", b"")
    with open_source(path) as source:
        assert source.folders == ["set/healthy"]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archives_cut_short_are_refused(kind: str, tmp_path: Path) -> None:
    files = {f"{label}/{n}.jpg": os.urandom(2000) for label in "AB" for n in range(5)}
    path = WRITERS[kind](tmp_path / "source", files)
    content = path.read_bytes()
    data_end = len(content) if kind != "tar" else 10 * (512 + 2048)  # then the zeros of its end
    for share in (0.3, 0.6, 0.97):
        path.write_bytes(content[: int(share * data_end)])
        refuse(path, "truncated")
    if kind == "tar":
        path.write_bytes(content[: 2 * (512 + 2048)])  # two whole files, no end
        refuse(path, "truncated")


def test_damage_inside_a_zip_is_found_when_read(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "source.zip", {"A/1.jpg": os.urandom(99)})
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)
    with open_source(path) as source, pytest.raises(UserError, match="truncated or damaged"):
        source.entries[0].read()
    content[60] ^= 0xFF
    content[content.index(b"PK\x01\x02") + 24] += 1  # the size in the central directory
    path.write_bytes(content)
    with open_source(path) as source, pytest.raises(UserError, match=r"1\.jpg ends early"):
        source.entries[0].read()


def test_other_files_and_missing_ones_are_refused(tmp_path: Path, monkeypatch: Patch) -> None:
    refuse(tmp_path / "absent.zip", "no such file or folder")
    (tmp_path / "empty.zip").write_bytes(b"")
    refuse(tmp_path / "empty.zip", "empty file")
    (tmp_path / "text.zip").write_text("no archive at all " * 100)
    refuse(tmp_path / "text.zip", "not a .zip, .tar")
    refuse(write_zip(tmp_path / "none.zip", {"a/notes.txt": b"x"}), "no images in it")
    monkeypatch.setattr(sources, "MAX_FILE_MIB", 1)
    refuse(write_zip(tmp_path / "a.zip", {"A/1.jpg": bytes(2**20 + 1)}), "over the limit of 1 MiB")


@pytest.mark.skipif(os.name == "nt", reason="making links needs rights on Windows")
def test_links_in_a_folder_may_only_point_inside_it(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "source", FILES)
    (root / "set/A/inside.jpg").symlink_to("1.jpg")
    with open_source(root) as source:
        assert len(source.entries) == 3
    (tmp_path / "elsewhere.jpg").write_bytes(b"x")
    (root / "set/A/outside.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    refuse(root, "outside.jpg is a link that leaves the folder.*--follow-links")
    with open_source(root, follow_links=True) as source:
        assert "set/A/outside.jpg" in [entry.name for entry in source.entries]
    (root / "set/A/outside.jpg").unlink()
    (root / "set/A/lost.jpg").symlink_to("nothing.jpg")
    refuse(root, "lost.jpg is a link to nothing")


@pytest.mark.skipif(os.name == "nt", reason="making links needs rights on Windows")
def test_folders_that_are_linked_inside_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "source", FILES)
    (root / "set/C").symlink_to("B", target_is_directory=True)
    with open_source(root) as source:
        assert "set/C/2.png" in [entry.name for entry in source.entries]
    (root / "set/A/up").symlink_to("..", target_is_directory=True)
    refuse(root, "up is a link to a folder that holds it")
