"""Splits and folds: whole groups, even classes, no effect of order and names."""

import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helper import UserError
from preparation.splits import (
    SPLITS,
    UNITS_PER_KIND,
    _bundle,
    check_disjoint,
    extend_split,
    split_folds,
    split_groups,
    split_images,
)


def build_rows(n_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and groups of three classes, 1 to 4 rows for each group."""
    sizes = np.random.default_rng(0).integers(1, 5, n_groups)
    groups = np.repeat([f"g{number:05d}" for number in range(n_groups)], sizes)
    labels = np.repeat(np.array(["Glioma", "Menin", "Tumor"])[np.arange(n_groups) % 3], sizes)
    return labels, groups


def shuffle_rows(n_rows: int) -> np.ndarray:
    return np.random.default_rng(1).permutation(n_rows)


def list_shares(splits: np.ndarray) -> list[float]:
    return [float(np.mean(splits == name)) for name in SPLITS]


def test_shares_are_70_15_15_in_every_class() -> None:
    labels, groups = build_rows(300)
    splits = split_groups(labels, groups, seed=0)
    for label in np.unique(labels):
        assert list_shares(splits[labels == label]) == pytest.approx([0.7, 0.15, 0.15], abs=0.03)
    check_disjoint(groups, splits)


def test_order_and_class_names_have_no_effect_but_the_seed_has() -> None:
    labels, groups = build_rows(120)
    labels = labels.copy()
    labels[::7] = "Tumor"  # so that some groups have two classes
    splits = split_groups(labels, groups, seed=3)
    np.testing.assert_array_equal(split_groups(labels, groups, seed=3), splits)
    assert (split_groups(labels, groups, seed=4) != splits).any()
    order = shuffle_rows(len(labels))
    np.testing.assert_array_equal(split_groups(labels[order], groups[order], 3), splits[order])
    renamed = np.array([{"Glioma": "z", "Menin": "a", "Tumor": "m"}[label] for label in labels])
    np.testing.assert_array_equal(split_groups(renamed, groups, seed=3), splits)


@pytest.mark.parametrize("n_groups", [3, 4, 7, 12, 19, 20])
def test_a_rare_class_is_in_every_split_and_leaves_the_shares_of_others(n_groups: int) -> None:
    labels = np.repeat(["many", "few"], [80, n_groups])
    groups = np.array([f"g{number}" for number in range(80 + n_groups)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = split_groups(labels, groups, seed=0)
    assert set(splits[labels == "few"]) == set(SPLITS)
    assert list_shares(splits[:80]) == pytest.approx([0.7, 0.15, 0.15], abs=0.02)


def test_a_class_of_two_groups_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"class 'few' has 2 group.*at least 3"):
        split_groups(["many"] * 9 + ["few"] * 4, [*"abcdefghi", "x", "x", "y", "y"], seed=0)


def test_bundles_bound_the_number_of_units() -> None:
    sizes = np.random.default_rng(0).integers(1, 5, 6000)
    groups = np.repeat(np.arange(6000), sizes)
    units = _bundle(groups % 3, groups, seed=0)
    assert len(np.unique(units)) < 2 * UNITS_PER_KIND * 12  # kinds: 3 classes of 4 sizes
    assert len(np.unique(np.stack([groups, units]), axis=1)[0]) == 6000  # no group is divided


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30)), min_size=40, max_size=80),
    st.integers(0, 2**40),
)
def test_no_group_is_ever_divided(rows: list[tuple[str, int]], seed: int) -> None:
    enough = [(label, 100 + 10 * (label == "b") + number) for label in "ab" for number in range(4)]
    labels, groups = zip(*rows, *enough, strict=True)
    splits = split_groups(labels, [f"g{number}" for number in groups], seed)
    check_disjoint([str(number) for number in groups], splits)
    assert set(splits) == set(SPLITS)


def test_check_disjoint_names_the_first_group() -> None:
    check_disjoint(["a", "a", "b", "b"], ["train", "train", "test", ""])  # "": unreadable
    with pytest.raises(UserError, match="group b is in test and in val"):
        check_disjoint(["a", "b", "b", "c", "c"], ["train", "test", "val", "train", "test"])


def test_split_images_keeps_identical_files_together() -> None:
    digests = np.array([f"{number // 2:04x}" for number in range(200)])
    labels = np.array(["x", "y"])[(np.arange(200) // 2) % 2]
    splits = split_images(digests, labels, seed=0)
    np.testing.assert_array_equal(splits[::2], splits[1::2])


def test_large_groups_are_in_each_split_as_often_as_its_share() -> None:
    sizes = np.concatenate([[30, 28, 26, 24], np.random.default_rng(0).integers(1, 7, 44)])
    groups = np.repeat([f"g{number:03d}" for number in range(len(sizes))], sizes)
    labels = np.repeat(np.array(["a", "b"])[np.arange(len(sizes)) % 2], sizes)
    largest = np.cumsum(sizes)[:4] - 1
    counts = Counter(
        str(s) for seed in range(25) for s in split_groups(labels, groups, seed)[largest]
    )
    # without the permutation of folds both shares are 0.5
    assert counts["test"] / counts.total() == pytest.approx(0.15, abs=0.12)
    assert counts["val"] / counts.total() == pytest.approx(0.15, abs=0.12)


# ---- images that are added later


def test_earlier_splits_are_kept_and_new_groups_or_classes_fill_up() -> None:
    labels, groups = build_rows(200)
    order = shuffle_rows(len(labels))
    for is_old in (groups < "g00150", labels != "Tumor"):
        kept = np.full(len(labels), "", dtype="<U5")
        kept[is_old] = split_groups(labels[is_old], groups[is_old], seed=0)
        splits = extend_split(labels, groups, kept, seed=0)
        np.testing.assert_array_equal(splits[is_old], kept[is_old])
        check_disjoint(groups, splits)
        for label in np.unique(labels):
            shares = list_shares(splits[labels == label])
            assert shares == pytest.approx([0.7, 0.15, 0.15], abs=0.05)
        again = extend_split(labels[order], groups[order], kept[order], seed=0)
        np.testing.assert_array_equal(again, splits[order])


def test_large_new_groups_are_assigned_first() -> None:
    groups = [*map(str, range(70)), *["large"] * 30]
    kept = ["train"] * 14 + ["val"] * 3 + ["test"] * 3 + [""] * 80
    shares = list_shares(extend_split(["a"] * 100, groups, kept, seed=0))
    assert shares == pytest.approx([0.7, 0.15, 0.15], abs=0.02)


def test_groups_that_are_joined_become_train() -> None:
    labels = ["a"] * 5 + ["b"] * 5
    groups = ["g1", "g1", "g2", "g3", "g4", "g5", "g5", "g6", "g7", "g8"]
    kept = ["test", "val", "test", "val", "train", "test", "", "test", "val", "train"]
    expected = ["train", "train", "test", "val", "train", "test", "test", "test", "val", "train"]
    assert extend_split(labels, groups, kept, seed=0).tolist() == expected


def test_all_are_split_anew_without_earlier_splits_or_if_one_would_be_empty() -> None:
    labels = ["a"] * 8 + ["b"] * 8
    groups = ["g1"] * 4 + [f"g{number}" for number in range(2, 14)]
    new = split_groups(labels, groups, seed=0)
    joined = ["test", "val", *["train"] * 6, "test", "val", *["train"] * 6]
    for kept in ([""] * 16, joined):
        np.testing.assert_array_equal(extend_split(labels, groups, kept, seed=0), new)


def test_all_are_split_anew_if_most_of_test_would_become_train() -> None:
    """Patients become known: three of four have images in several splits."""
    patients = np.repeat(np.arange(160), 8)
    labels = np.array(["a", "b"])[patients // 4 % 2]
    images = np.where(patients % 4 == 0, 0, np.tile(np.arange(8), 160))
    kept = split_groups(labels, patients * 8 + images, seed=0)
    for split in ("val", "test"):  # both classes would stay in each
        is_whole = (patients % 4 == 0) & (kept == split)
        assert set(labels[is_whole]) == {"a", "b"}
    splits = extend_split(labels, patients, kept, seed=0)
    np.testing.assert_array_equal(splits, split_groups(labels, patients, seed=0))


# ---- cross-validation


@pytest.mark.parametrize("n_folds", [2, 5])
def test_every_row_is_in_one_test_fold(n_folds: int) -> None:
    labels, groups = build_rows(150)
    folds = np.array(split_folds(labels, groups, n_folds, seed=0))
    np.testing.assert_array_equal((folds == "test").sum(axis=0), 1)
    for splits in folds:
        check_disjoint(groups, splits)
        assert np.mean(splits[splits != "test"] == "val") == pytest.approx(1 / 7, abs=0.04)
        for label in np.unique(labels):
            share = np.mean(splits[labels == label] == "test")
            assert share == pytest.approx(1 / n_folds, abs=0.04)
    order = shuffle_rows(len(labels))
    again = split_folds(labels[order], groups[order], n_folds, seed=0)
    np.testing.assert_array_equal(folds[:, order], again)
    assert (folds != split_folds(labels, groups, n_folds, seed=1)).any()


def test_too_few_groups_for_the_folds_are_refused() -> None:
    labels = ["many"] * 40 + ["few"] * 4
    with pytest.raises(UserError, match=r"class 'few' has 4 group.*--folds 5"):
        split_folds(labels, [f"g{row}" for row in range(44)], 5, seed=0)
    for splits in split_folds([*labels, "few"], [f"g{row}" for row in range(45)], 5, seed=0):
        assert set(splits[40:]) == set(SPLITS)
