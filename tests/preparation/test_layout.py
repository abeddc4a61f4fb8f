"""Classes and file names that are planned from the names of a source."""

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helper import UserError
from preparation.layout import fold_name, plan_files
from preparation.sources import Entry


def plan(*names: str, in_place: bool = False) -> list[str]:
    entries = [Entry(name, 1, place, bytes) for place, name in enumerate(sorted(names))]
    return [file.target for file in plan_files(entries, Path("source"), in_place)]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("brain_glioma", "brain_menin", "brain_tumor"), ["Glioma", "Menin", "Tumor"]),
        (("brain_menin", "brain_tumor"), ["Menin", "Tumor"]),
        (("brain_tumor", "other"), ["brain_tumor", "other"]),
        (("Brain_Menin", "brain_tumor"), ["Brain_Menin", "brain_tumor"]),
    ],
)
def test_published_names_are_shortened_if_alone(names: tuple[str, ...], labels: list[str]) -> None:
    paths = [f"x/{name}/a.jpg" for name in names]
    assert plan(*paths) == [f"Images/{label}/a.jpg" for label in labels]
    assert plan(*paths, in_place=True) == [f"Images/{name}/a.jpg" for name in names]


def test_equal_names_get_a_suffix_that_no_other_file_has() -> None:
    names = ("B/1.jpg", "Testing/A/1.jpg", "Training/A/1.jpg", "Training/A/1_2.jpg", "Zoo/A/1.JPG")
    expected = ["B/1.jpg", "A/1.jpg", "A/1_3.jpg", "A/1_2.jpg", "A/1_4.JPG"]
    assert plan(*names) == [f"Images/{name}" for name in expected]
    composed, decomposed = "A/caf\u00e9.png", "x/A/cafe\u0301.png"
    assert plan(composed, decomposed, "B/1.png")[2].endswith("_2.png")


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (["A/1.jpg", "2.jpg"], "2.jpg is in no class folder"),
        (["A/1.jpg", "A/2.jpg"], r"one class only \(A\)"),
        (["Glioma/1.jpg", "glioma/2.jpg"], "class folders Glioma and glioma are one"),
        (["x/A/1.jpg", "y/a/2.jpg", "B/1.jpg"], "A and a are one folder"),
        (["A/1.jpg", "A/B/2.jpg"], "folder A and folder A/B inside it both hold images"),
        (["=1+1/1.jpg", "B/2.jpg"], "class folder '=1\\+1' starts like a spreadsheet formula"),
        (["@A/1.jpg", "B/2.jpg"], "class folder '@A' starts like a spreadsheet formula"),
        (["A|B/1.jpg", "C/2.jpg"], r"class folder 'A\|B' starts like"),
    ],
)
def test_folders_that_are_no_classes_are_refused(names: list[str], pattern: str) -> None:
    with pytest.raises(UserError, match=pattern):
        plan(*names)


FILE_NAMES = st.sampled_from(["1", "1_2", "1_3", "a", "A", "\u00e9", "e\u0301", "\u1e9e", "ss"])
NAME_PARTS = st.tuples(st.sampled_from("xyz"), FILE_NAMES, st.sampled_from([".jpg", ".JPG"]))


@settings(max_examples=100, deadline=None)
@given(st.lists(NAME_PARTS, min_size=1, max_size=25))
def test_planned_names_are_distinct(parts: list[tuple[str, str, str]]) -> None:
    names = [f"{top}/A/{stem}{suffix}" for top, stem, suffix in parts] + ["q/B/1.jpg"]
    targets = plan(*names)
    assert len({fold_name(target) for target in targets}) == len(names)
    assert targets == plan(*reversed(names))
    for name, target in zip(sorted(names), targets, strict=True):
        planned, original = PurePosixPath(target), PurePosixPath(name)
        assert planned.suffix == original.suffix
        assert planned.stem.startswith(original.stem)
