"""Known patients: tables, earlier manifests and pseudonyms of DICOM files."""

from pathlib import Path

import pandas as pd
import pytest

from helper import UserError
from preparation import published as published_table
from preparation.manifest import ImageFacts, manifest_path
from preparation.patients import (
    DICOM,
    EARLIER,
    FOLDERS,
    GIVEN,
    MAX_STUDIES,
    PUBLISHED,
    collect_patients,
    read_patients,
)

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
    "text",
    [
        "File Name;Patient ID\n2.jpg;p\n",
        "PATIENT_ID\tPath\np\tImages/B/2.jpg\n",
        '"subject"|"image"\n"p"|"2.jpg"\n',
        "path,patient\nB/2.jpg,p\n",  # from a folder inside
        'path;"Patient, ID"\n2.jpg;p\n',
    ],
)
def test_tables_are_read_as_people_write_them(text: str, tmp_path: Path) -> None:
    table = write_table(tmp_path / "patients.csv", text)
    assert read_patients(table, NAMES) == {"Images/B/2.jpg": "p"}


def test_a_row_may_name_a_file_of_several_pictures(tmp_path: Path) -> None:
    names = {f"Images/A/v_{n}.png": f"A/v_{n}.png" for n in range(3)} | {"Images/B/x.png": "x.png"}
    containers = {name: "A/v.nii.gz" for name in names if "v_" in name}
    for row in ("A/v.nii.gz", "v.nii.gz"):
        table = write_table(tmp_path / "patients.csv", f"path,patient\n{row},anna\nx.png,ben\n")
        found = read_patients(table, names, containers)
        assert found == {**dict.fromkeys(containers, "anna"), "Images/B/x.png": "ben"}
    both = "v.nii.gz,anna\nA/v_1.png,ben\n"
    for text in (both, "".join(reversed(both.splitlines(keepends=True)))):
        table = write_table(tmp_path / "patients.csv", f"path,patient\n{text}")
        with pytest.raises(UserError, match=r"row 3: .* is listed with patient"):
            read_patients(table, names, containers)
    twice = containers | {"Images/B/v_9.png": "B/v.nii.gz"}
    table = write_table(tmp_path / "patients.csv", "path,patient\nv.nii.gz,anna\n")
    with pytest.raises(UserError, match=r"'v\.nii\.gz' is not an image"):
        read_patients(table, names, twice)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("path,patient\nnowhere.png,p\n", "row 2: 'nowhere.png' is not an image of the source"),
        ("path,patient\n1.jpg,p\n", "row 2: '1.jpg' may be any of 2 images"),
        ("path,group\n2.jpg,p\n", r"no column of patients among 'path', 'group'; .*path,patient"),
        ("patient,group\np,p\n", "no column of paths"),
        ("path,patient\n2.jpg,p\nImages/B/2.jpg,q\n", "row 3: 'Images/B/2.jpg' is listed with"),
        ("", "empty; write a CSV"),
        ('path,patient\n2.jpg,"p\n1.jpg,q\n', "row 3: unexpected end of data; close its quotes"),
        ("path,Patient,patient\n2.jpg,p,q\n", "two columns are called 'patient'"),
        ("path,patient\n\n\nnowhere.png,p\n", "row 4: 'nowhere.png'"),
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
        f"path,sha256,patient,split\n{first},x,anna,not checked\n{second},x,{PSEUDONYMS[0]},\n"
        f"{third},x,ben,\nImages/A/removed.jpg,x,carl,\n",
    )
    table = write_table(tmp_path / "patients.csv", f"path,patient\n{third},dora\n")
    expected = {first: "anna", second: PSEUDONYMS[1], third: "dora"}
    named = read_patients(table, NAMES)
    known = collect_patients(tmp_path, facts, named, {}, were_given=True)
    assert known.patients == expected
    assert known.sources == {GIVEN: 2, DICOM: 1}
    # what an earlier run found by itself comes last
    known = collect_patients(tmp_path, facts, named, {}, (FOLDERS, {first: "folder"}))
    assert known.patients == expected | {first: PSEUDONYMS[0]}
    plain = make_facts("", PSEUDONYMS[1], PSEUDONYMS[1])
    known = collect_patients(tmp_path, plain, named, {}, (FOLDERS, {first: "folder"}))
    assert known.patients == expected | {first: "folder"}
    known = collect_patients(tmp_path, plain, named, {})
    assert known.patients == expected
    assert known.sources == {GIVEN: 1, DICOM: 1, EARLIER: 1}


def test_inherited_patients_override_earlier_ones_and_are_remembered(tmp_path: Path) -> None:
    first, second, third = NAMES
    facts = make_facts("", "", PSEUDONYMS[1])
    write_table(manifest_path(tmp_path), f"path,sha256,patient\n{first},x,anna\n{second},x,ben\n")
    inherited = {first: PSEUDONYMS[0], second: "carl"}
    known = collect_patients(tmp_path, facts, {second: "dora"}, inherited)
    assert known.patients == {first: PSEUDONYMS[0], second: "dora", third: PSEUDONYMS[1]}
    rows = "".join(f"{path},x,{patient}\n" for path, patient in known.patients.items())
    write_table(manifest_path(tmp_path), f"path,sha256,patient\n{rows}")
    assert collect_patients(tmp_path, facts, {}, {}).patients == known.patients


