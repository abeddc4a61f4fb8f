"""prepare.py as a command: what it writes, keeps and refuses."""

import hashlib
import os
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image

from imaging.reader import read_grey
from preparation.audit import read_audit
from preparation.contact_sheets import SHEETS
from preparation.manifest import COLUMNS, load_manifest, manifest_path
from preparation.splits import SHARES, SPLITS
from tests.support.builders import PHANTOMS, Capture, Patch, expect_refusal
from tests.support.four_classes import CLASSES, write_four_class_folder
from tests.support.sources import (
    WRITERS,
    Snapshot,
    build_files,
    make_picture,
    refuse,
    run,
    take_snapshot,
    write_folder,
    write_zip,
)


def drop_times(snapshot: Snapshot) -> dict[str, bytes]:
    return {name: content for name, (content, _) in snapshot.items()}


def test_archive_becomes_classes_manifest_and_audit(tmp_path: Path, capsys: Capture) -> None:
    files = build_files(("brain_glioma", "brain_menin", "brain_tumor"))
    files["top/brain_tumor/5 - Copy.png"] = files["top/brain_tumor/5.png"]
    files |= {"top/brain_menin/broken.png": make_picture(7)[:40], "top/readme.txt": b"text"}
    source, data = write_zip(tmp_path / "source.zip", files), tmp_path / "data"
    write_folder(data / "Images", {"Glioma/own.png": make_picture(999)})
    assert run(source, "--data", data) == 0

    frame = load_manifest(data)
    assert tuple(frame.columns) == COLUMNS
    assert len(frame) == 21
    assert list(frame["path"]) == sorted(frame["path"])
    names = {f"top/brain_{path.removeprefix('Images/').lower()}" for path in frame["path"]}
    others = {"top/brain_glioma/own.png", "top/readme.txt"}
    assert names ^ {name.lower() for name in files} == others
    for row in frame[frame["note"] == ""].itertuples():
        content = (data / str(row.path)).read_bytes()
        assert row.sha256 == hashlib.sha256(content).hexdigest()
        assert (row.width, row.height) == (8, 8)
        assert row.mean == pytest.approx(read_grey(content).mean(), abs=0.0006)
        ids = ("", f"d{row.sha256[:12]}", f"g{row.sha256[:12]}")
        assert (row.patient, row.duplicate_set, row.group) == ids
    pair = frame[frame["path"].isin(["Images/Tumor/5.png", "Images/Tumor/5 - Copy.png"])]
    assert pair[["duplicate_set", "group", "split"]].nunique().tolist() == [1, 1, 1]
    broken = frame.set_index("path").loc["Images/Menin/broken.png"]
    assert broken["note"].startswith("unreadable: ")
    assert (broken["width"], broken["height"], broken["split"]) == (0, 0, "")

    audit = read_audit(data)
    assert (audit["phantom"], audit["source"]) == (False, "source.zip")
    assert audit["classes"] == {"Glioma": 7, "Menin": 7, "Tumor": 7}
    assert (audit["sizes"], audit["modes"]) == ({"8 x 8": 20}, {"L": 20})
    assert audit["byte_duplicates"] == {"files": 1, "sets": 1, "sets_across_classes": 0}
    ignored = {"count": 1, "suffixes": "1 .txt (top/readme.txt)", "first": ["top/readme.txt"]}
    assert audit["ignored_files"] == ignored

    printed = capsys.readouterr().out
    for part in (
        *("2,004 / 2,004 / 2,048", "here 7 / 7 / 7", "512 x 512", "1 files repeat others"),
        *("20 files show 19 distinct slices", "of a random test split", "Research use only"),
        *("not readable: Images/Menin/broken.png", "1 images of the folder are not in this source"),
        f"python main.py --model resnet18 --epochs 30 --data {data}",
    ):
        assert part in printed


def test_all_kinds_of_sources_agree_and_a_second_run_only_completes(tmp_path: Path) -> None:
    manifests = set()
    for kind, write in WRITERS.items():
        source, data = write(tmp_path / kind, build_files()), tmp_path / f"data of {kind}"
        assert run(source, "--data", data) == 0
        manifests.add(manifest_path(data).read_bytes())
    assert len(manifests) == 1
    before = take_snapshot(data)
    assert run(source, "--data", data) == 0
    assert take_snapshot(data) == before
    (data / "Images/A/1.png").unlink()
    (data / "Images/A/2.png").write_bytes(before["Images/A/2.png"][0][:20])
    (data / "Images/B/1.png").write_bytes(b"")
    manifest_path(data).unlink()
    assert run(source, "--data", data) == 0
    after = take_snapshot(data)
    assert drop_times(after) == drop_times(before)
    assert after["Images/B/3.png"] == before["Images/B/3.png"]


