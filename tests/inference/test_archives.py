"""Archives as input of predict.py: recognised, unpacked, named, refused."""

from pathlib import Path

import pytest

from common.atomic_files import UNFINISHED
from helper import UserError
from inference import archives
from inference.image_stream import find_files
from tests.support.builders import Capture, Patch
from tests.support.sources import WRITERS, make_picture, write_zip

FILES = {
    **{
        f"top/p{patient}/{number}.png": make_picture(10 * patient + number)
        for patient in (2, 1)
        for number in range(2)
    },
    "top/readme.txt": b"text",
    "top/p1/a:b.png": make_picture(99),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_images_are_unpacked_and_named_as_in_the_archive(kind: str, tmp_path: Path) -> None:
    writer = WRITERS[kind]
    source = writer(tmp_path / "source", FILES)
    if kind == "folder":
        assert not archives.is_archive(source)
        return
    own = tmp_path / "own.png"
    own.write_bytes(make_picture(7))
    with archives.unpack([own, source], tmp_path / "out" / "table.csv") as unpacked:
        found = list(find_files(unpacked.paths))
        names = [unpacked.names.get(path, path).relative_to(tmp_path).as_posix() for path in found]
        inside = sorted(name for name in FILES if name.endswith(".png"))
        assert names == ["own.png", *(f"source/{name}" for name in inside)]
        assert [path.read_bytes() for path in found[1:]] == [FILES[name] for name in inside]
        assert len({path.parent for path in found[1:]}) == 2  # for the rows of series
    assert list((tmp_path / "out").iterdir()) == []


def test_masks_in_archives_are_passed_over(tmp_path: Path) -> None:
    masks = {"top/p1/0_mask.png": make_picture(3), "top/masks/9.png": make_picture(4)}
    source = write_zip(tmp_path / "source.zip", FILES | masks)
    with archives.unpack([source], tmp_path / "table.csv") as unpacked:
        assert len(list(find_files(unpacked.paths))) == 5
    (note,) = (note for note in unpacked.notes if "masks of tumours" in note)
    assert note.startswith(f"{source}: 2 masks of tumours, by their names, were passed over, such")
    alone = write_zip(tmp_path / "alone.zip", {"masks/9.png": make_picture(4)})
    with archives.unpack([alone], tmp_path / "table.csv") as unpacked:
        assert len(list(find_files(unpacked.paths))) == 1


def test_other_files_are_no_archives(tmp_path: Path) -> None:
    for name, content in {"a.png": make_picture(1), "b.nii.gz": b"\x1f\x8b\x08", "c": b""}.items():
        (tmp_path / name).write_bytes(content)
        assert not archives.is_archive(tmp_path / name)
    assert not archives.is_archive(tmp_path / "missing.zip")
    with archives.unpack([tmp_path], tmp_path / "table.csv") as unpacked:
        assert unpacked == archives.Unpacked([tmp_path], {})


def test_unusable_archives_are_refused(tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    whole = write_zip(tmp_path / "whole.zip", FILES).read_bytes()
    for name, content, words in (
        ("cut.zip", whole[:-30], "damaged"),
        ("text.tar.gz", b"text", "not a .zip, .tar"),
        ("empty.zip", write_zip(tmp_path / "e.zip", {"a.txt": b""}).read_bytes(), "no images"),
    ):
        (tmp_path / name).write_bytes(content)
        with (
            pytest.raises(UserError, match=words),
            archives.unpack([tmp_path / name], tmp_path / "table.csv"),
        ):
            pass
    usage = archives.shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: usage)
    with (
        pytest.raises(UserError, match="more than is free"),
        archives.unpack([tmp_path / "whole.zip"], tmp_path / "table.csv"),
    ):
        pass
    assert not list(tmp_path.glob(f"{UNFINISHED}*"))
