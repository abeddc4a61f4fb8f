"""What prepare.py takes from a source: nothing is lost without being named or counted."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helper import UserError
from preparation.ingest import measure_source
from preparation.manifest import load_manifest
from preparation.options import PrepareConfig
from preparation.plan import SourcePlan, plan_source
from preparation.sources import open_source
from prepare import main
from tests.support.fuzz_corpus import encode
from tests.support.mat_files import build_cheng, encode_v5


def draw(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32), dtype=np.uint8))


def write(root: Path, **folders: int) -> Path:
    """Write PNG files of noise: the number of images by folder, `__` for a slash."""
    for place, (folder, n_images) in enumerate(folders.items()):
        path = root / folder.replace("__", "/")
        path.mkdir(parents=True, exist_ok=True)
        for number in range(n_images):
            draw(100 * place + number).save(path / f"{number}.png")
    return root


def plan(root: Path, **options: object) -> SourcePlan:
    with open_source(root) as source:
        return plan_source(source, root, PrepareConfig(source=root, **options))  # type: ignore[arg-type]


# ---- empty folders


@pytest.mark.parametrize("folder", ["healthy", "more__deep", "notes"])
def test_a_folder_without_a_picture_stops(folder: str, tmp_path: Path) -> None:
    root = write(tmp_path, yes=2, no=2, **{folder: 0})
    if folder == "notes":
        (root / "notes" / "a.txt").write_text("text")
    with pytest.raises(UserError, match=f"no picture in {folder.split('__')[0]}.*--allow-empty"):
        plan(root)
    allowed = plan(root, allow_empty=True)
    assert len(allowed.files) == 4
    assert f"no picture in {folder.split('__')[0]}: left out" in allowed.notes
    assert len(plan(root, exclude=(folder.split("__")[0],)).files) == 4


def test_formats_that_are_not_read_are_to_be_converted(tmp_path: Path) -> None:
    root = write(tmp_path, yes=2, no=2, healthy=0)
    (root / "healthy" / "a.avif").write_bytes(b"0000ftypavif")
    with pytest.raises(UserError, match=r"healthy: 1 .avif .*; convert them to PNG, leave such"):
        plan(root)


def test_pages_and_pictures_of_one_name_keep_their_own_patients(tmp_path: Path) -> None:
    root = write(tmp_path, A=0, B=2)
    draw(1).save(root / "A" / "p1_0001.png")
    draw(2).save(root / "A" / "p1.tif", save_all=True, append_images=[draw(3)])
    found = plan(root, patient_from=r"(p1(?:_0001\.png|\.tif))|B/(\d)")
    by_name = {target: patient for target, patient in found.patients.items() if "/A/" in target}
    assert sorted(by_name.values()) == ["p1.tif", "p1.tif", "p1_0001.png"]
    assert by_name["Images/A/p1_0002.png"] == "p1.tif"
    pages = {file.target: file.entry.container for file in found.files if file.label == "A"}
    assert all((by_name[target] == "p1.tif") == bool(pages[target]) for target in by_name)


def test_pages_are_read_in_any_order(tmp_path: Path) -> None:
    root = write(tmp_path, A=0, B=2)
    for name in "xy":
        pages = [draw(ord(name) + number) for number in range(3)]
        pages[0].save(root / "A" / f"{name}.tif", save_all=True, append_images=pages[1:])
    entries = [file.entry for file in plan(root).files if file.label == "A"]
    expected = {entry.name: entry.read() for entry in entries}
    for entry in (*reversed(entries), *entries[::2], *entries[1::2]):
        assert entry.read() == expected[entry.name]


def test_folders_of_masks_or_labels_may_hold_no_picture(tmp_path: Path) -> None:
    root = write(tmp_path, yes__images=2, no__images=2)
    (root / "yes" / "labels").mkdir()
    (root / "yes" / "labels" / "0.txt").write_text("0 0.5 0.5 0.1 0.1")
    assert len(plan(root).files) == 4


def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path, yes=2, no=2)
    with pytest.raises(UserError, match=r"--exclude \*.gif matches nothing"):
        plan(root, exclude=("*.gif",))


# ---- unreadable files


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"text", "3 not a JPEG.*convert them"),
        (encode(draw(0), "PNG")[:200], "3 (truncated|damaged).*copy them again"),
        (b"", "3 empty file.*copy them again"),
    ],
)
def test_the_commonest_reason_is_told(content: bytes, words: str, tmp_path: Path) -> None:
    root = write(tmp_path / "s", yes=6, no=6)
    for number in range(3):
        (root / "yes" / f"bad{number}.png").write_bytes(content)
    with pytest.raises(UserError, match=words):
        measure_source(plan(root).files, root, tmp_path / "data")


def test_a_class_lost_to_unreadable_files_stops(tmp_path: Path) -> None:
    root = write(tmp_path / "s", yes=30, no=30)
    (root / "maybe").mkdir()
    (root / "maybe" / "a.png").write_bytes(b"text")
    files = plan(root).files
    with pytest.raises(UserError, match="no image of class maybe can be read: 1 not a JPEG"):
        measure_source(files, root, tmp_path / "data")
    facts, _ = measure_source(files, root, tmp_path / "data", allow_empty=True)
    assert len(facts) == 61


# ---- several pictures in a file


def save_stack(path: Path, seeds: range, format_: str) -> None:
    first, *others = [draw(seed) for seed in seeds]
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, format_, save_all=True, append_images=others)


@pytest.mark.parametrize("format_", ["TIFF", "GIF", "PNG"])
def test_every_page_is_taken_and_stays_in_the_group_of_its_file(
    format_: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, label in enumerate(("yes", "no")):
        for number in range(4):
            start = 1000 * place + 10 * number
            save_stack(tmp_path / "s" / label / f"v{number}.x", range(start, start + 3), format_)
    data = tmp_path / "data"
    assert main([str(tmp_path / "s"), "--data", str(data)]) == 0
    assert "8 files hold several pictures, 24 in all" in capsys.readouterr().out
    frame = load_manifest(data)
    assert len(frame) == 24
    volume = frame["path"].str.extract(r"(.*)_0")[0]
    assert (frame.groupby(volume)["group"].nunique() == 1).all()
    assert frame["group"].nunique() == 8
    # the group does not depend on the source: the pictures name their file
    before = frame["group"].tolist()
    assert main([str(data), "--data", str(data)]) == 0
    assert load_manifest(data)["group"].tolist() == before


def test_pages_after_the_damage_are_told(tmp_path: Path) -> None:
    write(tmp_path, yes=2, no=2)
    stream = io.BytesIO()
    draw(0).save(stream, "TIFF", save_all=True, append_images=[draw(1), draw(2)])
    content = stream.getvalue()
    place = struct.pack("<I", content.rindex(draw(2).tobytes()))  # of the last page's pixels
    content = content.replace(place, struct.pack("<I", len(content) + 9))
    (tmp_path / "yes" / "film.tif").write_bytes(content)
    found = plan(tmp_path)
    assert [file.entry.name for file in found.files if file.entry.container] == [
        "yes/film_0001.png",
        "yes/film_0002.png",
    ]
    assert any(line.startswith("yes/film.tif: its later pictures") for line in found.notes)


def test_options_apply_to_files_that_state_their_class(tmp_path: Path) -> None:
    for number in range(6):
        content = encode_v5(build_cheng(np.full((8, 8), 90 + number, np.int16), number % 3 + 1))
        (tmp_path / f"{number}.mat").write_bytes(content)
    found = plan(tmp_path, exclude=("0.mat",), class_map=("glioma=Glioma",))
    assert len(found.files) == 5
    assert {file.label for file in found.files} == {"Glioma", "meningioma", "pituitary"}
    by_name = plan(tmp_path, patient_from=r"(\d)\.mat")
    assert by_name.patient_source == "--patient-from"
    assert set(by_name.patients.values()) == set("012345")
