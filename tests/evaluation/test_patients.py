"""Accuracy per patient: by hand, unknown patients, and agreement with the accuracy per image."""

from typing import Any

import numpy as np
import pytest

from evaluation.comparison import compare_patients
from evaluation.metrics import compute_metrics, softmax
from evaluation.patients import (
    PatientPredictions,
    aggregate_by_patient,
    compute_patient_metrics,
    tabulate_patients,
)

CLASSES = ["Glioma", "Menin", "Tumor"]
# anna: Glioma, one of two slices right, 0.7 on average. ben: Menin, 0.3 on average, one of three
# right. cora: Tumor, one slice. One slice is of an unknown patient.
PATIENTS = np.array(["ben", "anna", "", "ben", "anna", "cora", "ben"], dtype=object)
LABELS = np.array([1, 0, 2, 1, 0, 2, 1])
PROBS = np.array(
    [
        [0.9, 0.1, 0.0],
        [1.0, 0.0, 0.0],
        [1.0, 0.0, 0.0],
        [0.7, 0.2, 0.1],
        [0.4, 0.5, 0.1],
        [0.1, 0.2, 0.7],
        [0.2, 0.6, 0.2],
    ]
)
GROUPS = np.array(["g1", "g2", "g3", "g1", "g2", "g2", "g1"])


def aggregate() -> PatientPredictions:
    return aggregate_by_patient(PROBS, LABELS, PATIENTS, GROUPS)


def compute(patients: Any = PATIENTS) -> dict[str, Any]:
    return compute_patient_metrics(PROBS, LABELS, np.asarray(patients, object), GROUPS, CLASSES)


def test_patients_by_hand() -> None:
    found = aggregate()
    assert found.patients.tolist() == ["anna", "ben", "cora"]
    assert found.groups.tolist() == ["g2", "g1", "g2"]
    expected = [[0.7, 0.25, 0.05], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7]]
    assert found.probs == pytest.approx(np.array(expected))
    assert found.correct.tolist() == [True, False, True]
    assert found.n_slices.tolist() == [2, 3, 1]
    assert found.n_slices_right.tolist() == [1, 1, 1]
    result = compute()
    assert (result["patients"], result["n_patients"]) == ("partly known", 3)
    assert result["accuracy_per_patient"]["value"] == pytest.approx(2 / 3)
    recall = result["recall_per_patient"]
    assert [recall[name]["value"] for name in CLASSES] == [1.0, 0.0, 1.0]
    assert [recall[name]["n_patients"] for name in CLASSES] == [1, 1, 1]


def test_the_table_by_hand() -> None:
    table = tabulate_patients(aggregate(), CLASSES)
    assert table.to_csv(index=False, lineterminator="\n").splitlines() == [
        "patient,label,predicted,confidence,p_Glioma,p_Menin,p_Tumor,n_slices,n_slices_right",
        "anna,Glioma,Glioma,0.7,0.7,0.25,0.05,2,1",
        "ben,Menin,Glioma,0.6,0.6,0.3,0.1,3,1",
        "cora,Tumor,Tumor,0.7,0.1,0.2,0.7,1,1",
    ]


def test_without_known_patients_the_values_are_null() -> None:
    result = compute([""] * 7)
    assert (result["patients"], result["n_patients"]) == ("unknown", 0)
    nothing = {"value": None, "ci95": None}
    assert result["accuracy_per_patient"] == nothing
    assert list(result["recall_per_patient"].values()) == [nothing | {"n_patients": 0}] * 3
    assert compute(["p"] * 7)["patients"] == "known"


def test_a_patient_of_two_classes_counts_once_for_each() -> None:
    result = compute(["p", "p", "p", "p", "q", "q", "q"])
    # p has slices of Menin (two, wrong), Glioma (right) and Tumor (wrong); q of all classes, wrong
    # for Glioma alone
    assert result["n_patients"] == 2
    assert result["accuracy_per_patient"]["value"] == pytest.approx(3 / 6)
    assert [entry["n_patients"] for entry in result["recall_per_patient"].values()] == [2, 2, 2]