def test_a_patient_of_whom_some_slices_inherit_a_name_is_not_divided(tmp_path: Path) -> None:
    first, second, third = NAMES
    facts = make_facts(PSEUDONYMS[0], PSEUDONYMS[0], PSEUDONYMS[1])
    known = collect_patients(tmp_path, facts, {}, {first: "seven"})
    assert known.patients == {first: "seven", second: "seven", third: PSEUDONYMS[1]}
    assert known.sources == {GIVEN: 2, DICOM: 1}
    # a row of a table corrects one slice
    known = collect_patients(tmp_path, facts, {second: "ben"}, {first: "seven"})
    assert known.patients[second] == "ben"
    # slices of two other patients: this one's own name stays
    facts = make_facts(*PSEUDONYMS[:1] * 2, PSEUDONYMS[0]) | {"Images/B/4.dcm": facts[third]}
    known = collect_patients(tmp_path, facts, {}, {first: "seven", second: "eight"})
    assert known.patients[third] == PSEUDONYMS[0]


def test_dicom_comes_before_folders(tmp_path: Path) -> None:
    first, second, _ = NAMES
    facts = make_facts(PSEUDONYMS[0], "", PSEUDONYMS[1])
    known = collect_patients(tmp_path, facts, {}, {}, (FOLDERS, {first: "x", second: "y"}))
    assert known.patients[first] == PSEUDONYMS[0]
    assert known.patients[second] == "y"
    known = collect_patients(tmp_path, facts, {}, {}, ("--patient-level", {first: "x"}))
    assert known.patients[first] == "x"


def test_columns_are_found_by_the_plainest_name_in_any_encoding(tmp_path: Path) -> None:
    content = "id;file;patient\n9;2.jpg;Mül\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "cp1252"):
        (tmp_path / "patients.csv").write_bytes(content.encode(encoding))
        assert read_patients(tmp_path / "patients.csv", NAMES) == {"Images/B/2.jpg": "Mül"}


def test_a_patient_follows_a_moved_file_and_not_another_file_of_its_name(tmp_path: Path) -> None:
    write_table(
        manifest_path(tmp_path),
        "path,sha256,patient\nImages/A/1.png,s1,anna\nImages/A/2.png,s2,ben\n"
        "Images/A/3.png,s3,carl\nImages/B/3.png,s3,dora\n",
    )
    facts = {
        path: ImageFacts(digest, 8, 8, 1.0, "L")
        for path, digest in (
            ("Images/B/1.png", "s1"),  # a corrected label
            ("Images/A/2.png", "s9"),  # another picture
            ("Images/A/3.png", "s3"),
            ("Images/B/4.png", "s3"),  # of one of two patients
        )
    }
    expected = {"Images/B/1.png": "anna", "Images/A/3.png": "carl"}
    assert collect_patients(tmp_path, facts, {}, {}).patients == expected


def test_an_unusable_manifest_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_table(manifest_path(tmp_path), "path,group\n")
    assert not collect_patients(tmp_path, make_facts("", "", ""), {}, {}).patients
    assert "give --patients again" in caplog.text


def test_one_patient_id_in_all_files_is_ignored(tmp_path: Path) -> None:
    assert not collect_patients(tmp_path, make_facts(*[PSEUDONYMS[0]] * 3), {}, {}).patients
    facts = make_facts(PSEUDONYMS[0], PSEUDONYMS[0], "")
    assert len(collect_patients(tmp_path, facts, {}, {}).patients) == 2


def make_studies(*studies: str) -> dict[str, ImageFacts]:
    return {
        path: ImageFacts("x", 8, 8, 1.0, "L", study=study)
        for path, study in zip(NAMES, studies, strict=True)
    }


def test_studies_are_kept_for_images_without_a_patient(tmp_path: Path) -> None:
    first, second, third = NAMES
    facts = make_studies("s1", "s1", "s2")
    studies = {first: "s1", second: "s1", third: "s2"}
    assert collect_patients(tmp_path, facts, {}, {}).studies == studies
    table = write_table(tmp_path / "patients.csv", f"path,patient\n{third},anna\n")
    named = read_patients(table, NAMES)
    assert set(collect_patients(tmp_path, facts, named, {}).studies) == {first, second}


def test_a_study_with_one_known_patient_is_in_one_group(tmp_path: Path) -> None:
    facts = make_studies("s1", "s1", "s1")
    first, second, third = NAMES
    assert set(collect_patients(tmp_path, facts, {first: "anna"}, {}).studies) == set(NAMES)
    # two patients are not joined by a study that names both
    named = {first: "anna", second: "ben"}
    assert set(collect_patients(tmp_path, facts, named, {}).studies) == {third}


def test_one_study_in_all_files_is_ignored(tmp_path: Path) -> None:
    assert not collect_patients(tmp_path, make_studies("s1", "s1", "s1"), {}, {}).studies


