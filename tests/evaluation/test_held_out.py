"""Outputs that runs held out: joined, calibrated fold by fold, stored and read again."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evaluation import calibration, conformal
from evaluation.held_out import HeldOut, combine, cross_fit, draw_folds
from evaluation.metrics import softmax

CLASSES = ["A", "B", "C"]
N_FOLDS = 5


def make_held_out(
    n_groups: int = 100, per_group: int = 2, n_networks: int = 1, seed: int = 0
) -> HeldOut:
    """Overconfident outputs: true probabilities are those of half the logits."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(n_groups), per_group)
    n_slices = len(codes)
    true_logits = rng.normal(0, 3, (n_slices, 3))
    labels = np.array([rng.choice(3, p=row) for row in softmax(true_logits)])
    names = np.array([f"{number:05d}" for number in range(n_slices)])
    logits = 2 * true_logits + rng.normal(0, 0.2, (n_networks, n_slices, 3))
    return HeldOut(
        path=names,
        sha256=names,
        labels=labels,
        groups=np.array([f"g{code}" for code in codes]),
        folds=1 + codes % N_FOLDS,
        logits=logits.astype(np.float32),
        distances=rng.random((n_networks, n_slices)),
    )


def change(held_out: HeldOut, **values: Any) -> HeldOut:
    return HeldOut(**{**vars(held_out), **values})


def test_the_labels_of_a_fold_do_not_calibrate_it() -> None:
    held_out = make_held_out()
    own = held_out.folds == 2
    changed = change(held_out, labels=np.where(own, (held_out.labels + 1) % 3, held_out.labels))
    before, fitted = cross_fit(held_out, held_out.logits, held_out.folds, CLASSES)
    after, refitted = cross_fit(changed, held_out.logits, held_out.folds, CLASSES)
    assert [one == other for one, other in zip(fitted, refitted, strict=True)] == [
        *(False, True, False, False, False)
    ]
    assert np.array_equal(after.probs[own], before.probs[own])
    assert before.prediction_sets is not None
    assert after.prediction_sets is not None
    assert np.array_equal(after.prediction_sets[own], before.prediction_sets[own])
    assert not np.isclose(after.probs[~own], before.probs[~own]).any(axis=1).all()


def test_each_fold_has_the_calibration_of_the_others_in_its_own_rows() -> None:
    held_out = make_held_out()
    calibrated, fitted = cross_fit(held_out, held_out.logits, held_out.folds, CLASSES)
    for fold, values in enumerate(fitted, 1):
        own = held_out.folds == fold
        assert values == held_out.take(~own).fit(CLASSES)
        expected = calibration.apply_calibration(values, held_out.logits[:, own])
        assert np.array_equal(calibrated.probs[own], expected.probs)
        assert values["temperature"] == pytest.approx(2, rel=0.25)


def test_nested_coverage_is_95_percent() -> None:
    """Counted on each fifth of 1,000 groups with thresholds of the other four."""
    held_out = make_held_out(1000, 3)
    calibrated, _ = cross_fit(held_out, held_out.logits, held_out.folds, CLASSES)
    assert calibrated.prediction_sets is not None
    counted = conformal.compute_coverage(
        calibrated.prediction_sets, held_out.labels, held_out.groups, CLASSES
    )
    assert counted["coverage_by_group"]["value"] == pytest.approx(0.95, abs=0.015)
    assert counted["coverage"] == pytest.approx(0.95, abs=0.015)
    raw = calibration.compute_calibration(
        softmax(held_out.logits[0]), held_out.labels, held_out.groups
    )
    nested = calibration.compute_calibration(calibrated.probs, held_out.labels, held_out.groups)
    assert nested["nll"] < raw["nll"]
    assert nested["ece"] < raw["ece"] / 2


