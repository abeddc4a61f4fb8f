"""The label review: thresholds and ranks by hand, ties, one case per group, planted errors."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evaluation.calibration import Calibrated
from evaluation.ensembles import Predictions, stack
from evaluation.fitted import Fitted
from evaluation.label_review import (
    COLUMNS,
    compute_thresholds,
    find_cases,
    find_conflicts,
    review_predictions,
    suggest_labels,
)
from evaluation.metrics import softmax

CLASSES = ["A", "B", "C"]
# mean probability of the label: A (0.9 + 0.5 + 0.1) / 3 = 0.5, B (0.8 + 0.4) / 2 = 0.6, C 0.7
PROBS = np.array(
    [
        [0.9, 0.1, 0.0],  # A
        [0.5, 0.3, 0.2],  # A, just at its threshold
        [0.1, 0.65, 0.25],  # A, B reaches its threshold: suggested
        [0.2, 0.8, 0.0],  # B
        [0.35, 0.4, 0.25],  # B, no class reaches its threshold
        [0.0, 0.3, 0.7],  # C
    ]
)
LABELS = np.array([0, 0, 0, 1, 1, 2])


def make_rows(groups: list[str], duplicate_sets: list[str] | None = None) -> pd.DataFrame:
    numbers = range(len(groups))
    return pd.DataFrame(
        {
            "path": [f"Images/x/{number}.png" for number in numbers],
            "sha256": [f"s{number}" for number in numbers],
            "patient": "",
            "duplicate_set": duplicate_sets or [f"d{number}" for number in numbers],
            "group": groups,
        }
    )


def make_probs(*own: tuple[int, float]) -> np.ndarray:
    """Probabilities of a class and its value; the rest is shared by the two others."""
    probs = np.array([np.full(3, (1 - value) / 2) for _, value in own])
    for row, (label, value) in enumerate(own):
        probs[row, label] = value
    return probs


def test_thresholds_and_suggestions_by_hand() -> None:
    assert compute_thresholds(PROBS, LABELS) == pytest.approx([0.5, 0.6, 0.7])
    assert suggest_labels(PROBS, LABELS).tolist() == [0, 0, 1, 1, 1, 2]


def test_a_class_without_labels_is_never_suggested() -> None:
    probs = np.array([[0.6, 0.0, 0.4], [0.1, 0.0, 0.9]])
    assert compute_thresholds(probs, np.array([0, 0])).tolist() == [0.35, np.inf, np.inf]
    assert suggest_labels(probs, np.array([0, 0])).tolist() == [0, 0]


def test_the_most_probable_class_is_suggested_although_the_label_is_typical_too() -> None:
    probs = np.array([[0.4, 0.6, 0.0], [0.2, 0.5, 0.3], [0.1, 0.0, 0.9]])
    labels = np.array([0, 1, 0])  # thresholds 0.25 and 0.5
    assert suggest_labels(probs, labels).tolist() == [1, 1, 0]


def test_a_case_has_all_columns() -> None:
    cases = find_cases(make_rows(list("aaabbc")), PROBS, LABELS, CLASSES)
    assert list(cases) == list(COLUMNS)
    assert cases.loc[0].to_dict() == {
        **{"rank": 1, "path": "Images/x/2.png", "sha256": "s2", "patient": ""},
        **{"duplicate_set": "d2", "group": "a", "label": "A", "suggested": "B"},
        **{"confidence": 0.65, "p_label": 0.1, "margin": 0.55, "reason": "prediction"},
        **{"n_slices_of_group_disagreeing": 1, "n_slices_of_group": 3},
    }
    assert len(cases) == 1


def test_a_group_is_one_case_shown_by_its_worst_slice() -> None:
    labels = np.array([0, 0, 0, 0, 0, 0, 1])
    probs = make_probs((0, 0.9), (0, 0.9), (1, 0.92), (1, 0.94), (1, 0.96), (1, 0.98), (1, 0.9))
    rows = make_rows(list("abccdde"), ["0", "1", "2", "3", "4", "4", "6"])
    cases = find_cases(rows, probs, labels, CLASSES)
    assert cases["rank"].tolist() == [1, 2]
    assert cases["path"].tolist() == ["Images/x/5.png", "Images/x/3.png"]
    # the two images of group d show one slice, those of group c two
    assert cases["n_slices_of_group"].tolist() == [1, 2]
    assert cases["n_slices_of_group_disagreeing"].tolist() == [1, 2]


def test_the_least_probable_label_comes_first() -> None:
    labels = np.array([0, 1, 2, 0, 0])
    probs = np.array(
        [[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.0, 0.1, 0.9], [0.02, 0.95, 0.03], [0.01, 0.92, 0.07]]
    )
    cases = find_cases(make_rows(list("abcde")), probs, labels, CLASSES)
    assert cases["p_label"].tolist() == [0.01, 0.02]
    assert cases["margin"].tolist() == [0.91, 0.93]  # the larger one does not come first


def test_ties_are_in_the_order_of_the_paths() -> None:
    labels = np.array([0, 1, 0, 0])
    probs = make_probs((0, 0.9), (1, 0.9), (1, 0.9), (1, 0.9))
    rows = make_rows(list("abcd"))
    reverse = [3, 2, 1, 0]
    shuffled = rows.iloc[reverse].reset_index(drop=True)
    for found in (
        find_cases(rows, probs, labels, CLASSES),
        find_cases(shuffled, probs[reverse], labels[reverse], CLASSES),
    ):
        assert found["path"].tolist() == ["Images/x/2.png", "Images/x/3.png"]


def test_copies_with_different_labels_come_first_whatever_the_probabilities() -> None:
    labels = np.array([0, 0, 1, 0, 1])
    probs = make_probs((0, 0.99), (0, 0.98), (0, 0.97), (1, 0.999), (1, 0.9))
    rows = make_rows(list("abbcd"), ["0", "1", "1", "3", "4"])
    is_conflict, other = find_conflicts(probs, labels, rows["duplicate_set"].to_numpy())
    assert is_conflict.tolist() == [False, True, True, False, False]
    assert other.tolist() == [0, 1, 0, 0, 1]
    cases = find_cases(rows, probs, labels, CLASSES)
    # of the two copies, the prediction contradicts the label of the second
    assert cases["path"].tolist() == ["Images/x/2.png", "Images/x/3.png"]
    assert cases["reason"].tolist() == ["duplicates", "prediction"]
    assert cases["suggested"].tolist() == ["A", "B"]
    assert cases["n_slices_of_group_disagreeing"].tolist() == [1, 1]


def test_of_several_labels_of_copies_the_more_probable_one_is_suggested() -> None:
    labels, probs = np.array([0, 1, 2]), np.tile([0.1, 0.3, 0.6], (3, 1))
    assert find_conflicts(probs, labels, np.zeros(3))[1].tolist() == [2, 2, 1]


def test_labels_that_the_predictions_confirm_give_no_case() -> None:
    labels = np.arange(12) % 3
    probs = make_probs(*((int(label), 0.5 + 0.03 * row) for row, label in enumerate(labels)))
    cases = find_cases(make_rows([f"g{row}" for row in range(12)]), probs, labels, CLASSES)
    assert cases.empty
    assert list(cases) == list(COLUMNS)


@pytest.mark.parametrize("seed", range(5))
def test_planted_errors_are_found(seed: int) -> None:
    """1,000 slices, calibrated probabilities, accuracy about 0.98, 5 % wrong labels."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 3, 1000)
    probs = softmax(3.4 * (rng.normal(size=(1000, 3)) + 3.4 * np.eye(3)[true]))
    labels, planted = true.copy(), np.sort(rng.choice(1000, 50, replace=False))
    labels[planted] = (true[planted] + rng.integers(1, 3, 50)) % 3
    cases = find_cases(make_rows([f"g{row}" for row in range(1000)]), probs, labels, CLASSES)
    found = cases["path"].str.extract(r"(\d+)\.png")[0].astype(int)
    hits = np.isin(found[:50], planted)
    assert hits.mean() >= 0.85  # 0.05 by chance
    assert hits[:20].all()
    assert np.isin(planted, found).mean() >= 0.85