def test_published_files_are_recognised_and_a_table_overrides_them(tmp_path: Path) -> None:
    published = pd.read_csv(published_table.TABLE, dtype=str)
    first, second, _ = NAMES
    digests = [*(published["sha256"][:2] + "0" * 52), "f" * 64]
    facts = {
        path: ImageFacts(digest, 8, 8, 1.0, "L")
        for path, digest in zip(NAMES, digests, strict=True)
    }
    known = collect_patients(tmp_path, facts, {}, {})
    assert known.patients == {first: published["patient"][0], second: published["patient"][1]}
    assert known.sources == {PUBLISHED: 2}
    table = write_table(tmp_path / "patients.csv", f"path,patient\n{second},anna\n")
    known = collect_patients(tmp_path, facts, read_patients(table, NAMES), {})
    assert known.patients[second] == "anna"
    assert known.sources == {GIVEN: 1, PUBLISHED: 1}


def test_the_published_table_is_complete() -> None:
    published = pd.read_csv(published_table.TABLE, dtype=str)
    assert published["sha256"].str.fullmatch("[0-9a-f]{12}").all()
    assert published["sha256"].is_unique
    assert published["patient"].nunique() == 188
    assert published["slice"].nunique() == 2313
    assert published.groupby("slice")["patient"].nunique().eq(1).all()


def collect(
    tmp_path: Path, rows: list[tuple[str, str, str, str]]
) -> tuple[dict[str, str], dict[str, str]]:
    """Collect from rows of path, patient, study and series."""
    facts = {
        path: ImageFacts(path, 8, 8, 1.0, "L", patient=patient, study=study, series=series)
        for path, patient, study, series in rows
    }
    known = collect_patients(tmp_path, facts, {}, {})
    return known.patients, known.studies


def make_rows(n_studies: int, patient: str, classes: str = "AB") -> list[tuple[str, str, str, str]]:
    return [
        (f"Images/{classes[number % len(classes)]}/{number}-{place}.dcm", patient, f"s{number}", "")
        for number in range(n_studies)
        for place in range(2)
    ]


@pytest.mark.parametrize(
    ("n_studies", "classes", "others", "is_ignored"),
    [
        (4, "AB", [], True),  # one ID for all
        (4, "AB", [("Images/A/x.png", "", "", "")], True),  # for all that have one
        (4, "A", [("Images/B/x.png", "", "", "")], False),  # may be the only DICOM patient
        (MAX_STUDIES + 1, "AB", [("Images/A/x.dcm", "q", "t", "")], True),
        (MAX_STUDIES, "AB", [("Images/A/x.dcm", "q", "t", "")], False),
        (MAX_STUDIES + 9, "A", [("Images/A/x.dcm", "q", "t", "")], False),  # many scans of one
    ],
)
def test_an_id_that_names_many_is_ignored_and_its_studies_tie(
    n_studies: int,
    classes: str,
    others: list[tuple[str, str, str, str]],
    is_ignored: bool,
    tmp_path: Path,
) -> None:
    rows = make_rows(n_studies, "p", classes)
    patients, studies = collect(tmp_path, rows + others)
    paths = {path for path, *_ in rows}
    assert paths.isdisjoint(patients) == is_ignored
    assert ({path: study for path, _, study, _ in rows} == studies) == is_ignored
    assert all(patients.get(path, "") == patient for path, patient, *_ in others)


def test_series_tie_where_studies_do_not(tmp_path: Path) -> None:
    rows = [(f"Images/A/{place}.dcm", "", "s", f"r{place % 2}") for place in range(4)]
    assert set(collect(tmp_path, rows)[1].values()) == {"r0", "r1"}
    mixed = [("Images/A/1.dcm", "", "s", "r"), ("Images/A/2.dcm", "", "", "t")]
    assert list(collect(tmp_path, mixed)[1].values()) == ["s", "t"]
    assert collect(tmp_path, [(f"Images/A/{n}.dcm", "", "s", "r") for n in range(3)])[1] == {}
    same = [("Images/A/3.dcm", "", "s", "r"), ("Images/A/4.dcm", "", "", "r"), *mixed[1:]]
    assert list(collect(tmp_path, same)[1].values()) == ["s", "s", "t"]


def test_an_unreadable_file_does_not_change_what_ties(tmp_path: Path) -> None:
    rows = [(f"Images/A/{place}.dcm", "", "s", f"r{place % 2}") for place in range(4)]
    facts = {
        path: ImageFacts(path, 8, 8, 1.0, "L", patient=patient, study=study, series=series)
        for path, patient, study, series in rows
    }
    facts["Images/A/cut.dcm"] = ImageFacts("cut", 0, 0, float("nan"), "", "unreadable: truncated")
    assert collect_patients(tmp_path, facts, {}, {}).studies == collect(tmp_path, rows)[1]


def test_images_without_a_patient_in_a_study_of_several_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [("Images/A/1.dcm", "p", "s", ""), ("Images/A/2.dcm", "q", "s", "")]
    collect(tmp_path, [*rows, ("Images/B/3.dcm", "", "s", ""), ("Images/B/4.dcm", "", "t", "")])
    assert "1 studies hold images of several patients and of none" in caplog.text
