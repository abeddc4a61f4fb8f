"""prepare.py through its command line: what it writes, what it leaves alone, what it refuses."""

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import prepare
from helper import UserError
from imaging.reader import read_grey
from preparation.contact_sheets import PICTURES
from preparation.manifest import COLUMNS, load_manifest, manifest_path, read_groups
from tests.support.four_classes import CLASSES, write_four_class_folder
from tests.support.sources import build_files, picture, refuse, run, take_snapshot, write_zip


def test_archive_becomes_classes_manifest_and_audit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = build_files(("brain_glioma", "brain_menin", "brain_tumor"))
    files["top/brain_tumor/5 - Copy.png"] = files["top/brain_tumor/5.png"]
    files["top/readme.txt"] = b"text"
    source, data = write_zip(tmp_path / "source.zip", files), tmp_path / "data"
    assert run(source, "--data", data) == 0

    frame = load_manifest(data)
    assert tuple(frame.columns) == COLUMNS
    assert len(frame) == 19
    assert list(frame["path"]) == sorted(frame["path"])
    for row in frame.itertuples():
        content = (data / str(row.path)).read_bytes()
        inside = f"top/brain_{str(row.label).lower()}/{Path(str(row.path)).name}"
        assert content == files[inside]
        assert row.sha256 == hashlib.sha256(content).hexdigest()
        assert (row.width, row.height) == (8, 8)
        assert row.mean == pytest.approx(read_grey(content).mean(), abs=0.0006)
        assert (row.slice, row.group) == (f"s{row.sha256[:12]}", f"g{row.sha256[:12]}")
    pair = frame[frame["path"].isin(["Images/Tumor/5.png", "Images/Tumor/5 - Copy.png"])]
    assert pair[["slice", "group", "split"]].drop_duplicates().shape[0] == 1
    assert len(pair) == 2

    audit = json.loads((data / "CSV" / "audit.json").read_text("utf-8"))
    assert audit["phantom"] is False
    assert audit["source"] == "source.zip"
    assert audit["classes"] == {"Glioma": 6, "Menin": 6, "Tumor": 7}
    assert audit["sizes"] == {"8 x 8": 19}
    assert audit["modes"] == {"L": 19}
    assert audit["byte_copies"] == {"files": 1, "sets": 1, "sets_across_classes": 0}
    assert audit["ignored_files"] == {"count": 1, "first": ["top/readme.txt"]}
    assert audit["publisher"]["agrees"] is False

    printed = capsys.readouterr().out
    for part in (
        "2,004 / 2,004 / 2,048",
        "here 6 / 6 / 7",
        "512 x 512",
        "1 files repeat others",
        "19 files are 18 distinct slices",
        "of a random test split",
        f"python main.py --model resnet18 --epochs 30 --data {data}",
        "Research use only",
    ):
        assert part in printed


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "folder"])
def test_twice_changes_nothing_and_kinds_agree(kind: str, tmp_path: Path) -> None:
    files, data, source = build_files(), tmp_path / "data", tmp_path / "source"
    if kind == "zip":
        write_zip(source, files)
    elif kind == "folder":
        for name, content in files.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(content)
    else:
        with tarfile.open(source, "w:gz") as target:
            for name, content in reversed(files.items()):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                target.addfile(member, io.BytesIO(content))
    assert run(source, "--data", data) == 0
    first = take_snapshot(data)
    assert run(source, "--data", data) == 0
    assert take_snapshot(data) == first
    by_hand = write_zip(tmp_path / "other.zip", files)
    assert run(by_hand, "--data", tmp_path / "data2") == 0
    assert manifest_path(tmp_path / "data2").read_bytes() == manifest_path(data).read_bytes()