def test_a_patient_with_many_wrong_slices_counts_once() -> None:
    sizes = [45, *[5] * 9]
    patients = np.repeat([f"p{number}" for number in range(10)], sizes)
    labels = np.zeros(len(patients), int)
    probs = np.eye(3)[(patients == "p0").astype(int)]
    by_image = compute_metrics(probs, labels, np.arange(90), patients, CLASSES)["accuracy"]
    result = compute_patient_metrics(probs, labels, patients, patients, CLASSES)
    by_patient = result["accuracy_per_patient"]
    assert by_image["value"] == pytest.approx(45 / 90)
    assert by_patient["value"] == pytest.approx(9 / 10)
    # Wilson's interval of 0.9 in 9 trials, one less than patients
    assert by_patient["ci95"] == pytest.approx([0.57726, 0.98342], abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_one_slice_per_patient_gives_the_accuracy_per_image(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 60)
    probs = softmax(rng.normal(size=(60, 3)) + 2 * np.eye(3)[labels])
    patients = np.array([f"p{number:02d}" for number in rng.permutation(60)])
    groups = rng.integers(0, 30, 60)
    by_image = compute_metrics(probs, labels, np.arange(60), groups, CLASSES)
    by_patient = compute_patient_metrics(probs, labels, patients, groups, CLASSES)
    for unit, image in (
        (by_patient["accuracy_per_patient"], by_image["accuracy"]),
        *(
            (by_patient["recall_per_patient"][name], by_image["per_class"][name]["recall"])
            for name in CLASSES
        ),
    ):
        assert unit["value"] == pytest.approx(image["value"], abs=1e-12)
        assert unit["ci95"] == pytest.approx(image["ci95"], abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_intervals_contain_the_value_and_depend_on_patients_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 30, 40)
    patients = np.repeat(np.arange(40), sizes).astype(str)
    labels = np.repeat(rng.integers(0, 3, 40), sizes)
    noise = np.repeat(rng.normal(size=(40, 3)), sizes, axis=0)
    probs = softmax(noise + 1.5 * np.eye(3)[labels])  # slices of a patient are alike
    estimates = []
    for repeats in (1, 5):  # more slices of the same patients add no information
        rows = np.repeat(np.arange(len(labels)), repeats)
        ids = patients[rows]
        result = compute_patient_metrics(probs[rows], labels[rows], ids, ids, CLASSES)
        estimates.append(result["accuracy_per_patient"])
        assert result["n_patients"] == 40
    low, high = estimates[0]["ci95"]
    assert low < estimates[0]["value"] < high
    assert 0.1 < high - low < 0.35  # of 40 independent patients
    assert estimates[1]["ci95"] == pytest.approx(estimates[0]["ci95"])


def test_joined_patients_widen_the_interval() -> None:
    labels = np.zeros(40, int)
    patients = np.arange(40).astype(str)
    probs = np.eye(3)[np.arange(40) % 10 // 8]  # patients 8, 9, 18, 19, … are wrong
    widths = []
    for groups in (patients, np.arange(40) // 2):  # of pairs, both right or both wrong
        result = compute_patient_metrics(probs, labels, patients, groups, CLASSES)
        assert result["accuracy_per_patient"]["value"] == pytest.approx(0.8)
        low, high = result["accuracy_per_patient"]["ci95"]
        widths.append(high - low)
    assert widths[1] > 1.2 * widths[0]


def test_patients_of_two_runs_are_compared() -> None:
    better = PROBS.copy()
    better[0] = [0.0, 1.0, 0.0]  # ben: 0.3, 0.6, 0.1
    second = aggregate_by_patient(better, LABELS, PATIENTS, GROUPS)
    result = compare_patients(aggregate(), second)
    assert result is not None
    assert result["difference"] == pytest.approx(-1 / 3)
    assert (result["n_first"], result["n_second"], result["p_value"]) == (0, 1, 1.0)
    nobody = aggregate_by_patient(PROBS, LABELS, np.full(7, "", object), GROUPS)
    assert compare_patients(nobody, nobody) is None
