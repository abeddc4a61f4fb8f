"""Train, val and test: whole groups on one side, classes in equal shares, the same every time."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from helper import UserError

SPLITS = ("train", "val", "test")
TEST_SHARE = 0.15  # and the same for val
SHARES = (1 - 2 * TEST_SHARE, TEST_SHARE, TEST_SHARE)  # of SPLITS
VAL_FOLDS = round(1 / TEST_SHARE)  # one of so many parts of what is not test becomes val
FOLDS = 20  # the finest division that the shares are made of
UNITS_A_KIND = 200  # as many groups of one kind are dealt singly; more go in bundles
MIN_GROUPS = 3  # a class needs one group in each split


def split_groups(
    labels: Sequence[str] | npt.NDArray, groups: Sequence[str] | npt.NDArray, seed: int
) -> npt.NDArray[np.str_]:
    """Divide rows into train, val and test, 70/15/15, no group in two of them.

    StratifiedGroupKFold deals the groups into 20 folds of like class shares: 3 become test, 3 val,
    the rest train. A class of fewer than 20 groups is dealt by itself first, so that it reaches
    every split without changing the shares of the others. The order of the rows and the names of
    the classes make no difference.

    Args:
        labels: Class of each row.
        groups: What must stay on one side, for each row.
        seed: Another seed gives another division.

    Returns:
        "train", "val" or "test" for each row.

    Raises:
        UserError: A class with fewer than 3 groups, so that it cannot be in every split.
    """
    class_codes, group_codes = _encode(labels, groups)
    rarest, n_groups = _find_fewest(labels, class_codes, group_codes)
    if n_groups < MIN_GROUPS:
        raise UserError(
            f"class {rarest!r} has {n_groups} group(s) of slices, and train, val and test "
            f"need one each: at least {MIN_GROUPS}; add slices or leave the class out"
        )
    splits = np.full(len(class_codes), "", dtype="<U5")
    while rare := _find_rarest(class_codes, group_codes, splits, FOLDS):
        _deal_class(class_codes == rare[0], group_codes, splits, seed)
    rest = np.flatnonzero(splits == "")
    if len(rest):
        splits[rest] = _deal_folds(class_codes[rest], group_codes[rest], seed)
    return splits


def extend_split(
    labels: Sequence[str] | npt.NDArray,
    groups: Sequence[str] | npt.NDArray,
    kept: Sequence[str] | npt.NDArray,
    seed: int,
) -> npt.NDArray[np.str_]:
    """Divide rows as `split_groups`, but leave those that have a split where they are.

    A group that now holds rows of different splits becomes train as a whole. New groups go, the
    largest first, where their class falls short of its share most; those of a class that is new
    are dealt by themselves. Everything is divided anew where nothing is kept, or where a class
    would be left without train, val or test.

    Args:
        labels: Class of each row.
        groups: What must stay on one side, for each row.
        kept: The split that a row has already, or "".
        seed: Of a division anew, and of the order of new groups of one size.
    """
    table = pd.DataFrame({"label": labels, "group": groups, "kept": kept})
    has_split = table["kept"] != ""
    before = table[has_split].groupby("group")["kept"].agg(["nunique", "first"])
    split_of = before["first"].where(before["nunique"] == 1, "train").to_dict()
    is_new = ~table["label"].isin(table["label"][has_split]) & ~table["group"].isin(split_of)
    of_new = table[is_new]
    if len(of_new) and of_new.groupby("label")["group"].nunique().min() >= MIN_GROUPS:
        dealt = split_groups(of_new["label"].to_numpy(), of_new["group"].to_numpy(), seed)
        split_of |= dict(zip(of_new["group"], dealt, strict=True))
    split_of |= _fill_up(table, split_of, seed)
    splits = table["group"].map(split_of).to_numpy(dtype=str)
    reached = set(zip(table["label"], splits, strict=True))
    if len(reached) < len(SPLITS) * table["label"].nunique():
        return split_groups(labels, groups, seed)
    return splits


def _fill_up(table: pd.DataFrame, split_of: dict[str, str], seed: int) -> dict[str, str]:
    """A split for each group that has none, the one in which its classes lack most images."""
    placed = pd.Series([split_of.get(group, "") for group in table["group"]], table.index)
    filled = pd.crosstab(table["label"], placed)
    filled = filled.reindex(columns=list(SPLITS), fill_value=0).astype(float)
    wanted = np.outer(table["label"].value_counts().reindex(filled.index), SHARES)
    fresh = table[~table["group"].isin(split_of)]
    contents = pd.crosstab(fresh["group"], fresh["label"]).reindex(columns=filled.index)
    contents = contents.fillna(0).iloc[np.random.default_rng(seed).permutation(len(contents))]
    largest_first = np.argsort(-contents.sum(axis=1).to_numpy(), kind="stable")
    chosen: dict[str, str] = {}
    for group, counts in contents.iloc[largest_first].iterrows():
        lacking = (counts.to_numpy()[:, None] * (wanted - filled)).sum(axis=0)
        chosen[str(group)] = SPLITS[int(lacking.to_numpy().argmax())]
        filled[chosen[str(group)]] += counts
    return chosen


def _find_rarest(
    class_codes: npt.NDArray[np.intp],
    group_codes: npt.NDArray[np.intp],
    splits: npt.NDArray[np.str_],
    n_folds: int,
) -> list[int]:
    """The class with the fewest groups to deal yet, where these are too few for the folds."""
    left = splits == ""
    pairs = np.unique(np.stack([class_codes[left], group_codes[left]]), axis=1)
    counts = np.bincount(pairs[0])
    rare = [code for code in np.argsort(counts, kind="stable") if 0 < counts[code] < n_folds]
    return rare[:1]


def _deal_class(
    of_class: npt.NDArray[np.bool_],
    group_codes: npt.NDArray[np.intp],
    splits: npt.NDArray[np.str_],
    seed: int,
) -> None:
    """Deal the groups of one rare class that have no split yet, whatever else lies in them."""
    members = np.unique(group_codes[of_class & (splits == "")])
    members = np.random.default_rng(seed).permutation(members)
    n_test = max(1, round(TEST_SHARE * len(members)))
    splits[np.isin(group_codes, members)] = "train"
    splits[np.isin(group_codes, members[:n_test])] = "test"
    splits[np.isin(group_codes, members[n_test : 2 * n_test])] = "val"


def _deal_folds(
    class_codes: npt.NDArray[np.intp], group_codes: npt.NDArray[np.intp], seed: int
) -> npt.NDArray[np.str_]:
    """Deal groups of common classes into folds, and the folds into splits."""
    units = _bundle(class_codes, group_codes, seed)
    n_test = round(TEST_SHARE * FOLDS)
    splits = np.full(len(class_codes), "train", dtype="<U5")
    folds = _deal_rows(class_codes, units, FOLDS, seed)
    splits[np.concatenate(folds[:n_test])] = "test"
    splits[np.concatenate(folds[n_test : 2 * n_test])] = "val"
    return splits


def split_folds(
    labels: Sequence[str] | npt.NDArray,
    groups: Sequence[str] | npt.NDArray,
    n_folds: int,
    seed: int,
) -> list[npt.NDArray[np.str_]]:
    """Divide rows for cross-validation: every row is test in one fold, no group in two splits.

    Val is carved out of the rest of each fold, a seventh of it, grouped and stratified too.

    Args:
        labels: Class of each row.
        groups: What must stay on one side, for each row.
        n_folds: How many divisions.
        seed: Another seed gives other folds.

    Returns:
        "train", "val" or "test" for each row, once for each fold.

    Raises:
        UserError: A class has too few groups to be in every split of every fold.
    """
    class_codes, group_codes = _encode(labels, groups)
    rarest, n_groups = _find_fewest(labels, class_codes, group_codes)
    too_few = UserError(
        f"class {rarest!r} has {n_groups} group(s) of slices, too few for --folds {n_folds}: "
        "choose fewer folds, add slices or leave the class out"
    )
    if n_groups < max(n_folds, MIN_GROUPS):
        raise too_few
    units = _bundle(class_codes, group_codes, seed)
    divisions = []
    for judged in _deal_rows(class_codes, units, n_folds, seed):
        splits = np.full(len(class_codes), "train", dtype="<U5")
        splits[judged] = "test"
        rest = np.flatnonzero(splits == "train")
        splits[rest] = _carve_val(class_codes[rest], group_codes[rest], units[rest], seed)
        if len(set(zip(class_codes, splits, strict=True))) < len(SPLITS) * len(set(class_codes)):
            raise too_few
        divisions.append(splits)
    return divisions


def _find_fewest(
    labels: Sequence[str] | npt.NDArray,
    class_codes: npt.NDArray[np.intp],
    group_codes: npt.NDArray[np.intp],
) -> tuple[str, int]:
    """The class with the fewest groups, and how many it has."""
    pairs = np.unique(np.stack([class_codes, group_codes]), axis=1)
    n_groups = np.bincount(pairs[0])
    rarest = int(n_groups.argmin())
    return str(np.asarray(labels)[class_codes == rarest][0]), int(n_groups[rarest])


def _carve_val(
    class_codes: npt.NDArray[np.intp],
    group_codes: npt.NDArray[np.intp],
    units: npt.NDArray[np.intp],
    seed: int,
) -> npt.NDArray[np.str_]:
    """Train, and one part of VAL_FOLDS as val; of a class with fewer groups, one of them."""
    splits = np.full(len(class_codes), "", dtype="<U5")
    while rare := _find_rarest(class_codes, group_codes, splits, VAL_FOLDS):
        members = np.unique(group_codes[(class_codes == rare[0]) & (splits == "")])
        splits[np.isin(group_codes, members)] = "train"
        splits[group_codes == np.random.default_rng(seed).choice(members)] = "val"
    rest = np.flatnonzero(splits == "")
    if len(rest):
        splits[rest] = "train"
        splits[rest[_deal_rows(class_codes[rest], units[rest], VAL_FOLDS, seed)[0]]] = "val"
    return splits


def _deal_rows(
    class_codes: npt.NDArray[np.intp], units: npt.NDArray[np.intp], n_folds: int, seed: int
) -> list[npt.NDArray[np.intp]]:
    """Rows of each fold, classes even, units whole, whatever the order of the rows."""
    order = np.lexsort((class_codes, units))
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed % 2**32)
    unused = np.zeros((len(order), 1))
    dealt = splitter.split(unused, class_codes[order], units[order])
    folds = [order[rows] for _, rows in dealt]
    # the largest groups are dealt first and would be in the first folds whatever the seed
    return [folds[fold] for fold in np.random.default_rng(seed).permutation(n_folds)]


def split_images(
    sha256: Sequence[str] | npt.NDArray, labels: Sequence[str] | npt.NDArray, seed: int
) -> npt.NDArray[np.str_]:
    """The leaky random division of files: only byte-identical ones stay together.

    Altered copies and neighbours of one slice fall on both sides; it is here to measure what
    that adds to a score.
    """
    return split_groups(labels, sha256, seed)


def check_disjoint(
    groups: Sequence[str] | npt.NDArray, splits: Sequence[str] | npt.NDArray
) -> None:
    """Make sure that no group is in two splits; rows of the empty split do not count.

    Raises:
        UserError: Names the first group that is, and the splits.
    """
    first_split: dict[str, str] = {}
    for group, split in zip(groups, splits, strict=True):
        if split and first_split.setdefault(group, split) != split:
            raise UserError(
                f"group {group} is in {first_split[group]} and in {split}: its slices would be "
                "learnt and tested; divide again with prepare.py"
            )


def _encode(
    labels: Sequence[str] | npt.NDArray, groups: Sequence[str] | npt.NDArray
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Number the groups by name, and the classes by the groups that they lie in, not by name."""
    group_codes = np.unique(np.asarray(groups), return_inverse=True)[1]
    by_name = np.unique(np.asarray(labels), return_inverse=True)[1]
    lies_in = [tuple(np.sort(group_codes[by_name == code])) for code in range(by_name.max() + 1)]
    rank = np.argsort(sorted(range(len(lies_in)), key=lies_in.__getitem__))
    return rank[by_name], group_codes


def _bundle(
    class_codes: npt.NDArray[np.intp], group_codes: npt.NDArray[np.intp], seed: int
) -> npt.NDArray[np.intp]:
    """Tie groups of one kind (equal counts of every class) together at random where many are.

    StratifiedGroupKFold takes 0.7 ms a group at 20 folds. A kind of n groups is dealt in bundles
    of n // 200, which costs nothing in balance and bounds the time.
    """
    n_groups = int(group_codes.max()) + 1
    contents = np.zeros((n_groups, int(class_codes.max()) + 1), np.intp)
    np.add.at(contents, (group_codes, class_codes), 1)
    kinds = np.unique(contents, axis=0, return_inverse=True)[1].reshape(-1)
    shuffled = np.random.default_rng(seed).permutation(n_groups)
    unit_of_group = np.empty(n_groups, np.intp)
    first_unit = 0
    for kind in range(int(kinds.max()) + 1):
        members = shuffled[kinds[shuffled] == kind]
        units = np.arange(len(members)) // max(1, len(members) // UNITS_A_KIND)
        unit_of_group[members] = first_unit + units
        first_unit += int(units[-1]) + 1
    return unit_of_group[group_codes]