def test_half_written_folder_is_completed(tmp_path: Path) -> None:
    files, data = build_files(), tmp_path / "data"
    source = write_zip(tmp_path / "source.zip", files)
    assert run(source, "--data", data) == 0
    whole = {name: content for name, (content, _) in take_snapshot(data).items()}
    untouched = (data / "Images/B/3.png").stat().st_mtime_ns
    (data / "Images/A/1.png").unlink()
    (data / "Images/A/2.png").write_bytes(whole["Images/A/2.png"][:20])
    (data / "Images/B/1.png").write_bytes(b"")
    manifest_path(data).unlink()
    assert run(source, "--data", data) == 0
    assert {name: content for name, (content, _) in take_snapshot(data).items()} == whole
    assert (data / "Images/B/3.png").stat().st_mtime_ns == untouched


def test_data_folder_as_its_own_source(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name, content in build_files(("brain_menin", "brain_tumor")).items():
        path = data / "Images" / name.removeprefix("top/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    before = take_snapshot(data / "Images")
    assert run(data / "Images", "--data", data) == 0
    assert set(load_manifest(data)["label"]) == {"brain_menin", "brain_tumor"}
    first = take_snapshot(data)
    assert run(data, "--data", data) == 0
    assert take_snapshot(data) == first
    assert take_snapshot(data / "Images") == before


def test_a_source_around_the_data_folder_is_not_read_twice(tmp_path: Path) -> None:
    for name, content in build_files().items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for _ in range(2):
        assert run(tmp_path, "--data", tmp_path / "data") == 0
        assert len(load_manifest(tmp_path / "data")) == 12


def test_pictures_that_the_source_has_not_stay_and_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    (data / "Images" / "A").mkdir(parents=True)
    (data / "Images" / "A" / "own.png").write_bytes(picture(999))
    assert run(write_zip(tmp_path / "source.zip", build_files()), "--data", data) == 0
    assert "Images/A/own.png" in set(load_manifest(data)["path"])
    assert "1 images of the folder are not in the source" in capsys.readouterr().out


def test_one_unreadable_image_is_named_and_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = build_files()
    files["top/A/broken.png"] = picture(7)[:40]
    data = tmp_path / "data"
    assert run(write_zip(tmp_path / "source.zip", files), "--data", data) == 0
    row = load_manifest(data).set_index("path").loc["Images/A/broken.png"]
    assert row["note"].startswith("unreadable: damaged")
    assert (row["width"], row["height"], row["split"]) == (0, 0, "")
    assert np.isnan(row["mean"])
    assert row["slice"] == "s" + row["sha256"][:12]
    assert "not readable: Images/A/broken.png" in capsys.readouterr().out
    audit = json.loads((data / "CSV" / "audit.json").read_text("utf-8"))
    assert list(audit["unreadable"]) == ["Images/A/broken.png"]


def test_four_other_classes_lose_no_file(tmp_path: Path) -> None:
    data = tmp_path / "data"
    count = write_four_class_folder(tmp_path / "source")
    assert run(tmp_path / "source", "--data", data) == 0
    frame = load_manifest(data)
    assert len(frame) == count == 60
    assert set(frame["label"]) == set(CLASSES)
    assert not frame["note"].any()
    assert frame["slice"].nunique() == 60
    contents = {path.read_bytes() for path in (tmp_path / "source").rglob("*.*") if path.is_file()}
    assert {(data / path).read_bytes() for path in frame["path"]} == contents
    turned = frame[frame["path"] == "Images/left lobe/scan 3.jpg"].iloc[0]
    assert (turned["width"], turned["height"]) == (80, 80)
    sizes = set(zip(frame["width"], frame["height"], strict=True))
    assert sizes == {(48, 48), (64, 40), (36, 56), (80, 80)}
    for _, rows in frame.groupby("label"):
        assert set(rows["split"]) == {"train", "val", "test"}


def test_known_patients_share_a_group_and_are_remembered(tmp_path: Path) -> None:
    data, groups = tmp_path / "data", tmp_path / "patients.csv"
    source = write_zip(tmp_path / "source.zip", build_files(n_each=10))
    groups.write_text(
        "path,group,remark\n"
        "top/A/0.png,p1,by its path inside the source\n"
        "Images/A/1.png,p1,by its path in data\n"
        "Images/A/2.png,,unknown\n"
    )
    assert run(source, "--data", data, "--groups", groups) == 0
    first = take_snapshot(data)
    frame = load_manifest(data).set_index("path")
    pair = frame.loc[["Images/A/0.png", "Images/A/1.png"]]
    assert pair["group"].nunique() == 1
    assert pair["slice"].nunique() == 2
    assert set(pair["group"]) == {"g" + min(pair["sha256"])[:12]}
    assert frame["group"].nunique() == 19
    assert run(source, "--data", data) == 0  # patients once known are not forgotten
    assert take_snapshot(data) == first


def test_groups_by_file_name_when_it_is_the_only_one(tmp_path: Path) -> None:
    groups = tmp_path / "patients.csv"
    names = {"Images/A/1.jpg": "x/A/1.jpg", "Images/A/1_2.jpg": "y/A/1.jpg", "Images/B/2.jpg": ""}
    groups.write_text("path,group\n2.jpg,p\n1_2.jpg,q\n")
    assert read_groups(groups, names) == {"Images/B/2.jpg": "p", "Images/A/1_2.jpg": "q"}
    groups.write_text("path,group\n1.jpg,p\n")
    with pytest.raises(UserError, match="may be any of 2 images"):
        read_groups(groups, names)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("path,group\nnowhere.png,p\n", "row 2: 'nowhere.png' is no image of the source"),
        ("path,group\n0.png,p\n", "row 2: '0.png' may be any of 2 images"),
        ("path,patient\ntop/A/0.png,p\n", "column(s) missing: group"),
        ("path,group\ntop/A/0.png,p\nImages/A/0.png,q\n", "row 3: 'Images/A/0.png' is listed in"),
        ("", "not a CSV table"),
    ],
)
def test_groups_that_cannot_be_used_are_refused(
    text: str, pattern: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_zip(tmp_path / "source.zip", build_files())
    (tmp_path / "groups.csv").write_text(text)
    command = (source, "--data", tmp_path / "data", "--groups", tmp_path / "groups.csv")
    refuse(tmp_path, capsys, pattern, *command)


def test_missing_groups_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_zip(tmp_path / "source.zip", build_files())
    command = (source, "--data", tmp_path / "data", "--groups", tmp_path / "absent.csv")
    refuse(tmp_path, capsys, "absent.csv", *command)


def test_other_content_under_a_name_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, data = write_zip(tmp_path / "source.zip", build_files()), tmp_path / "data"
    (data / "Images" / "A").mkdir(parents=True)
    (data / "Images" / "A" / "1.png").write_bytes(picture(555))
    refuse(tmp_path, capsys, "exists with other content", source, "--data", data)


def test_a_class_folder_of_other_case_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, data = write_zip(tmp_path / "source.zip", build_files()), tmp_path / "data"
    (data / "Images" / "a").mkdir(parents=True)
    (data / "Images" / "a" / "own.png").write_bytes(picture(555))
    refuse(tmp_path, capsys, "the same on some systems", source, "--data", data)


def test_a_data_folder_that_cannot_be_made_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_zip(tmp_path / "source.zip", build_files())
    (tmp_path / "file").write_text("a file where a folder is wanted")
    refuse(tmp_path, capsys, "file", source, "--data", tmp_path / "file" / "data")


def test_a_full_disk_is_one_line_and_leaves_no_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, data = write_zip(tmp_path / "source.zip", build_files()), tmp_path / "data"

    def fail(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", fail)
        assert run(source, "--data", data) == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert len(error.splitlines()) == 1
    assert not manifest_path(data).exists()
    assert run(source, "--data", data) == 0


@pytest.mark.parametrize(
    "argv", [[], ["a.zip", "--phantom", "12"], ["--phantom", "3"], ["a.zip", "--nonsense"]]
)
def test_wrong_command_lines_are_status_2(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        prepare.main(argv)
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_phantoms_have_the_same_layout_and_the_true_groups(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "phantom"
    assert run("--phantom", 12, "--seed", 5, "--data", data) == 0
    frame = load_manifest(data)
    truth = pd.read_csv(data / "CSV" / "phantoms.csv").set_index("path").loc[frame["path"]]
    assert len(frame) == 12
    assert {"label", "patient", "slice", "plane", "sibling", "seed"} <= set(truth.columns)
    assert list(frame["group"]) == [f"g{patient:06d}" for patient in truth["patient"]]
    assert list(frame["slice"]) == [f"s{slice_:06d}" for slice_ in truth["slice"]]
    assert list(frame["label"]) == list(truth["label"])
    assert (frame["width"] == 512).all()
    audit = json.loads((data / "CSV" / "audit.json").read_text("utf-8"))
    assert (audit["phantom"], audit["seed"], audit["n"]) == (True, 5, 12)
    assert f"python main.py --model net --data {data}" in capsys.readouterr().out

    first = take_snapshot(data)
    assert run("--phantom", 12, "--seed", 5, "--data", data) == 0
    assert take_snapshot(data) == first
    refuse(tmp_path, capsys, "holds other phantoms", "--phantom", 30, "--seed", 5, "--data", data)
    refuse(tmp_path, capsys, "holds other phantoms", "--phantom", 12, "--seed", 6, "--data", data)
    source = write_zip(tmp_path / "source.zip", build_files())
    refuse(tmp_path, capsys, "holds phantoms", source, "--data", data)
    refuse(tmp_path, capsys, "holds phantoms", data / "Images", "--data", tmp_path / "other")

    (data / frame["path"][3]).unlink()
    manifest_path(data).unlink()
    assert run("--phantom", 12, "--seed", 5, "--data", data) == 0
    completed = take_snapshot(data)
    assert {name: content for name, (content, _) in completed.items()} == {
        name: content for name, (content, _) in first.items()
    }


def test_phantoms_are_not_mixed_with_real_slices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, data = write_zip(tmp_path / "source.zip", build_files()), tmp_path / "data"
    assert run(source, "--data", data) == 0
    refuse(tmp_path, capsys, "holds real slices", "--phantom", 12, "--data", data)


def test_too_few_phantoms_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refuse(tmp_path, capsys, "at least", "--phantom", 6, "--data", tmp_path / "phantom")


@pytest.mark.data
@pytest.mark.skipif("BRAIN_MRI_DATA" not in os.environ, reason="BRAIN_MRI_DATA names no archive")
def test_real_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    assert run(os.environ["BRAIN_MRI_DATA"], "--data", data) == 0
    frame = load_manifest(data)
    assert frame["label"].value_counts().to_dict() == {"Glioma": 1237, "Menin": 1578, "Tumor": 1659}
    assert len(frame) - frame["sha256"].nunique() == 37
    assert not frame["note"].any()
    assert frame["slice"].nunique() == pytest.approx(1668, abs=40)
    assert frame["group"].nunique() == pytest.approx(1233, abs=60)
    assert frame["group"].value_counts().max() <= 60
    output = capsys.readouterr().out
    assert "37 files repeat others" in output
    shares = frame["split"].value_counts(normalize=True)
    assert shares["train"] == pytest.approx(0.70, abs=0.005)
    audit = json.loads((data / "CSV" / "audit.json").read_text("utf-8"))
    for kind, least in (("slice", 0.999), ("group", 0.98)):
        links = audit["copies"]["links"][kind]
        assert 1 - links["across_classes"] / links["count"] >= least
    assert audit["leak"]["copy"] == pytest.approx(0.88, abs=0.02)
    assert audit["shortcut"]["brightness"] == pytest.approx(0.76, abs=0.03)
    assert {path.name for path in (data / "audit").iterdir()} == set(PICTURES)
