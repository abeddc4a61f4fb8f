"""The split and the ids: groups whole, classes even, order and names without effect."""

import time
import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helper import UserError
from preparation.manifest import link_groups, name_sets
from preparation.splits import check_disjoint, extend_split, split_folds, split_groups, split_images


def build_rows(n_groups: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and groups of 1 to 4 rows a group, three classes."""
    sizes = np.random.default_rng(seed).integers(1, 5, n_groups)
    groups = np.repeat([f"g{number:05d}" for number in range(n_groups)], sizes)
    labels = np.repeat(np.array(["Glioma", "Menin", "Tumor"])[np.arange(n_groups) % 3], sizes)
    return labels, groups


def test_shares_are_70_15_15_in_every_class() -> None:
    labels, groups = build_rows(600)
    splits = split_groups(labels, groups, seed=0)
    for label in np.unique(labels):
        counts = Counter(splits[labels == label])
        total = counts.total()
        assert counts["train"] / total == pytest.approx(0.70, abs=0.02)
        assert counts["val"] / total == pytest.approx(0.15, abs=0.02)
        assert counts["test"] / total == pytest.approx(0.15, abs=0.02)
    check_disjoint(groups, splits)


def test_order_of_rows_makes_no_difference() -> None:
    labels, groups = build_rows(200)
    labels = labels.copy()
    labels[::7] = "Tumor"  # groups of mixed class too
    splits = split_groups(labels, groups, seed=3)
    order = np.random.default_rng(1).permutation(len(labels))
    again = split_groups(labels[order], groups[order], seed=3)
    np.testing.assert_array_equal(again, splits[order])


def test_names_of_classes_make_no_difference() -> None:
    labels, groups = build_rows(200)
    renamed = np.array([{"Glioma": "z", "Menin": "a", "Tumor": "m"}[label] for label in labels])
    np.testing.assert_array_equal(split_groups(labels, groups, 0), split_groups(renamed, groups, 0))


def test_seeds_differ_and_repeat() -> None:
    labels, groups = build_rows(200)
    first = split_groups(labels, groups, seed=0)
    np.testing.assert_array_equal(first, split_groups(labels, groups, seed=0))
    assert (first != split_groups(labels, groups, seed=1)).any()


@pytest.mark.parametrize("n_groups", [3, 4, 7, 12, 19, 20])
def test_few_groups_still_fill_every_split(n_groups: int) -> None:
    labels = np.repeat(["many", "few"], [200, n_groups])
    groups = np.array([f"g{number}" for number in range(200 + n_groups)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = split_groups(labels, groups, seed=0)
    for label in ("many", "few"):
        assert set(splits[labels == label]) == {"train", "val", "test"}


def test_a_class_of_two_groups_is_refused_by_name() -> None:
    labels = ["many"] * 9 + ["few"] * 4
    groups = [*"abcdefghi", "x", "x", "y", "y"]
    with pytest.raises(UserError, match=r"class 'few' has 2 group.*at least 3"):
        split_groups(labels, groups, seed=0)


def test_six_thousand_groups_are_quick() -> None:
    labels, groups = build_rows(6000)
    start = time.perf_counter()
    splits = split_groups(labels, groups, seed=0)
    assert time.perf_counter() - start < 10  # about 2 s on one free core
    check_disjoint(groups, splits)
    assert (splits == "train").mean() == pytest.approx(0.70, abs=0.01)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30)), min_size=40, max_size=80),
    st.integers(0, 2**40),
)
def test_no_group_is_ever_divided(rows: list[tuple[str, int]], seed: int) -> None:
    fixed = [
        (label, 100 + 10 * "ab".index(label) + number) for label in "ab" for number in range(4)
    ]
    labels, numbers = zip(*rows, *fixed, strict=True)
    groups = [f"g{number}" for number in numbers]
    splits = split_groups(labels, groups, seed)
    check_disjoint(groups, splits)
    assert set(splits) == {"train", "val", "test"}


def test_check_disjoint_names_the_first_group() -> None:
    check_disjoint(["a", "a", "b"], ["train", "train", "test"])
    check_disjoint(["a", "a"], ["train", ""])  # an unreadable row is in no split
    with pytest.raises(UserError, match="group b is in test and in val"):
        check_disjoint(["a", "b", "b", "c", "c"], ["train", "test", "val", "train", "test"])


def test_split_images_keeps_only_equal_files_together() -> None:
    digests = np.array([f"{number // 2:04x}" for number in range(400)])  # every file twice
    labels = np.array(["x", "y"])[(np.arange(400) // 2) % 2]
    splits = split_images(digests, labels, seed=0)
    np.testing.assert_array_equal(splits[::2], splits[1::2])
    assert (splits == "test").mean() == pytest.approx(0.15, abs=0.02)


def test_groups_link_in_chains() -> None:
    slices = ["s1", "s1", "s2", "s3", "s4", "s5"]
    patients = ["p1", "", "p1", "p2", "p2", ""]
    groups = link_groups(slices, patients)
    assert groups[0] == groups[1] == groups[2]  # s1 by bytes, s2 by patient p1
    assert groups[3] == groups[4]
    assert len(set(groups)) == 3
    further = link_groups(slices, patients, ["", "", "k", "k", "", ""])  # s2 and s3
    assert len(set(further)) == 2


def test_ids_come_from_the_smallest_digest_of_the_set() -> None:
    digests = ["b" * 64, "a" * 64, "c" * 64]
    assert name_sets("g", [0, 0, 1], digests) == ["g" + "a" * 12, "g" + "a" * 12, "g" + "c" * 12]
    assert name_sets("s", [7, 5, 5], digests) == ["s" + "b" * 12, "s" + "a" * 12, "s" + "a" * 12]


def test_a_rare_class_leaves_the_shares_of_the_others_alone() -> None:
    labels = ["a"] * 200 + ["b"] * 200 + ["rare"] * 3
    groups = [f"g{row}" for row in range(403)]
    splits = split_groups(labels, groups, seed=0)
    for start, stop in ((0, 200), (200, 400)):
        shares = [float(np.mean(splits[start:stop] == name)) for name in ("train", "val", "test")]
        assert shares == pytest.approx([0.7, 0.15, 0.15], abs=0.01)
    assert sorted(splits[400:]) == ["test", "train", "val"]


def test_large_groups_are_not_always_judged() -> None:
    """Seeds decide where the largest groups go, as often as the shares say."""
    sizes = np.concatenate([[60, 58, 55, 50, 40], np.random.default_rng(0).integers(1, 7, 600)])
    groups = np.repeat([f"g{number:03d}" for number in range(len(sizes))], sizes)
    labels = np.repeat(np.array(["a", "b", "c"])[np.arange(len(sizes)) % 3], sizes)
    largest = [int(start) for start in np.cumsum(sizes)[:5] - 1]
    divisions = [split_groups(labels, groups, seed) for seed in range(60)]
    shares = Counter(str(splits[row]) for splits in divisions for row in largest)
    assert shares["test"] / shares.total() == pytest.approx(0.15, abs=0.06)
    assert shares["val"] / shares.total() == pytest.approx(0.15, abs=0.06)


# ---- slices that come later


def test_nothing_kept_is_divided_anew() -> None:
    labels, groups = build_rows(200)
    anew = split_groups(labels, groups, seed=4)
    np.testing.assert_array_equal(extend_split(labels, groups, [""] * len(labels), 4), anew)


def test_what_has_a_split_keeps_it_and_new_groups_fill_up() -> None:
    labels, groups = build_rows(400)
    old = np.array([int(group[1:]) < 300 for group in groups])
    kept = np.where(old, "", "").astype("<U5")
    kept[old] = split_groups(labels[old], groups[old], seed=0)
    splits = extend_split(labels, groups, kept, seed=0)
    np.testing.assert_array_equal(splits[old], kept[old])
    check_disjoint(groups, splits)
    for label in np.unique(labels):
        shares = [np.mean(splits[labels == label] == name) for name in ("train", "val", "test")]
        assert shares == pytest.approx([0.7, 0.15, 0.15], abs=0.02)
    order = np.random.default_rng(1).permutation(len(labels))
    again = extend_split(labels[order], groups[order], kept[order], seed=0)
    np.testing.assert_array_equal(again, splits[order])


def test_groups_tied_together_become_train() -> None:
    labels = ["a"] * 5 + ["b"] * 5
    groups = ["g1", "g1", "g2", "g3", "g4", "g5", "g5", "g6", "g7", "g8"]
    kept = ["test", "val", "test", "val", "train", "test", "", "test", "val", "train"]
    expected = ["train", "train", "test", "val", "train", "test", "test", "test", "val", "train"]
    assert extend_split(labels, groups, kept, seed=0).tolist() == expected


def test_a_tie_that_would_empty_a_split_divides_anew() -> None:
    labels = ["a"] * 8 + ["b"] * 8
    groups = ["g1"] * 4 + [f"g{number}" for number in range(2, 14)]
    kept = ["test", "val", *["train"] * 6, "test", "val", *["train"] * 6]
    splits = extend_split(labels, groups, kept, seed=0)
    np.testing.assert_array_equal(splits, split_groups(labels, groups, seed=0))
    assert set(splits[:8]) == {"train", "val", "test"}


def test_a_new_class_leaves_the_others_alone() -> None:
    labels, groups = build_rows(90)
    old = labels != "Tumor"
    kept = np.full(len(labels), "", dtype="<U5")
    kept[old] = split_groups(labels[old], groups[old], seed=0)
    splits = extend_split(labels, groups, kept, seed=0)
    np.testing.assert_array_equal(splits[old], kept[old])
    assert set(splits[~old]) == {"train", "val", "test"}
    assert np.mean(splits[~old] == "train") == pytest.approx(0.7, abs=0.1)


# ---- folds


@pytest.mark.parametrize("n_folds", [2, 5, 10])
def test_every_row_is_judged_once(n_folds: int) -> None:
    labels, groups = build_rows(300)
    divisions = split_folds(labels, groups, n_folds, seed=0)
    judged = np.sum([splits == "test" for splits in divisions], axis=0)
    np.testing.assert_array_equal(judged, 1)
    for splits in divisions:
        check_disjoint(groups, splits)
        rest = splits != "test"
        assert np.mean(splits[rest] == "val") == pytest.approx(1 / 7, abs=0.03)
        for label in np.unique(labels):
            share = np.mean(splits[labels == label] == "test")
            assert share == pytest.approx(1 / n_folds, abs=0.03)


def test_folds_repeat_and_seeds_differ() -> None:
    labels, groups = build_rows(150)
    order = np.random.default_rng(2).permutation(len(labels))
    folds = split_folds(labels, groups, 5, seed=1)
    again = split_folds(labels[order], groups[order], 5, seed=1)
    for first, second in zip(folds, again, strict=True):
        np.testing.assert_array_equal(first[order], second)
    other = split_folds(labels, groups, 5, seed=2)
    assert any((first != second).any() for first, second in zip(folds, other, strict=True))


def test_too_few_groups_for_the_folds_are_refused() -> None:
    labels = ["many"] * 40 + ["few"] * 4
    groups = [f"g{row}" for row in range(44)]
    with pytest.raises(UserError, match=r"class 'few' has 4 group.*--folds 5"):
        split_folds(labels, groups, 5, seed=0)
