"""Which folder is the class, the patient and the published split, for trees as people have them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from helper import UserError
from preparation.folder_kinds import FolderKind, are_identifiers, find_folder_kind, find_split
from preparation.label_table import read_label_table
from preparation.layout import Layout, read_layout
from preparation.options import LayoutConfig

WHERE = Path("source")


def tree(*folders: str, n: int = 3, name: str = "IM{}.png") -> list[str]:
    """Names of n images in each folder; {a,b} stands for several folders."""
    names: list[str] = []
    for folder in folders:
        if "{" in folder:
            start, _, rest = folder.partition("{")
            options, _, end = rest.partition("}")
            names += tree(*(f"{start}{each}{end}" for each in options.split(",")), n=n, name=name)
        else:
            names += [f"{folder}/{name.format(number)}".lstrip("/") for number in range(n)]
    return names


def numbers(pattern: str, count: int) -> str:
    return "{" + ",".join(pattern.format(number) for number in range(count)) + "}"


def read(names: Sequence[str], **options: object) -> Layout:
    return read_layout(names, WHERE, LayoutConfig(**options))  # type: ignore[arg-type]


PATIENTS_A, PATIENTS_B = numbers("patient_{:02d}", 8), numbers("patient_{:02d}", 12)


@pytest.mark.parametrize(
    ("names", "classes", "n_patients"),
    [
        # the class is the only folder
        (tree("{yes,no}"), "no yes", 0),
        (tree("set/{yes,no}"), "no yes", 0),
        (tree("{1,2,3}"), "1 2 3", 0),
        (tree("{grade1,grade2,grade3,grade4}"), "grade1 grade2 grade3 grade4", 0),
        # published splits above or below it
        (tree("{Training,Testing}/{glioma_tumor,no_tumor}"), "glioma_tumor no_tumor", 0),
        (tree("{train,valid,test}/{glioma,notumor}"), "glioma notumor", 0),
        (tree("archive/{Train_set,Test_set}/{yes,no}"), "no yes", 0),
        (tree("{yes,no}/{train,test}"), "no yes", 0),
        # patients below, and above, the class
        (tree(f"{{yes,no}}/{numbers('patient_{:02d}', 8)}"), "no yes", 16),
        (tree(f"yes/{numbers('{:02d}', 6)}", f"no/{numbers('{:02d}', 8)}"), "no yes", 14),
        (tree(f"{numbers('P{:03d}', 40)}/{{yes,no}}", n=1), "no yes", 80),
        (tree("{center1,center2,center3}/{yes,no}"), "no yes", 0),
        (tree(f"{{yes,no}}/{numbers('fold_{}', 12)}"), "no yes", 0),
        (tree("{yes,no}/{1.5T,3T}"), "no yes", 0),
        (tree("{yes,no}/{site0,site1}/{p00,p01,p02}"), "no yes", 12),
        (
            tree(*(f"{kind}/TCGA_{n:04d}" for n in range(3) for kind in ("HGG", "LGG"))),
            "HGG LGG",
            3,
        ),
        (tree(f"train/{{a,b}}/{PATIENTS_A}", f"test/{{a,b}}/{PATIENTS_B}"), "a b", 24),
        (tree(f"{{1,2}}/{numbers('{:03d}', 12)}"), "1 2", 24),
        # sequences, planes and folders of pictures beside masks
        (tree("{glioma,meningioma}/{T1,T2}"), "glioma meningioma", 0),
        (tree("{glioma,menin}/{ax t1,sag_t2,FLAIR}"), "glioma menin", 0),
        (tree("{T1,T2}/{glioma,menin}"), "glioma menin", 0),
        (tree("{COVID,Normal}/images", "{COVID,Normal}/masks"), "COVID Normal", 0),
        (tree("Test/{A,B}/images", "Test/{A,B}/lung masks"), "A B", 0),
        # a copy of everything below a wrapper
        (tree("{yes,no}", "brain_tumor_dataset/{yes,no}"), "no yes", 0),
    ],
)
def test_class_and_patient_are_found(names: list[str], classes: str, n_patients: int) -> None:
    layout = read(names)
    assert " ".join(sorted(set(layout.labels.values()))) == classes
    assert len(set(layout.patients.values())) == n_patients
    assert set(layout.labels) | {n for left in layout.left_out.values() for n in left} == set(names)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (tree("{center,clinic}/{yes,no}"), ["center 6, clinic 6", "yes 6", "--class-level"]),
        (tree("Tumor/{glioma,menin}", "Normal/normal"), ["Tumor 6", "glioma 3", "--class-level"]),
        (tree("{glioma,menin}/{north,south}"), ["glioma 6", "north 6"]),
        (tree(numbers("patient_{:02d}", 20)), ["20 folders", "patients", "--labels"]),
        (tree(numbers("TCGA_CS_{:04d}", 40)), ["40 folders", "patients"]),
        (tree("{patient_1,patient_2,patient_3}"), ["3 folders", "patients"]),
        (tree("{TCGA_CS_4941_1996,TCGA_CS_4942_1996}"), ["2 folders", "patients"]),
        (tree("{T1,T2,FLAIR}"), ["sequence or plane", "--labels"]),
        (tree("{train,test}"), ["published split", "--labels"]),
        (tree("{images,labels}"), ["folder of pictures", "--labels"]),
        (tree("{yes,no}", "pred"), ["in pred", "without a class", "--exclude"]),
        (tree("{yes,no}", "Mask-RCNN/{TRAIN,VAL}"), ["Mask-RCNN/TRAIN 3", "yes 3", "--classes"]),
        (tree("A", "A/B"), ["arranged in different ways", "A 3, A/B 3"]),
        (["A/1.png", "B/1.png", "2.png"], ["1 images, such as 2.png, are in no class folder"]),
    ],
)
def test_trees_with_several_or_no_readings_are_refused(names: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        read(names)
    assert [word for word in words if word not in str(error.value)] == []


def test_options_decide() -> None:
    names = tree("{center,clinic}/{yes,no}")
    assert set(read(names, class_level=1).labels.values()) == {"center", "clinic"}
    assert set(read(names, class_level=2).labels.values()) == {"yes", "no"}
    chosen = read(tree("{yes,no,pred}", "Mask-RCNN/{TRAIN,VAL}"), classes=("yes,no",))
    assert Counter(chosen.labels.values()) == {"yes": 3, "no": 3}
    (left_out,) = chosen.left_out.values()
    assert len(left_out) == 9
    renamed = read(tree("{glioma_tumor,no}"), class_map=("glioma_tumor=Glioma",))
    assert set(renamed.labels.values()) == {"Glioma", "no"}
    merged = read(tree("{no,no ,yes}"), class_map=("no =no",))
    assert Counter(merged.labels.values())["no"] == 6


@pytest.mark.parametrize(
    ("pattern", "n_left"),
    [("pred", 6), ("*2.png", 8), ("yes/*0.png", 11), ("no", 9), ("PRED/IM*", 9), ("pred/", 9)],
)
def test_patterns_leave_out_files_and_folders(pattern: str, n_left: int) -> None:
    names = tree("{yes,no,pred,more}")
    n_left = {"pred": 9}.get(pattern, n_left)
    assert len(read(names, exclude=(pattern,), class_level=1).labels) == n_left


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"exclude": ("*",)}, "leaves no image"),
        ({"classes": ("yes,maybe",)}, "no image is in a folder 'maybe'"),
        ({"class_level": 3}, "is in 1 folders only"),
        ({"patient_level": 2}, "is in 1 folders only"),
        ({"class_map": ("maybe=yes",)}, "no class 'maybe'"),
        ({"patient_from": "P[0-9]+"}, "matches no path"),
    ],
)
def test_options_that_fit_nothing_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(tree("{yes,no}"), **options)


def test_patients_by_level_and_by_name() -> None:
    by_level = read(tree("{yes,no}/{anna,bob}"), class_level=1, patient_level=2)
    assert set(by_level.patients.values()) == {"anna", "bob"}
    names = ["yes/S01_1.png", "yes/S01_2.png", "no/S02_1.png", "no/other.png"]
    by_name = read(names, patient_from=r"S(\d+)_")
    assert list(by_name.patients.values()) == ["01", "01", "02"]
    assert by_name.patient_source == "--patient-from"


def test_published_splits_are_read() -> None:
    layout = read(tree("{Training,Testing}/{a,b}"))
    assert Counter(layout.splits.values()) == {"train": 6, "test": 6}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Training", FolderKind.SPLIT),
        ("VALID", FolderKind.SPLIT),
        ("test_set", FolderKind.SPLIT),
        ("T1-weighted", FolderKind.SEQUENCE),
        ("Axial", FolderKind.SEQUENCE),
        ("JPEGImages", FolderKind.PICTURES),
        ("lung_masks", FolderKind.MASKS),
        ("ground truth", FolderKind.MASKS),
        ("pred", FolderKind.UNLABELLED),
        ("glioma", FolderKind.PLAIN),
        ("tested positive", FolderKind.PLAIN),
        ("trainee", FolderKind.PLAIN),
        ("maskless", FolderKind.PLAIN),
    ],
)
def test_folder_names(name: str, kind: FolderKind) -> None:
    assert find_folder_kind(name) is kind
    assert bool(find_split(name)) == (kind is FolderKind.SPLIT)


def test_identifiers_differ_by_numbers_alone() -> None:
    assert are_identifiers({"p1", "p2"})
    assert are_identifiers({"TCGA_CS_1", "TCGA_DU_2", "TCGA_CS_3", "TCGA_DU_4"})
    assert not are_identifiers({"yes", "no"})
    assert not are_identifiers({"stage1", "control"})


# ---- a table of labels


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image,label\nimg0.png,no\nimg1.png,yes\n", ["no", "yes"]),
        ("Filename;Class\nimg0;no\nimg1;yes\n", ["no", "yes"]),
        ("\ufeffIMAGE_ID\tDiagnosis\ntrain\\img0.png\tA\ntrain\\img1.png\tB\n", ["A", "B"]),
        ("path,target,patient\n./train/img0.png,0,p1\ntrain/img1.png,1,p2\n", ["0", "1"]),
    ],
)
def test_tables_name_classes(text: str, expected: list[str], tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text, "utf-8")
    names = ["train/img0.png", "train/img1.png", "train/img2.png"]
    layout = read_layout(names, WHERE, table=read_label_table(path))
    assert list(layout.labels.values()) == expected
    assert list(layout.left_out.values()) == [["train/img2.png"]]
    assert bool(layout.patients) == ("patient" in text)
    assert "class = column" in layout.notes[0]


def test_rows_may_name_folders_of_patients(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("Patient,grade\nTCGA_CS_4941,2\nTCGA_CS_4942,3\nTCGA_CS_9999,2\n", "utf-8")
    names = tree(*(f"kaggle/TCGA_CS_{number}_19960909" for number in (4941, 4942, 4943)))
    layout = read_layout(names, WHERE, table=read_label_table(path))
    assert Counter(layout.labels.values()) == {"2": 3, "3": 3}
    assert set(layout.patients.values()) == {"TCGA_CS_4941", "TCGA_CS_4942"}
    assert "1 rows name no image" in layout.notes[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("a,b\n1,2\n", "no column of files"),
        ("file,b\n1,2\n", "no column of classes"),
        ("file,label\n1.png,a\n1.png,b\n", "row 3.*'a' above"),
        ("file,label\n1.png,\n", "no row has a file and a class"),
        ("file,label\nx.png,a\n", "names no image of the source"),
        ("file,label\n1.png,a\n", "may be any of 2 images"),
        ("file,label\n1.png,a,b\n", "row 2: 3 cells under 2 columns"),
    ],
)
def test_unusable_tables_are_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(UserError, match=words):
        read_layout(["A/1.png", "B/1.png"], WHERE, table=read_label_table(path))


def test_a_renamed_class_is_no_patient() -> None:
    names = tree(f"{numbers('{}', 6)}")
    renamed = read(names, class_map=tuple(f"{n}={'AB'[n % 2]}" for n in range(6)))
    assert set(renamed.labels.values()) == {"A", "B"}
    assert renamed.patients == {}
    chosen = read(tree("{Train,Test}/{YES,NO}"), classes=("yes,no",))
    assert chosen.patients == {}
    assert Counter(chosen.splits.values()) == {"train": 6, "test": 6}
    assert any("--classes yes,no" in line for line in chosen.describe())


def test_a_map_of_names_means_the_exact_name_first() -> None:
    names = tree("{Glioma,glioma,no}")
    merged = read(names, class_map=("Glioma=G", "glioma=G"))
    assert set(merged.labels.values()) == {"G", "no"}
    assert set(read(names, class_map=("GLIOMA=G",)).labels.values()) == {"G", "no"}
    assert set(read(names, class_map=("glioma=G",)).labels.values()) == {"G", "Glioma", "no"}


def test_a_table_of_patients_names_folders(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("patient,diagnosis\n1,x\n2,y\n3,x\n")
    names = ["1/1.png", "1/2.png", "2/3.png", "2/4.png", "3/5.png"]
    layout = read_layout(names, WHERE, table=read_label_table(path))
    assert list(layout.labels.values()) == ["x", "x", "y", "y", "x"]
    path.write_text("id,diagnosis\n1,x\n2,y\n3,x\n")
    with pytest.raises(UserError, match=r"'1/2.png' is row '2' by its name and"):
        read_layout(names, WHERE, table=read_label_table(path))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("a.png,x,p\na.png,x,q\n", "row 3: 'a.png' is 'x of patient q' here"),
        ("A.png,x,p\na.png,y,p\n", "row 3: 'a.png' is 'y of patient p' here"),
    ],
)
def test_contradicting_rows_are_refused(rows: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("file,label,patient\n" + rows)
    with pytest.raises(UserError, match=words):
        read_label_table(path)
