"""Paths below the data folder that are planned for the images of a source."""

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helper import UserError
from preparation.sources import Entry
from preparation.targets import fold_name, plan_files


def plan(*names: str, in_place: bool = False) -> list[str]:
    entries = [Entry(name, 1, place, bytes) for place, name in enumerate(sorted(names))]
    labels = {name: PurePosixPath(name).parent.name for name in names}
    planned = plan_files(entries, labels, Path("source"), in_place=in_place)
    return [file.target for file in planned]


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
        (["A/1.jpg", "A/2.jpg"], r"one class only \(A\)"),
        (["Glioma/1.jpg", "glioma/2.jpg"], "'Glioma' and 'glioma' are one"),
        (["x/A/1.jpg", "y/a/2.jpg", "B/1.jpg"], "'A' and 'a' are one folder"),
        (["no/1.jpg", "no /2.jpg", "yes/1.jpg"], "'no' and 'no ' are one folder"),
        ([" yes/1.jpg", "Yes /2.jpg", "no/1.jpg"], "are one folder"),
        (["=1+1/1.jpg", "B/2.jpg"], "class '=1\\+1' .* spreadsheet formula"),
        (["@A/1.jpg", "B/2.jpg"], "class '@A' .* spreadsheet formula"),
        (["A|B/1.jpg", "C/2.jpg"], r"class 'A\|B' .* contains"),
        (["con/1.jpg", "C/2.jpg"], "name of a device"),
    ],
)
def test_unusable_class_names_are_refused(names: list[str], pattern: str) -> None:
    with pytest.raises(UserError, match=pattern):
        plan(*names)


def test_images_without_a_class_are_left_out_and_one_class_is_allowed_if_asked() -> None:
    entries = [Entry(name, 1, 0, bytes) for name in ("A/1.png", "B/1.png")]
    planned = plan_files(entries, {"A/1.png": "A"}, Path("source"), one_class=True)
    assert [file.target for file in planned] == ["Images/A/1.png"]


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