def test_the_data_folder_can_be_the_source_or_inside_it(tmp_path: Path) -> None:
    files = build_files(("brain_menin", "brain_tumor"))
    data = tmp_path / "data"
    write_folder(data, {name.replace("top", "Images"): files[name] for name in files})
    images = take_snapshot(data / "Images")
    assert run(data / "Images", "--data", data) == 0
    assert set(load_manifest(data)["label"]) == {"brain_menin", "brain_tumor"}
    first = take_snapshot(data)
    assert run(data, "--data", data) == 0
    assert take_snapshot(data) == first
    assert take_snapshot(data / "Images") == images
    write_folder(tmp_path / "around", build_files())
    for _ in range(2):
        assert run(tmp_path / "around", "--data", tmp_path / "around" / "data") == 0
        assert len(load_manifest(tmp_path / "around" / "data")) == 12


def test_four_other_classes_lose_no_file(tmp_path: Path) -> None:
    data = tmp_path / "data"
    count = write_four_class_folder(tmp_path / "source")
    assert run(tmp_path / "source", "--data", data) == 0
    frame = load_manifest(data)
    assert len(frame) == count == frame["duplicate_set"].nunique() == 60
    assert set(frame["label"]) == set(CLASSES)
    assert not frame["note"].any()
    contents = {path.read_bytes() for path in (tmp_path / "source").rglob("*.*") if path.is_file()}
    assert {(data / path).read_bytes() for path in frame["path"]} == contents
    sizes = set(zip(frame["width"], frame["height"], strict=True))
    assert sizes == {(48, 48), (64, 40), (36, 56), (80, 80)}
    assert frame.groupby("label")["split"].nunique().eq(3).all()


def test_known_patients_share_a_group_and_are_remembered(tmp_path: Path, capsys: Capture) -> None:
    data, table = tmp_path / "data", tmp_path / "patients.csv"
    source = write_zip(tmp_path / "source.zip", build_files(n_each=10))
    refuse(tmp_path, capsys, "patients.csv", source, "--data", data, "--patients", table)
    table.write_text("path,patient\ntop/A/0.png,p1\nImages/A/1.png,p1\nImages/A/2.png,\n")
    assert run(source, "--data", data, "--patients", table) == 0
    before = take_snapshot(data)
    frame = load_manifest(data).set_index("path")
    pair = frame.loc[["Images/A/0.png", "Images/A/1.png"]]
    assert set(pair["patient"]) == {"p1"}
    assert set(pair["group"]) == {"g" + min(pair["sha256"])[:12]}
    assert pair["duplicate_set"].nunique() == 2
    assert (frame["patient"] != "").sum() == 2
    assert frame["group"].nunique() == 19
    assert run(source, "--data", data) == 0
    assert take_snapshot(data) == before
    refuse(tmp_path, capsys, "choose another --data", source, "--data", data, "--ignore-patients")
    assert run(source, "--data", tmp_path / "new", "--ignore-patients") == 0
    frame = load_manifest(tmp_path / "new")
    assert (frame["patient"] == "").all()
    assert frame["group"].nunique() == 20


# ---- what is refused before anything is written


def test_bad_sources_are_refused(tmp_path: Path, capsys: Capture) -> None:
    files, unreadable = build_files(), {f"top/A/bad{number}.png": b"bad" for number in range(2)}
    large = tmp_path / "large.png"
    Image.new("1", (8001, 8000)).save(large)
    for pattern, content in (
        ("points outside the folder", files | {"../x.png": make_picture(1)}),
        ("one class only (A)", build_files(("A",), 30)),
        ("no image of class B can be read", build_files(("A",), 30) | {"top/B/1.png": b"bad"}),
        ("large.png: 8001 x 8000 pixels", files | {"top/A/large.png": large.read_bytes()}),
        ("2 of 14 images cannot be read", files | unreadable),
        ("class 'C' has 2 group(s)", files | {f"top/C/{n}.png": make_picture(n) for n in (1, 2)}),
    ):
        source = write_zip(tmp_path / "source.zip", content)
        refuse(tmp_path, capsys, pattern, source, "--data", tmp_path / "data")


def test_unsuitable_data_folders_are_refused(tmp_path: Path, capsys: Capture) -> None:
    files = build_files()
    source = write_zip(tmp_path / "source.zip", files)
    for number, (path, content, words) in enumerate(
        (
            ("A/1.png", make_picture(555), "exists and differs from"),
            ("A/1.png", files["top/A/1.png"] + b"more", "exists and differs from"),
            ("a/own.png", make_picture(555), "the same name on some systems"),
            ("A/1.PNG", make_picture(555), "the same name on some systems"),
        )
    ):
        data = write_folder(tmp_path / f"data{number}", {f"Images/{path}": content})
        refuse(tmp_path, capsys, words, source, "--data", data)
    refuse(tmp_path, capsys, "source.zip", source, "--data", source / "data")


