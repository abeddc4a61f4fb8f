"""Predicted classes by thresholds, worked by hand, and their sensitivity and specificity."""

import numpy as np
import pytest

from evaluation.patients import aggregate_by_patient
from evaluation.thresholds import Thresholds, evaluate_thresholds
from helper import UserError

CLASSES = ["A", "B", "C"]
PROBS = np.array([[0.5, 0.3, 0.2], [0.7, 0.1, 0.2], [0.1, 0.25, 0.65], [0.4, 0.35, 0.25]])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "AACA"),
        (["B=0.3"], "BACB"),
        (["B=0.25"], "BABB"),  # reached exactly
        (["A=0.6"], "BACB"),  # A only above it
        (["C=0.2", "B=0.3"], "CCCC"),
        (["B=0.3", "C=0.2"], "BCCB"),  # the order decides
        (["A=0.9", "B=0.9", "C=0.9"], "AACA"),  # none is reached: the most probable of all
        (["C=0"], "CCCC"),
    ],
)
def test_the_first_reached_threshold_decides(options: list[str], expected: str) -> None:
    predicted = Thresholds.parse(options, CLASSES).predict(PROBS)
    assert "".join(CLASSES[index] for index in predicted) == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["D=0.2"], "its classes are A, B, C"),
        (["A=1.01"], "0 to 1"),
        (["A=-0.1"], "0 to 1"),
        (["A=1e"], "0 to 1"),
        (["A=0.1", "A=0.2"], "two thresholds"),
    ],
)
def test_invalid_thresholds_are_refused(options: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Thresholds.parse(options, CLASSES)


def test_a_class_may_have_an_equals_sign_in_its_name() -> None:
    assert Thresholds.parse(["a=b=0.5"], ["a=b", "c"]).values == {"a=b": 0.5}


def test_the_rule_is_told_in_words() -> None:
    [line] = Thresholds.parse(["B=0.3", "C=0.25"], CLASSES).describe()
    assert line.index("B if its probability is at least 0.3") < line.index("else C if")
    assert line.endswith("else the most probable of the other classes")
    assert Thresholds.parse([], CLASSES).describe() == []


def test_sensitivity_and_specificity_of_slices_and_patients() -> None:
    labels, groups = np.array([1, 0, 2, 1]), np.array(["p", "q", "r", "p"])
    by_patient = aggregate_by_patient(PROBS, labels, groups, groups)
    rule = Thresholds.parse(["B=0.34"], CLASSES)
    found = evaluate_thresholds(rule, PROBS, labels, groups, by_patient)
    assert found is not None
    assert found["per_class"]["B"]["sensitivity"]["value"] == 0.5  # 0.30 and 0.35
    assert found["per_class"]["B"]["specificity"]["value"] == 1
    assert found["per_class"]["B"]["sensitivity_per_patient"]["value"] == 0  # their mean is 0.325
    assert found["per_class"]["A"]["specificity"]["value"] == pytest.approx(2 / 3)
    assert found["accuracy"]["value"] == 0.75
    assert found["accuracy_per_patient"]["value"] == pytest.approx(2 / 3)
    low, high = found["per_class"]["B"]["sensitivity"]["ci95"]
    assert 0 < low < 0.5 < high < 1
    assert (
        evaluate_thresholds(Thresholds.parse([], CLASSES), PROBS, labels, groups, by_patient)
        is None
    )


def test_a_class_without_slices_has_no_sensitivity() -> None:
    labels, groups = np.zeros(4, int), np.arange(4).astype(str)
    nobody = aggregate_by_patient(PROBS, labels, np.full(4, ""), groups)
    found = evaluate_thresholds(Thresholds.parse(["B=0.3"], CLASSES), PROBS, labels, groups, nobody)
    assert found is not None
    assert found["per_class"]["B"]["sensitivity"] == {"value": None, "ci95": None}
    assert found["per_class"]["A"]["specificity"]["value"] is None
    assert found["accuracy_per_patient"]["value"] is None