def make_predictions(related: list[bool], splits: list[str], fold: int = 0) -> Predictions:
    """Four slices of four groups with labels A, A, A, B, of which 2 looks like B."""
    probs = make_probs((0, 0.9), (0, 0.9), (1, 0.95), (1, 0.9))
    return Predictions(
        path=Path("x"),
        checkpoints=[{"classes": CLASSES}],
        rows=make_rows(list("abcd")).assign(split=splits),
        labels=np.array([0, 0, 0, 1]),
        calibrated=Calibrated(probs),
        logits=np.log(probs)[None],
        fitted=Fitted(None, 1.0, "nothing"),
        calibrations=[],
        folds=np.full(4, fold),
        distances=np.full((1, 4), np.nan),
        held_out=None,
        baseline_hits={},
        related=np.array(related),
        warnings=[],
        member_slices=[],
    )


def test_slices_of_the_training_split_are_not_reviewed() -> None:
    cases, summary = review_predictions(make_predictions([False] * 4, ["test"] * 4))
    assert cases["path"].tolist() == ["Images/x/2.png"]
    assert summary == {
        **{"n_cases": 1, "n_conflicts": 0, "n_images": 4, "n_groups": 4, "out_of_fold": False}
    }
    leaky = make_predictions([False, False, True, False], ["test"] * 4)
    whole = make_predictions([False] * 4, ["test", "val", "train", "test"])
    for predictions in (leaky, whole):
        cases, summary = review_predictions(predictions)
        assert cases.empty
        assert summary is not None
        assert (summary["n_cases"], summary["n_images"], summary["n_groups"]) == (0, 3, 3)
    cases, summary = review_predictions(make_predictions([False] * 4, ["train"] * 4))
    assert cases.empty
    assert summary is None


def test_slices_that_one_network_of_an_ensemble_was_trained_on_are_not_reviewed() -> None:
    parts = [
        make_predictions([False] * 4, splits)
        for splits in (["test", "val", "test", "test"], ["test", "val", "train", "test"])
    ]
    for ordered in (parts, parts[::-1]):
        cases, summary = review_predictions(stack(ordered))
        assert cases.empty
        assert summary is not None
        assert summary["n_images"] == 3


def test_pooled_folds_are_named_out_of_fold() -> None:
    summary = review_predictions(make_predictions([False] * 4, ["test"] * 4, fold=2))[1]
    assert summary is not None
    assert summary["out_of_fold"]
