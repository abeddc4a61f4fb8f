"""prepare.py on class folders of DICOM: names without suffix, patients as groups, nothing said."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

from imaging.dicom import hash_patient
from imaging.reader import read_grey, read_patient
from preparation.manifest import list_images, load_manifest
from tests.support.dicom_files import (
    HIDDEN,
    SECRETS,
    build_dataset,
    encode_dataset,
    encode_dicom,
)
from tests.support.sources import picture, refuse, run, take_snapshot, write_zip

NAMES = ("IM{:06d}", "{}.dcm", "1.2.840.4.{}", "{}.IMA")  # as scanners and archives name files


def slice_of(patient: str, seed: int) -> bytes:
    """A file of 8 x 8 values of 12 bit that no other seed gives."""
    values = np.random.default_rng(seed).integers(0, 4096, (8, 8), dtype=np.uint16)
    return encode_dicom(values, PatientID=patient)


def build_classes(patients: tuple[str, ...], n_each: int = 2) -> dict[str, bytes]:
    """Classes A and B of the same number of patients, each with some slices."""
    files = {}
    for label in "AB":
        for place in range(len(patients) * n_each):
            number = place + 100 * "AB".index(label)
            name = NAMES[place % len(NAMES)].format(number)
            patient = patients[place // n_each].format(label)
            files[f"top/{label}/{name}"] = slice_of(patient, number)
    return files


PATIENTS = tuple(f"hidden-4711-{number}-{{}}" for number in range(6))


def read_written(data: Path) -> str:
    """Everything that prepare.py wrote to be read, in lower case."""
    paths = [path for path in data.rglob("*") if path.suffix in {".csv", ".json", ".txt", ".html"}]
    return "\n".join(path.read_text("utf-8") for path in paths).lower()


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_patients_of_dicom_are_groups_under_pseudonyms(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, source, data = build_classes(PATIENTS), tmp_path / "source", tmp_path / "data"
    extra = {"top/DICOMDIR": files["top/A/1.dcm"]}
    extra |= {"top/A/README": b"DICM " * 99, "top/B/notes.txt": b"text"}
    if kind == "zip":
        write_zip(source, files | extra)
    else:
        for name, content in (files | extra).items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(content)
    assert run(source, "--data", data) == 0
    printed = capsys.readouterr().out

    issuer = SECRETS["IssuerOfPatientID"]
    pseudonyms = {hash_patient(name.format(label), issuer) for name in PATIENTS for label in "AB"}
    frame = load_manifest(data)
    assert len(frame) == 24
    assert set(frame["path"]) == set(list_images(data))
    assert set(frame["path"]) == {name.replace("top/", "Images/") for name in files}
    assert not frame["note"].any()
    contents = [files[path.replace("Images/", "top/")] for path in frame["path"]]
    means = [read_grey(content).mean() for content in contents]
    assert frame["mean"].tolist() == pytest.approx(means, abs=0.0006)
    patients = pd.Series([read_patient(content) for content in contents])
    assert set(patients) == pseudonyms
    assert patients.nunique() == frame["group"].nunique() == 12
    assert (frame.groupby("group")["path"].size() == 2).all()
    assert len(set(zip(patients, frame["group"], strict=True))) == 12

    audit = json.loads((data / "CSV" / "audit.json").read_text("utf-8"))
    assert audit["n_patients"] == 12
    assert audit["modes"] == {"MONOCHROME2 16-bit": 24}
    assert audit["ignored_files"]["count"] == 3
    assert "12 patients by the PatientID of 24 DICOM files" in printed
    assert "12 known patients" in printed
    for part in HIDDEN:
        assert part not in read_written(data)
        assert part not in printed.lower()

    first = take_snapshot(data)
    assert run(source, "--data", data) == 0
    assert run(data / "Images", "--data", data) == 0
    after = take_snapshot(data)
    audit_path = "CSV/audit.json"  # names the source, which is another now
    assert {**after, audit_path: b""} == {**first, audit_path: b""}


def test_groups_win_over_what_dicom_says(tmp_path: Path) -> None:
    files, data, groups = build_classes(PATIENTS), tmp_path / "data", tmp_path / "groups.csv"
    first, second, third = (name for name in list(files)[:3])
    groups.write_text(f"path,group\n{first},mine\n{third},mine\n")
    assert run(write_zip(tmp_path / "s.zip", files), "--data", data, "--groups", groups) == 0
    group_of = load_manifest(data).set_index("path")["group"]
    first, second, third = (name.replace("top/", "Images/") for name in (first, second, third))
    assert group_of[first] == group_of[third] != group_of[second]
    table = pd.read_csv(data / "CSV" / "patients.csv", index_col="path")["group"]
    assert table.to_dict() == {first: "mine", third: "mine"}


def test_a_file_that_was_replaced_is_of_its_new_patient(tmp_path: Path) -> None:
    files, data = build_classes(PATIENTS), tmp_path / "data"
    assert run(write_zip(tmp_path / "s.zip", files), "--data", data) == 0
    first, second, third = (name.replace("top/", "Images/") for name in list(files)[:3])
    group_of = load_manifest(data).set_index("path")["group"]
    assert group_of[first] == group_of[second] != group_of[third]
    other = pydicom.dcmread(data / third)
    replaced = pydicom.dcmread(data / first)
    replaced.PatientID = other.PatientID
    replaced.save_as(data / first)
    assert run(data / "Images", "--data", data) == 0
    group_of = load_manifest(data).set_index("path")["group"]
    assert group_of[first] == group_of[third] != group_of[second]


def test_a_number_that_all_files_share_ties_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, data = build_classes(("ANONYMOUS",), n_each=8), tmp_path / "data"
    assert run(write_zip(tmp_path / "source.zip", files), "--data", data) == 0
    assert "PatientID is the same in all 16 DICOM files: passed over" in capsys.readouterr().out
    assert load_manifest(data)["group"].nunique() == 16
    assert not (data / "CSV" / "patients.csv").exists()


def test_too_few_patients_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = build_classes(("hidden-{}",), n_each=8)  # one patient a class
    source = write_zip(tmp_path / "source.zip", files)
    refuse(tmp_path, capsys, "has 1 group(s) of slices", source, "--data", tmp_path / "data")


def test_pictures_and_dicom_may_lie_together(tmp_path: Path) -> None:
    files = build_classes(PATIENTS[:3])
    files |= {f"top/A/{number}.png": picture(number) for number in range(9)}
    files |= {f"top/B/{number}.png": picture(number + 50) for number in range(9)}
    data = tmp_path / "data"
    assert run(write_zip(tmp_path / "source.zip", files), "--data", data) == 0
    audit = json.loads((data / "CSV" / "audit.json").read_text("utf-8"))
    assert audit["modes"] == {"L": 18, "MONOCHROME2 16-bit": 12}
    assert audit["n_patients"] == 6


def test_a_file_of_several_frames_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, data = build_classes(PATIENTS), tmp_path / "data"
    frames = np.arange(128, dtype=np.uint8).reshape(2, 8, 8)
    files["top/A/film.dcm"] = encode_dataset(build_dataset(frames, n_frames=2))
    assert run(write_zip(tmp_path / "source.zip", files), "--data", data) == 0
    row = load_manifest(data).set_index("path").loc["Images/A/film.dcm"]
    note = "unreadable: 2 frames; a picture has one: save each to a file of its own"
    assert (row["note"], row["width"], row["split"]) == (note, 0, "")
    assert f"not readable: Images/A/film.dcm ({note})" in capsys.readouterr().out


def test_a_frame_over_the_limit_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = build_classes(PATIENTS)
    files["top/A/large"] = encode_dicom(np.zeros((1, 1), np.uint8), Rows=9000, Columns=9000)
    source = write_zip(tmp_path / "source.zip", files)
    pattern = "Images/A/large: 9000 x 9000 pixels, over the limit of 6 million; make it smaller"
    refuse(tmp_path, capsys, pattern, source, "--data", tmp_path / "data")
