"""Known patients: tables, earlier manifests and pseudonyms of DICOM files."""

from pathlib import Path

import pytest

from helper import UserError
from preparation.manifest import ImageFacts, manifest_path
from preparation.patients import collect_patients, read_patients

NAMES = {"Images/A/1.jpg": "x/A/1.jpg", "Images/A/1_2.jpg": "y/A/1.jpg", "Images/B/2.jpg": ""}
PSEUDONYMS = ("p" + "0" * 16, "p" + "1" * 16)


def write_table(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_paths_and_unique_file_names_are_accepted(tmp_path: Path) -> None:
    table = write_table(
        tmp_path / "patients.csv",
        "path,patient,remark\n"
        "./x/A/1.jpg,p1,inside the source\n"
        "Images\\A\\1_2.jpg, p1 ,in the data folder\n"
        "2.jpg,,unknown\n",
    )
    assert read_patients(table, NAMES) == {"Images/A/1.jpg": "p1", "Images/A/1_2.jpg": "p1"}


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("path,patient\nnowhere.png,p\n", "row 2: 'nowhere.png' is not an image of the source"),
        ("path,patient\n1.jpg,p\n", "row 2: '1.jpg' may be any of 2 images"),
        ("path,group\n2.jpg,p\n", r"column\(s\) missing: patient; .*path,patient"),
        ("path,patient\n2.jpg,p\nImages/B/2.jpg,q\n", "row 3: 'Images/B/2.jpg' is listed with"),
        ("", "not a CSV table"),
    ],
)
def test_invalid_tables_are_refused(text: str, pattern: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"patients\.csv.*{pattern}"):
        read_patients(write_table(tmp_path / "patients.csv", text), NAMES)


def make_facts(*pseudonyms: str) -> dict[str, ImageFacts]:
    return {
        path: ImageFacts("x", 8, 8, 1.0, "L", patient=patient)
        for path, patient in zip(NAMES, pseudonyms, strict=True)
    }


def test_a_table_overrides_earlier_patients_and_these_override_dicom(tmp_path: Path) -> None:
    first, second, third = NAMES
    facts = make_facts(PSEUDONYMS[0], PSEUDONYMS[1], PSEUDONYMS[1])
    write_table(
        manifest_path(tmp_path),
        f"path,patient,split\n{first},anna,not checked\n{second},{PSEUDONYMS[0]},\n{third},ben,\n"
        "Images/A/removed.jpg,carl,\n",
    )
    table = write_table(tmp_path / "patients.csv", f"path,patient\n{third},dora\n")
    expected = {first: "anna", second: PSEUDONYMS[1], third: "dora"}
    assert collect_patients(tmp_path, facts, NAMES, table) == expected


def test_an_unusable_manifest_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_table(manifest_path(tmp_path), "path,group\n")
    assert collect_patients(tmp_path, make_facts("", "", ""), NAMES, None) == {}
    assert "give --patients again" in caplog.text


def test_one_patient_id_in_all_files_is_ignored(tmp_path: Path) -> None:
    assert collect_patients(tmp_path, make_facts(*[PSEUDONYMS[0]] * 3), NAMES, None) == {}
    facts = make_facts(PSEUDONYMS[0], PSEUDONYMS[0], "")
    assert len(collect_patients(tmp_path, facts, NAMES, None)) == 2
