"""Rows of patients: who they are, their mean probabilities and worst flags."""

from pathlib import Path

import pytest

from evaluation.thresholds import Thresholds
from inference.image_stream import Picture
from inference.output_table import Row, list_columns
from inference.patients import PatientAggregator
from tests.inference.test_series import SURE, UNSURE, make_prediction

CLASSES = ["A", "B"]


def collect(paths: list[str], *roots: str, patient: str = "") -> list[Row]:
    patients = PatientAggregator(Thresholds(tuple(CLASSES), {}), [Path(root) for root in roots])
    for path in paths:
        patients.add(Picture(Path(path), patient=patient), SURE)
    return patients.close()


@pytest.mark.parametrize(
    ("paths", "roots", "expected"),
    [
        (["in/p1/a", "in/p1/b", "in/p2/a", "in/p2/b"], ["in"], {"in/p1": 2, "in/p2": 2}),
        (
            ["in/p1/T1/a", "in/p1/T2/a", "in/p2/T1/a", "in/p2/FLAIR/a"],
            ["in"],
            {"in/p1": 2, "in/p2": 2},
        ),
        (["in/p1/ax t1 post/a", "in/p1/Series 003/a", "in/p2/images/a"], ["in"], {"in/p1": 2}),
        (["in/cohort/p1/a", "in/cohort/p1/b", "in/cohort/p2/a"], ["in"], {"in/cohort/p1": 2}),
        (["x.zip/in/p1/a", "x.zip/in/p1/b", "x.zip/in/p2/a"], ["x.zip"], {"x.zip/in/p1": 2}),
        (["in/p1/a", "in/p1/b"], ["in"], {}),  # one folder of images
        (["in/p1/a", "in/p1/b", "in/c", "in/d"], ["in"], {}),  # the others are in the folder itself
        (["in/p1/a", "in/p1/b", "in/p2/a"], ["in/p1", "in/p2"], {}),  # a folder for each
        (["in/A/1", "in/A/2", "in/b_tumor/1", "in/B/2"], ["in"], {}),  # the classes of the model
        (["in/Training/1", "in/Training/2", "in/test/1", "in/test/2"], ["in"], {}),
        (["a", "b"], ["a", "b"], {}),  # files
        (["in/yes/1", "in/yes/2", "in/no tumor/1", "in/no tumor/2"], ["in"], {}),  # classes
        (
            ["in/sub-01/ses-01/anat/a", "in/sub-01/ses-02/a", "in/sub-02/visit 1/a"],
            ["in"],
            {"in/sub-01": 2},
        ),
    ],
)
def test_patients_are_found_by_folders(
    paths: list[str], roots: list[str], expected: dict[str, int]
) -> None:
    rows = collect(paths, *roots)
    assert [row["file"] for row in rows] == [
        f"{name}#patient ({count} slices)" for name, count in expected.items()
    ]
    assert [row["patient"] for row in rows] == list(expected)
    assert all(list(row) == list_columns(CLASSES) for row in rows)


def test_a_pseudonym_comes_before_the_folder() -> None:
    [row] = collect(["in/1/a", "in/2/b"], "in", patient="p77")
    assert (row["file"], row["patient"]) == ("p77#patient (2 slices)", "p77")


def test_probabilities_are_averaged_and_the_worst_flag_counts() -> None:
    outside = make_prediction([0.0, 1.0], ("B",), is_ood=True)
    for predictions, expected in (
        ([SURE, UNSURE, outside], ("A", 0.5, True, True)),
        ([SURE, SURE], ("A", 0.9, False, False)),
        ([SURE, None], ("A", 0.9, True, False)),  # an unreadable slice
        ([SURE, make_prediction([0.7, 0.3], None, None)], ("A", 0.8, None, None)),
    ):
        patients = PatientAggregator(Thresholds(tuple(CLASSES), {}), [])
        for each in predictions:
            patients.add(Picture(Path("a"), patient="p1"), each)
        [row] = patients.close()
        found = (row["predicted"], row["p_A"], row["needs_review"], row["out_of_distribution"])
        assert found == expected
        size = "1 of 2" if None in predictions else str(len(predictions))
        assert f"({size} slices)" in row["file"]
        assert patients.close() == []


def test_the_rule_decides_for_the_mean() -> None:
    patients = PatientAggregator(Thresholds(tuple(CLASSES), {"B": 0.25}), [])
    for each in (SURE, UNSURE):  # B 0.1 and 0.4
        patients.add(Picture(Path("a"), patient="p1"), each)
    [row] = patients.close()
    assert (row["predicted"], row["confidence"]) == ("B", 0.25)


def test_a_patient_without_a_readable_slice_has_no_row() -> None:
    patients = PatientAggregator(Thresholds(tuple(CLASSES), {}), [])
    for _ in range(2):
        patients.add(Picture(Path("a"), patient="p1", error="truncated"), None)
    assert patients.close() == []