def test_full_disks_leave_no_manifest(tmp_path: Path, capsys: Capture, monkeypatch: Patch) -> None:
    source, data = write_zip(tmp_path / "source.zip", build_files()), tmp_path / "data"
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", Mock(side_effect=full))
    assert "No space left on device" in expect_refusal(capsys, run(source, "--data", data))
    monkeypatch.undo()
    assert not manifest_path(data).exists()
    monkeypatch.setattr("preparation.manifest.write_manifest", Mock(side_effect=full))
    assert "No space left on device" in expect_refusal(capsys, run(source, "--data", data))
    monkeypatch.undo()
    assert read_audit(data)["n_images"] == 12  # written before the manifest
    assert run(source, "--data", data) == 0


# ---- phantoms


def test_phantoms_are_never_mixed(tmp_path: Path, phantom_dir: Path, capsys: Capture) -> None:
    data = tmp_path / "phantom"
    shutil.copytree(phantom_dir, data, ignore=shutil.ignore_patterns("cache"))
    audit, before = read_audit(data), take_snapshot(data)
    assert (audit["phantom"], audit["seed"], audit["n"]) == (True, 0, PHANTOMS)
    assert audit["n_patients"] == audit["n_groups"] == load_manifest(data)["patient"].nunique()
    assert run("--phantom", PHANTOMS, "--data", data) == 0
    assert f"python main.py --model net --data {data}" in capsys.readouterr().out
    shutil.rmtree(data / "cache", ignore_errors=True)  # result of the integrity check
    assert take_snapshot(data) == before
    for n_images, seed in ((30, 0), (PHANTOMS, 1)):
        other = ("--phantom", n_images, "--seed", seed, "--data", data)
        refuse(tmp_path, capsys, "holds other phantoms", *other)
    source = write_zip(tmp_path / "source.zip", build_files())
    refuse(tmp_path, capsys, "holds phantoms", source, "--data", data)
    refuse(tmp_path, capsys, "holds phantoms", data / "Images", "--data", tmp_path / "other")
    write_folder(data / "Images", {"Menin/own.png": make_picture(1)})
    refuse(tmp_path, capsys, "own.png is not a phantom", "--phantom", PHANTOMS, "--data", data)
    assert run(source, "--data", tmp_path / "real") == 0
    refuse(tmp_path, capsys, "holds real", "--phantom", 18, "--data", tmp_path / "real")
    refuse(tmp_path, capsys, "at least", "--phantom", 6, "--data", tmp_path / "few")


@pytest.mark.integration
def test_incomplete_phantoms_are_completed(tmp_path: Path) -> None:
    command = ("--phantom", 18, "--data", tmp_path)
    assert run(*command) == 0
    before = take_snapshot(tmp_path)
    (tmp_path / load_manifest(tmp_path)["path"][3]).unlink()
    manifest_path(tmp_path).write_text("damaged")
    assert run(*command) == 0
    assert drop_times(take_snapshot(tmp_path)) == drop_times(before)


@pytest.mark.data
@pytest.mark.integration
@pytest.mark.timeout(600)
@pytest.mark.skipif("BRAIN_MRI_DATA" not in os.environ, reason="BRAIN_MRI_DATA names no archive")
def test_real_archive(tmp_path: Path, capsys: Capture) -> None:
    data = tmp_path / "data"
    assert run(os.environ["BRAIN_MRI_DATA"], "--data", data) == 0
    frame = load_manifest(data)
    assert len(frame) == 4474
    assert frame["label"].value_counts().to_dict() == {"Glioma": 1237, "Menin": 1578, "Tumor": 1659}
    assert len(frame) - frame["sha256"].nunique() == 37
    assert not frame["note"].any()
    assert frame["duplicate_set"].nunique() == pytest.approx(1668, abs=40)
    assert frame["patient"].ne("").all()
    assert frame["patient"].nunique() == 145
    assert frame.groupby("patient")["split"].nunique().eq(1).all()
    assert frame["group"].nunique() == pytest.approx(141, abs=2)  # strong links join patients
    printed = capsys.readouterr().out
    assert "37 files repeat others" in printed
    assert "patients: 145, known for all 4474 images" in printed
    assert "4474 images are files of the published data set" in printed
    for split, share in zip(SPLITS, SHARES, strict=True):
        of_class = frame["split"].eq(split).groupby(frame["label"]).mean()
        assert of_class.to_numpy() == pytest.approx(share, abs=0.05)  # large groups
    audit = read_audit(data)
    for kind, least in (("duplicate", 0.999), ("related", 0.98)):
        links = audit["duplicates"]["links"][kind]
        assert 1 - links["across_classes"] / links["count"] >= least
    assert audit["leak"]["duplicate"] == pytest.approx(0.88, abs=0.02)
    assert audit["shortcut"]["brightness"] == pytest.approx(0.76, abs=0.03)
    assert {path.name for path in (data / "audit").iterdir()} == set(SHEETS)
