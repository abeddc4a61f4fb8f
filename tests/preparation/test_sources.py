"""Sources: every kind read alike, everything that could do harm refused, no name lost."""

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helper import UserError
from preparation import sources
from preparation.ingest import needs_writing, write_image
from preparation.sources import Entry, fold_name, open_source, plan_files

FILES = {"set/B/2.png": b"two", "set/A/1.jpg": b"one", "set/A/notes.txt": b"text"}
HIDDEN = {"__MACOSX/set/A/._1.jpg": b"x", "set/A/.1.jpg": b"x", "set/A/Thumbs.db": b"x"}


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


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_is_known_by_its_content(kind: str, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path / "source.bin", FILES | HIDDEN)
    with open_source(path) as source:
        assert [entry.name for entry in source.entries] == ["set/A/1.jpg", "set/B/2.png"]
        assert [entry.read() for entry in source.entries] == [b"one", b"two"]
        assert [entry.size for entry in source.entries] == [3, 3]
        assert source.others == ["set/A/notes.txt"]


def test_dot_slash_names_of_tar_are_plain_names(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"./A/1.jpg": b"1", "./B/2.jpg": b"2"})
    with open_source(path) as source:
        assert [entry.name for entry in source.entries] == ["A/1.jpg", "B/2.jpg"]


def refuse(path: Path, pattern: str) -> None:
    with pytest.raises(UserError, match=pattern) as caught, open_source(path):
        pass
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize(
    "name",
    ["../x.jpg", "A/../../x.jpg", "/x.jpg", "C:/x.jpg", "c:x.jpg", "A\\x.jpg", "..\\x.jpg",
     "A/x\n.jpg", "../notes.txt"],
)  # fmt: skip
def test_names_that_leave_the_folder_are_refused(name: str, kind: str, tmp_path: Path) -> None:
    refuse(WRITERS[kind](tmp_path / "source", FILES | {name: b"x"}), "entry ")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar_are_refused(kind: bytes, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "source.tar", FILES)
    with tarfile.open(path, "a") as target:
        member = tarfile.TarInfo("set/A/3.jpg")
        member.type, member.linkname = kind, "set/A/1.jpg"
        target.addfile(member)
    refuse(path, r"is a link|is no plain file")


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "source.zip", FILES)
    with zipfile.ZipFile(path, "a") as target:
        info = zipfile.ZipInfo("set/A/3.jpg")
        info.create_system = 3
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        target.writestr(info, "/etc/passwd")
    refuse(path, "is a link or device")


def test_encrypted_zip_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "source.zip", FILES)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    path.write_bytes(content)
    refuse(path, "is encrypted")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_archives_cut_short_are_refused(kind: str, share: float, tmp_path: Path) -> None:
    files = {f"{label}/{n}.jpg": os.urandom(2000) for label in "AB" for n in range(5)}
    path = WRITERS[kind](tmp_path / "source", files)
    content = path.read_bytes()
    data_end = len(content) if kind != "tar" else 10 * (512 + 2048)  # then the zeros of its end
    path.write_bytes(content[: int(share * data_end)])
    refuse(path, "cut short")


def test_tar_cut_between_two_files_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "source.tar", FILES)
    path.write_bytes(path.read_bytes()[: 2 * 1024])  # two whole files, no end
    refuse(path, "cut short")


def test_damage_inside_a_zip_is_found_when_read(tmp_path: Path) -> None:
    path = tmp_path / "source.zip"
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("A/1.jpg", b"first content")
    path.write_bytes(path.read_bytes().replace(b"first", b"worst"))
    with open_source(path) as source, pytest.raises(UserError, match="cut short or damaged"):
        source.entries[0].read()


def test_no_archive_and_nothing_there(tmp_path: Path) -> None:
    refuse(tmp_path / "absent.zip", "no such file or folder")
    (tmp_path / "empty.zip").write_bytes(b"")
    refuse(tmp_path / "empty.zip", "empty file")
    (tmp_path / "text.zip").write_text("no archive at all " * 100)
    refuse(tmp_path / "text.zip", "no .zip, .tar")
    refuse(write_zip(tmp_path / "none.zip", {"a/notes.txt": b"x"}), "no pictures in it")


def test_picture_over_the_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "source.zip", {"A/1.jpg": bytes(2**20 + 1)})
    monkeypatch.setattr(sources, "MAX_FILE_MIB", 1)
    refuse(path, "over the limit of 1 MiB")


