"""Split rows into train, val and test by whole groups, stratified by class and reproducible."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from helper import UserError

SPLITS = ("train", "val", "test")
HELD_OUT = SPLITS[-1]
TEST_SHARE = 0.15  # also of val
SHARES = (1 - 2 * TEST_SHARE, TEST_SHARE, TEST_SHARE)  # of SPLITS
VAL_FOLDS = round(1 / TEST_SHARE)  # cross-validation: val is one of 7 parts of the rest
FOLDS = 20  # granularity of the shares
UNITS_PER_KIND = 200  # more groups of one kind are assigned in bundles
MIN_KEPT = 0.5  # of the rows of val or test; if fewer would stay in it, all are split again
MIN_GROUPS = 3  # a class needs one group in each split

Keys = Sequence[str] | npt.NDArray
Codes = npt.NDArray[np.intp]


def split_groups(labels: Keys, groups: Keys, seed: int) -> npt.NDArray[np.str_]:
    """Split rows into train, val and test, 70/15/15, with no group in two of them.

    StratifiedGroupKFold makes 20 folds of similar class shares: 3 become test, 3 val, the others
    train. A class of fewer than 20 groups is split separately first, so that it is in every split
    without changing the shares of the other classes. The order of the rows and the names of the
    classes have no effect.

    Args:
        labels: Class of each row.
        groups: Group of each row.
        seed: Another seed gives another split.

    Returns:
        "train", "val" or "test" for each row.

    Raises:
        UserError: A class has fewer than 3 groups, so that it cannot be in every split.
    """
    classes, group_codes = _encode(labels, groups)
    rarest, n_groups = _find_rarest_class(labels, classes, group_codes)
    if n_groups < MIN_GROUPS:
        raise UserError(
            f"class {rarest!r} has {n_groups} group(s) of slices (those of one patient, study or "
            f"file, and duplicates), and train, val and test need one each: at least {MIN_GROUPS}; "
            "add slices, leave the class out, or, if known patients join too much, give "
            "--ignore-patients"
        )
    splits = np.full(len(classes), "", dtype="<U5")
    for members in _iterate_rare(classes, group_codes, splits, FOLDS):
        shuffled = np.random.default_rng(seed).permutation(members)
        n_test = max(1, round(TEST_SHARE * len(shuffled)))
        splits[np.isin(group_codes, shuffled)] = "train"
        splits[np.isin(group_codes, shuffled[:n_test])] = "test"
        splits[np.isin(group_codes, shuffled[n_test : 2 * n_test])] = "val"
    rest = np.flatnonzero(splits == "")
    if len(rest):
        units = _bundle(classes[rest], group_codes[rest], seed)
        folds = _make_folds(classes[rest], units, FOLDS, seed)
        n_test = round(TEST_SHARE * FOLDS)
        splits[rest] = "train"
        splits[rest[np.concatenate(folds[:n_test])]] = "test"
        splits[rest[np.concatenate(folds[n_test : 2 * n_test])]] = "val"
    return splits


def extend_split(labels: Keys, groups: Keys, kept: Keys, seed: int) -> npt.NDArray[np.str_]:
    """Split rows as `split_groups` does, but keep the splits of an earlier manifest.

    A group whose rows had different splits goes to train. New groups are added largest first,
    each to the split in which its classes lack most images; the groups of a new class are split
    separately. Everything is split again if no row has a split, if a class would be left without
    train, val or test, or if val or test would lose more than half of its rows to train, as when
    patients become known: what is left of it would be few and untypical patients.

    Args:
        labels: Class of each row.
        groups: Group of each row.
        kept: Earlier split of each row, or "".
        seed: Used for a new split, and for the order of new groups of equal size.
    """
    table = pd.DataFrame({"label": labels, "group": groups, "kept": kept})
    has_split = table["kept"] != ""
    earlier = table[has_split].groupby("group")["kept"].agg(["nunique", "first"])
    split_of = earlier["first"].where(earlier["nunique"] == 1, "train").to_dict()
    is_new = ~table["label"].isin(table["label"][has_split]) & ~table["group"].isin(split_of)
    new = table[is_new]
    if len(new) and new.groupby("label")["group"].nunique().min() >= MIN_GROUPS:
        new_splits = split_groups(new["label"].to_numpy(), new["group"].to_numpy(), seed)
        split_of |= dict(zip(new["group"], new_splits, strict=True))
    split_of |= _fill_up(table, split_of, seed)
    splits = table["group"].map(split_of).to_numpy(dtype=str)
    loses_most = any(
        (splits[table["kept"] == name] == name).mean() < MIN_KEPT
        for name in ("val", "test")
        if (table["kept"] == name).any()
    )
    if loses_most or not _is_in_all_splits(table["label"], splits):
        return split_groups(labels, groups, seed)
    return splits


def _fill_up(table: pd.DataFrame, split_of: dict[str, str], seed: int) -> dict[str, str]:
    """Assign each group without a split to the one in which its classes lack most images."""
    assigned = pd.Series([split_of.get(group, "") for group in table["group"]], table.index)
    filled = pd.crosstab(table["label"], assigned)
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


def split_folds(labels: Keys, groups: Keys, n_folds: int, seed: int) -> list[npt.NDArray[np.str_]]:
    """Split rows for cross-validation: every row is in one test fold, no group in two splits.

    Val is a grouped and stratified seventh of the rest of each fold.

    Returns:
        For each fold "train", "val" or "test" for each row.

    Raises:
        UserError: A class has too few groups to be in every split of every fold.
    """
    classes, group_codes = _encode(labels, groups)
    rarest, n_groups = _find_rarest_class(labels, classes, group_codes)
    too_few = UserError(
        f"class {rarest!r} has {n_groups} group(s) of slices, too few for --folds {n_folds}: "
        "choose fewer folds, add slices or leave the class out"
    )
    if n_groups < max(n_folds, MIN_GROUPS):
        raise too_few
    units = _bundle(classes, group_codes, seed)
    folds = []
    for test_rows in _make_folds(classes, units, n_folds, seed):
        splits = np.full(len(classes), "train", dtype="<U5")
        splits[test_rows] = "test"
        rest = np.flatnonzero(splits == "train")
        splits[rest] = _split_off_val(classes[rest], group_codes[rest], units[rest], seed)
        if not _is_in_all_splits(classes, splits):
            raise too_few
        folds.append(splits)
    return folds


def _split_off_val(
    classes: Codes, group_codes: Codes, units: Codes, seed: int
) -> npt.NDArray[np.str_]:
    """Return val for one of VAL_FOLDS parts, or for one group of a rare class, else train."""
    splits = np.full(len(classes), "", dtype="<U5")
    for members in _iterate_rare(classes, group_codes, splits, VAL_FOLDS):
        splits[np.isin(group_codes, members)] = "train"
        splits[group_codes == np.random.default_rng(seed).choice(members)] = "val"
    rest = np.flatnonzero(splits == "")
    if len(rest):
        splits[rest] = "train"
        splits[rest[_make_folds(classes[rest], units[rest], VAL_FOLDS, seed)[0]]] = "val"
    return splits


def split_off_val(labels: Keys, groups: Keys, seed: int) -> npt.NDArray[np.str_]:
    """Split rows into train and val, 6 to 1, with no group in both of them."""
    classes, group_codes = _encode(labels, groups)
    return _split_off_val(classes, group_codes, _bundle(classes, group_codes, seed), seed)


def split_images(sha256: Keys, labels: Keys, seed: int) -> npt.NDArray[np.str_]:
    """Split files at random to measure the effect of leaks; byte-identical files stay together."""
    return split_groups(labels, sha256, seed)


def check_disjoint(groups: Keys, splits: Keys) -> None:
    """Raise a UserError that names the first group in two splits; "" means no split."""
    first_split: dict[str, str] = {}
    for group, split in zip(groups, splits, strict=True):
        if split and first_split.setdefault(group, split) != split:
            raise UserError(
                f"group {group} is in {first_split[group]} and in {split}: its slices would be "
                "in training and in evaluation; run prepare.py again to split the data"
            )


def _encode(labels: Keys, groups: Keys) -> tuple[Codes, Codes]:
    """Return class and group numbers of each row; class numbers do not depend on class names."""
    group_codes = np.unique(np.asarray(groups), return_inverse=True)[1]
    by_name = np.unique(np.asarray(labels), return_inverse=True)[1]
    contents = [tuple(np.sort(group_codes[by_name == code])) for code in range(by_name.max() + 1)]
    order = np.argsort(sorted(range(len(contents)), key=contents.__getitem__))
    return order[by_name], group_codes


def _find_rarest_class(labels: Keys, classes: Codes, group_codes: Codes) -> tuple[str, int]:
    """Return the name of the class with the fewest groups, and their number."""
    pairs = np.unique(np.stack([classes, group_codes]), axis=1)
    n_groups = np.bincount(pairs[0])
    rarest = int(n_groups.argmin())
    return str(np.asarray(labels)[classes == rarest][0]), int(n_groups[rarest])


def _iterate_rare(
    classes: Codes, group_codes: Codes, splits: npt.NDArray[np.str_], n_folds: int
) -> Iterator[Codes]:
    """Yield the unassigned groups of each class with fewer than `n_folds` of them, rarest first.

    The caller must assign them in `splits` before the next iteration.
    """
    while True:
        is_left = splits == ""
        pairs = np.unique(np.stack([classes[is_left], group_codes[is_left]]), axis=1)
        counts = np.bincount(pairs[0])
        rare = [code for code in np.argsort(counts, kind="stable") if 0 < counts[code] < n_folds]
        if not rare:
            return
        yield np.unique(group_codes[(classes == rare[0]) & is_left])


def _is_in_all_splits(classes: Keys, splits: npt.NDArray[np.str_]) -> bool:
    """Return whether every class has rows in train, val and test."""
    return len(set(zip(classes, splits, strict=True))) == len(SPLITS) * len(set(classes))


def _make_folds(classes: Codes, units: Codes, n_folds: int, seed: int) -> list[Codes]:
    """Return the rows of each fold: stratified, whole units, independent of the row order."""
    order = np.lexsort((classes, units))
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed % 2**32)
    unused = np.zeros((len(order), 1))
    folds = [order[rows] for _, rows in splitter.split(unused, classes[order], units[order])]
    # StratifiedGroupKFold puts the largest groups into the first folds whatever the seed
    return [folds[fold] for fold in np.random.default_rng(seed).permutation(n_folds)]


def _bundle(classes: Codes, group_codes: Codes, seed: int) -> Codes:
    """Return a unit for each row: one group, or a random bundle of groups of one kind.

    Groups of one kind have equal counts of every class. StratifiedGroupKFold takes 0.7 ms for each
    group at 20 folds; bundles of n // 200 of a kind's n groups bound the time and keep the balance.
    """
    n_groups = int(group_codes.max()) + 1
    contents = np.zeros((n_groups, int(classes.max()) + 1), np.intp)
    np.add.at(contents, (group_codes, classes), 1)
    kinds = np.unique(contents, axis=0, return_inverse=True)[1].reshape(-1)
    shuffled = np.random.default_rng(seed).permutation(n_groups)
    unit_of_group = np.empty(n_groups, np.intp)
    first_unit = 0
    for kind in range(int(kinds.max()) + 1):
        members = shuffled[kinds[shuffled] == kind]
        units = np.arange(len(members)) // max(1, len(members) // UNITS_PER_KIND)
        unit_of_group[members] = first_unit + units
        first_unit += int(units[-1]) + 1
    return unit_of_group[group_codes]