def test_copies_of_a_network_are_calibrated_like_one() -> None:
    one = make_held_out()
    both = change(one, logits=np.repeat(one.logits, 2, 0), distances=np.repeat(one.distances, 2, 0))
    assert both.fit(CLASSES)["temperature"] == pytest.approx(one.fit(CLASSES)["temperature"])
    for key in ("thresholds", "n_slices"):
        expected = one.fit(CLASSES)["conformal"][key]
        assert both.fit(CLASSES)["conformal"][key] == pytest.approx(expected)
    assert both.fit_ood_threshold() == one.fit_ood_threshold()
    fitted = one.fit(CLASSES)
    alone = calibration.apply_calibration(fitted, one.logits[0])
    assert np.array_equal(alone.probs, softmax(one.logits[0] / np.float64(fitted["temperature"])))


def test_the_average_has_the_temperature_of_each_network() -> None:
    logits = np.array([[[2.0, 0.0]], [[0.0, 0.0]]])  # two networks, one slice
    found = calibration.average_softmax(logits, [2.0, 7.0])
    expected = (1 / (1 + np.exp(-1)) + 0.5) / 2
    np.testing.assert_allclose(found, [[expected, 1 - expected]])


def test_runs_are_joined_on_the_slices_that_all_held_out() -> None:
    first, second = make_held_out(), make_held_out(n_networks=2, seed=1)
    second = change(second, labels=first.labels)
    labels = second.labels.copy()
    labels[7] = (labels[7] + 1) % 3  # labelled otherwise
    rows = np.arange(len(labels))[::-1][20:]  # another order, without the last 20
    joined = combine([first, change(second, labels=labels).take(rows)])
    expected = np.delete(np.arange(len(labels) - 20), 7)
    assert sorted(joined.path) == sorted(first.path[expected])
    assert joined.logits.shape == (3, len(expected), 3)
    at = {name: row for row, name in enumerate(first.path)}
    rows = np.array([at[name] for name in joined.path])
    assert np.array_equal(joined.logits[0], first.logits[0][rows])
    assert np.array_equal(joined.logits[1:], second.logits[:, rows])
    assert np.array_equal(joined.folds, first.folds[rows])


def test_a_record_is_plain_and_complete() -> None:
    held_out = make_held_out(n_networks=2)
    read = HeldOut.from_record(json.loads(json.dumps(held_out.to_record())))
    for key, value in vars(held_out).items():
        assert np.array_equal(getattr(read, key), value), key
    unknown = change(held_out, distances=np.full(held_out.distances.shape, np.nan))
    read = HeldOut.from_record(json.loads(json.dumps(unknown.to_record(), allow_nan=False)))
    assert np.isnan(read.distances).all()
    assert read.fit_ood_threshold() is None


@pytest.mark.parametrize(
    "damage",
    [
        {"labels": [0]},
        {"logits": [[0.0, 1.0]]},
        {"logits": [[["x"]]]},
        {"distances": [[0.5]]},
        {"folds": None},
    ],
)
def test_damaged_records_are_refused(damage: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        HeldOut.from_record(make_held_out().to_record() | damage)


def test_drawn_folds_hold_whole_groups() -> None:
    groups = np.repeat([f"g{number}" for number in range(23)], 3)
    folds = draw_folds(groups)
    assert all(len(set(folds[groups == group])) == 1 for group in set(groups))
    assert sorted(np.bincount(folds)[1:] // 3) == [4, 4, 5, 5, 5]
    assert np.array_equal(draw_folds(groups), folds)


def test_the_ood_threshold_is_that_of_the_mean_distance() -> None:
    distances = np.array([[1.0, 4.0], [3.0, 2.0]])
    rows = pd.DataFrame({name: ["a", "b"] for name in ("path", "sha256", "group")})
    held_out = HeldOut.of_rows(rows, np.array([0, 1]), np.zeros((2, 2, 2)), distances)
    assert held_out.fit_ood_threshold() == 3.0
    assert held_out.take(np.array([0])).fit_ood_threshold() == 2.0