@pytest.mark.skipif(os.name == "nt", reason="making links needs rights on Windows")
def test_links_in_a_folder(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "source", FILES)
    (root / "set/A/inside.jpg").symlink_to("1.jpg")
    with open_source(root) as source:
        assert len(source.entries) == 3
    (tmp_path / "elsewhere.jpg").write_bytes(b"x")
    (root / "set/A/outside.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    with pytest.raises(UserError, match="link that leaves the folder"), open_source(root):
        pass


def test_a_skipped_folder_is_no_part_of_the_source(tmp_path: Path) -> None:
    root = write_folder(tmp_path, FILES | {"data/Images/A/1.jpg": b"one"})
    with open_source(root, skip=root / "data") as source:
        assert [entry.name for entry in source.entries] == ["set/A/1.jpg", "set/B/2.png"]


def plan(*names: str, use_aliases: bool = True) -> list[str]:
    entries = [Entry(name, 1, place, bytes) for place, name in enumerate(sorted(names))]
    return [file.target for file in plan_files(entries, Path("source"), use_aliases)]


def test_published_names_become_the_short_ones_only_when_alone() -> None:
    assert plan("x/brain_glioma/a.jpg", "x/brain_menin/a.jpg", "x/brain_tumor/a.jpg") == [
        "Images/Glioma/a.jpg",
        "Images/Menin/a.jpg",
        "Images/Tumor/a.jpg",
    ]
    assert plan("brain_menin/a.jpg", "brain_tumor/b.jpg") == [
        "Images/Menin/a.jpg",
        "Images/Tumor/b.jpg",
    ]
    assert plan("brain_tumor/a.jpg", "other/b.jpg") == [
        "Images/brain_tumor/a.jpg",
        "Images/other/b.jpg",
    ]
    assert plan("Brain_Menin/a.jpg", "brain_tumor/b.jpg")[0] == "Images/Brain_Menin/a.jpg"
    kept = plan("brain_menin/a.jpg", "brain_tumor/b.jpg", use_aliases=False)
    assert kept == ["Images/brain_menin/a.jpg", "Images/brain_tumor/b.jpg"]


def test_names_that_meet_get_a_suffix_and_steal_no_other_name() -> None:
    assert plan(
        "Testing/A/1.jpg", "Training/A/1.jpg", "Training/A/1_2.jpg", "Zoo/A/1.JPG", "B/1.jpg"
    ) == [
        "Images/B/1.jpg",
        "Images/A/1.jpg",
        "Images/A/1_3.jpg",
        "Images/A/1_2.jpg",
        "Images/A/1_4.JPG",
    ]
    composed, decomposed = "A/caf\u00e9.png", "x/A/cafe\u0301.png"
    assert plan(composed, decomposed, "B/1.png")[2].endswith("_2.png")


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (["A/1.jpg", "2.jpg"], "2.jpg is in no class folder"),
        (["A/1.jpg", "A/2.jpg"], r"one class only \(A\)"),
        (["Glioma/1.jpg", "glioma/2.jpg"], "class folders Glioma and glioma are one"),
        (["x/A/1.jpg", "y/a/2.jpg", "B/1.jpg"], "A and a are one folder"),
        (["A/1.jpg", "A/B/2.jpg"], "folder A holds pictures and folder A/B"),
        (["=1+1/1.jpg", "B/2.jpg"], "class folder '=1\\+1' would be a formula in a spreadsheet"),
        (["@A/1.jpg", "B/2.jpg"], "class folder '@A' would be a formula"),
        (["A|B/1.jpg", "C/2.jpg"], r"class folder 'A\|B' would be"),
    ],
)
def test_folders_that_make_no_classes_are_refused(names: list[str], pattern: str) -> None:
    with pytest.raises(UserError, match=pattern):
        plan(*names)


FILE_NAMES = st.sampled_from(["1", "1_2", "1_3", "a", "A", "\u00e9", "e\u0301", "\u1e9e", "ss"])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["x", "y", "z"]), FILE_NAMES, st.sampled_from([".jpg", ".JPG"])),
        min_size=1,
        max_size=25,
    )
)
def test_planned_names_never_meet(parts: list[tuple[str, str, str]]) -> None:
    names = [f"{top}/A/{stem}{suffix}" for top, stem, suffix in parts] + ["q/B/1.jpg"]
    targets = plan(*names)
    assert len({fold_name(target) for target in targets}) == len(names)
    assert targets == plan(*reversed(names))
    for name, target in zip(sorted(names), targets, strict=True):
        kept, given_name = PurePosixPath(target), PurePosixPath(name)
        assert kept.suffix == given_name.suffix
        assert kept.stem.startswith(given_name.stem)


def test_files_on_disk_are_left_completed_or_refused(tmp_path: Path) -> None:
    target = tmp_path / "Images" / "A" / "1.jpg"
    assert needs_writing(target, b"content")
    write_image(target, b"content")
    assert not needs_writing(target, b"content")
    assert [path.name for path in target.parent.iterdir()] == ["1.jpg"]
    for beginning in (b"", b"cont"):
        target.write_bytes(beginning)
        assert needs_writing(target, b"content")
    for other in (b"Content", b"content and more"):
        target.write_bytes(other)
        with pytest.raises(UserError, match="exists with other content"):
            needs_writing(target, b"content")
