"""prepare.py on class folders of DICOM: any file name, patients as groups, nothing disclosed."""

from pathlib import Path

import numpy as np
import pytest

from imaging.dicom import hash_patient
from imaging.reader import read_grey
from preparation.audit import read_audit
from preparation.manifest import load_manifest
from tests.support.builders import Capture
from tests.support.dicom_files import HIDDEN, SECRETS, build_dataset, encode_dataset, encode_dicom
from tests.support.sources import make_picture, refuse, run, take_snapshot, write_zip

NAMES = ("IM{:06d}", "{}.dcm", "1.2.840.4.{}", "{}.IMA")  # as scanners and archives name files
PATIENTS = tuple(f"hidden-4711-{number}-{{}}" for number in range(6))


def build_classes(patients: tuple[str, ...], n_each: int = 2) -> dict[str, bytes]:
    """Classes A and B with the same number of patients and slices."""
    files = {}
    for label in "AB":
        for place in range(len(patients) * n_each):
            number = place + 100 * (label == "B")
            values = np.random.default_rng(number).integers(0, 4096, (8, 8), dtype=np.uint16)
            name = NAMES[place % len(NAMES)].format(number)
            patient = patients[place // n_each].format(label)
            files[f"top/{label}/{name}"] = encode_dicom(values, PatientID=patient)
    return files


def test_patients_are_groups_under_pseudonyms(tmp_path: Path, capsys: Capture) -> None:
    files, data = build_classes(PATIENTS), tmp_path / "data"
    frames = np.random.default_rng(0).integers(0, 255, (2, 8, 8), dtype=np.uint8)
    film = encode_dataset(build_dataset(frames, n_frames=2, PatientID="film"))
    extra = {"top/A/film.dcm": film, "top/A/a.png": make_picture(1), "top/B/b.png": make_picture(2)}
    ignored = {"top/DICOMDIR": files["top/A/1.dcm"], "top/A/README": b"DICM " * 99}
    source = write_zip(tmp_path / "source", files | extra | ignored)
    assert run(source, "--data", data) == 0
    printed = capsys.readouterr().out

    frame = load_manifest(data).set_index("path")
    pages = ["top/A/film_0001.dcm", "top/A/film_0002.dcm"]
    names = {*files, *extra, *pages} - {"top/A/film.dcm"}
    assert set(frame.index) == {name.replace("top/", "Images/") for name in names}
    film_rows = frame.loc[[name.replace("top/", "Images/") for name in pages]]
    assert film_rows["group"].nunique() == film_rows["patient"].nunique() == 1
    rows = frame.drop(film_rows.index)
    rows = rows[rows["patient"] != ""]
    issuer = SECRETS["IssuerOfPatientID"]
    pseudonyms = {hash_patient(name.format(label), issuer) for name in PATIENTS for label in "AB"}
    assert set(rows["patient"]) == pseudonyms
    assert (rows.groupby("patient").size() == 2).all()
    assert len(rows[["patient", "group"]].drop_duplicates()) == rows["group"].nunique() == 12
    means = [read_grey(files[path.replace("Images/", "top/")]).mean() for path in rows.index]
    assert rows["mean"].tolist() == pytest.approx(means, abs=0.0006)

    audit = read_audit(data)
    assert audit["n_patients"] == 13
    assert audit["modes"] == {"MONOCHROME2 16-bit": 24, "MONOCHROME2 8-bit": 2, "L": 2}
    assert audit["ignored_files"]["count"] == 2
    for part in (
        "13 patients by the PatientID of 26 DICOM files",
        "patients: 13, known for 26 of 28",
        "1 files hold several pictures, 2 in all",
    ):
        assert part in printed
    tables = [path for path in data.rglob("*") if path.suffix in {".csv", ".json"}]
    written = "".join(path.read_text("utf-8") for path in tables).lower()
    assert not [part for part in HIDDEN if part in written or part in printed.lower()]

    first = take_snapshot(data)
    assert run(source, "--data", data) == 0
    assert take_snapshot(data) == first


def test_a_study_without_patient_stays_in_one_split(tmp_path: Path, capsys: Capture) -> None:
    """Studies of 1 to 155 slices, no PatientID: each study is one group, and none is divided."""
    sizes = (155, 1, 40, 7, 7, 7)
    files = {}
    for label in "AB":
        for study, size in enumerate(sizes):
            for place in range(size):
                values = np.random.default_rng([study, place, ord(label)]).integers(0, 255, (4, 4))
                uid = f"1.2.826.0.1.4711.{ord(label)}.{study}"
                files[f"top/{label}/{study}-{place}.dcm"] = encode_dicom(
                    values.astype(np.uint8), PatientID="", StudyInstanceUID=uid
                )
    assert run(write_zip(tmp_path / "source", files), "--data", tmp_path / "data") == 0
    frame = load_manifest(tmp_path / "data")
    study = frame["path"].str.extract(r"Images/(.*)-")[0]
    assert (frame["patient"] == "").all()
    assert frame.groupby(study)["group"].nunique().eq(1).all()
    assert frame["group"].nunique() == 2 * len(sizes)
    assert frame.groupby(study)["split"].nunique().eq(1).all()
    assert "each of these 12 stays in one split" in capsys.readouterr().out


def test_large_frames_are_refused(tmp_path: Path, capsys: Capture) -> None:
    large = encode_dicom(np.zeros((1, 1), np.uint8), Rows=9000, Columns=9000)
    source = write_zip(tmp_path / "a.zip", build_classes(PATIENTS) | {"top/A/large": large})
    refuse(tmp_path, capsys, "A/large: 9000 x 9000 pixels", source, "--data", tmp_path / "data")
