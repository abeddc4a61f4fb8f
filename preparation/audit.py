"""What prepare found in a data folder: audit.json, and the same as lines to read."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from duplicates.finder import FINDER_VERSION
from helper import UserError
from preparation.manifest import ImageFacts, load_manifest
from preparation.splits import SPLITS, TEST_SHARE

AUDIT_SCHEMA = 2
PUBLISHED_COUNTS = {"Glioma": 2004, "Menin": 2004, "Tumor": 2048}
PUBLISHED_SIZE = "512 x 512"
NAMES_KEPT = 20  # of files that are no pictures, of odd ones, of links across classes
USUAL_SHARE = 0.95  # a size or mode of so many images makes the others odd
BLANK_SPREAD = 1.0  # standard deviation of grey, of 255: a picture of nothing


def build_audit(
    frame: pd.DataFrame,
    facts: Mapping[str, ImageFacts],
    source: str,
    seed: int,
    *,
    others: Sequence[str] = (),
    n_patients: int = 0,
    n_not_in_source: int = 0,
    links: pd.DataFrame | None = None,
    shortcut: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The content of audit.json; the same data give the same audit.

    Args:
        frame: The manifest.
        facts: Facts of each of its paths.
        source: Name of the archive or folder.
        seed: Of the split.
        others: Files of the source that are no pictures.
        n_patients: Known patients.
        n_not_in_source: Pictures of the folder that the source has not.
        links: What the finder of copies found, as `Copies.tabulate`; None where it was not asked.
        shortcut: Accuracies of brightness alone.
    """
    readable = frame[frame["mean"].notna()]
    unreadable = frame[frame["mean"].isna()]
    counts = {str(label): int(n) for label, n in frame["label"].value_counts().sort_index().items()}
    modes = readable["path"].map(lambda path: facts[path].mode)
    sizes = readable["width"].astype(str) + " x " + readable["height"].astype(str)
    divided = pd.crosstab(readable["label"], readable["split"])
    return {
        "schema": AUDIT_SCHEMA,
        "phantom": False,
        "source": source,
        "seed": seed,
        "n_images": len(frame),
        "classes": counts,
        "sizes": _count(sizes),
        "modes": _count(modes),
        "by_class": {
            label: {
                "sizes": _count(sizes[readable["label"] == label]),
                "modes": _count(modes[readable["label"] == label]),
                "brightness": _describe_brightness(readable["mean"][readable["label"] == label]),
            }
            for label in counts
        },
        "byte_copies": _count_byte_copies(frame),
        "n_slices": int(readable["slice"].nunique()),
        "n_groups": int(frame["group"].nunique()),
        "n_patients": n_patients,
        "copies": None if links is None else _describe_copies(readable, links),
        "leak": _compute_leak(readable),
        "shortcut": dict(shortcut) if shortcut else None,
        "splits": {
            split: {str(label): int(divided.get(split, {}).get(label, 0)) for label in counts}
            for split in SPLITS
        },
        "unreadable": dict(zip(unreadable["path"], unreadable["note"], strict=True)),
        "odd": _list_odd(readable, facts, sizes, modes),
        "not_in_source": n_not_in_source,
        "ignored_files": {"count": len(others), "first": list(others[:NAMES_KEPT])},
        "publisher": _compare_published(counts, _count(sizes)),
    }


def _count(values: "pd.Series[str]") -> dict[str, int]:
    return dict(Counter(values).most_common())


def _describe_brightness(means: "pd.Series[float]") -> dict[str, float] | None:
    """Mean grey values of a class, of 255."""
    if means.empty:
        return None
    quartiles = means.quantile([0.25, 0.5, 0.75]).round(3).tolist()
    return dict(
        zip(
            ("mean", "lower_quartile", "median", "upper_quartile"),
            (round(float(means.mean()), 3), *quartiles),
            strict=True,
        )
    )


def _count_byte_copies(frame: pd.DataFrame) -> dict[str, int]:
    by_content = frame.groupby("sha256")["label"].agg(["size", "nunique"])
    return {
        "files": len(frame) - len(by_content),
        "sets": int((by_content["size"] > 1).sum()),
        "sets_across_classes": int((by_content["nunique"] > 1).sum()),
    }


def _describe_copies(readable: pd.DataFrame, links: pd.DataFrame) -> dict[str, Any]:
    """Copies and neighbours, and how often linked slices are of one class, which is a check."""
    first_of = readable.drop_duplicates("sha256").set_index("sha256")
    ends = {
        column: np.stack([links[end].map(first_of[column]) for end in ("first", "second")])
        for column in ("label", "group", "split")
    }
    across, is_cut = (ends[column][0] != ends[column][1] for column in ("label", "group"))
    kinds = links["kind"].to_numpy()
    return {
        "finder": FINDER_VERSION,
        "images_with_a_copy": int(readable["slice"].duplicated(keep=False).sum()),
        "images_with_a_relative": int(readable["group"].duplicated(keep=False).sum()),
        "largest_slice": int(readable["slice"].value_counts().max()),
        "largest_group": int(readable["group"].value_counts().max()),
        "links": {
            kind: {
                "count": int((kinds == kind).sum()),
                "across_classes": int((across & (kinds == kind)).sum()),
            }
            for kind in ("slice", "group")
        },
        "cut_links": {  # of groups that were larger than a patient
            "count": int(is_cut.sum()),
            "highest_score": int(links["score"][is_cut].max()) if is_cut.any() else None,
            "across_splits": int((is_cut & (ends["split"][0] != ends["split"][1])).sum()),
        },
        "conflicts": _list_conflicts(readable, links[across], first_of["path"]),
    }


def _list_conflicts(
    readable: pd.DataFrame, across: pd.DataFrame, path_of: "pd.Series[str]"
) -> list[dict[str, Any]]:
    """What is in two classes: equal files first, then links, the strongest first."""
    conflicts: list[dict[str, Any]] = []
    for _, files in readable.groupby("sha256"):
        if files["label"].nunique() > 1:
            first, second = files.drop_duplicates("label")["path"].iloc[:2]
            conflicts.append({"first": first, "second": second, "score": None, "kind": "byte"})
    conflicts += [
        {
            "first": path_of[row.first],
            "second": path_of[row.second],
            "score": int(row.score),
            "kind": row.kind,
        }
        for row in across.itertuples()
    ]
    return conflicts[:NAMES_KEPT]


def _compute_leak(readable: pd.DataFrame) -> dict[str, float] | None:
    """The share of a random test split's images that have a copy, or a relative, in the rest.

    Expected over all random splits of TEST_SHARE: an image of a set of m is alone in the test when
    none of the others is, and all are in it with the odds of drawing m - 1 more from it.
    """
    n_images = len(readable)
    n_test = round(TEST_SHARE * n_images)
    if n_test < 1:
        return None
    expected = {}
    for kind, column in (("copy", "slice"), ("relative", "group")):
        sizes = readable[column].map(readable[column].value_counts()).to_numpy()
        draws = np.arange(1, int(sizes.max()))
        odds = np.clip((n_test - draws) / (n_images - draws), 0, 1)
        all_in_test = np.concatenate([[1.0], np.cumprod(odds)])[sizes - 1]
        expected[kind] = round(float(np.mean(1 - all_in_test)), 4)
    return expected


def _list_odd(
    readable: pd.DataFrame,
    facts: Mapping[str, ImageFacts],
    sizes: "pd.Series[str]",
    modes: "pd.Series[str]",
) -> dict[str, str]:
    """Pictures of nothing, and those unlike nearly all others in size or mode, by path."""
    odd: dict[str, str] = {}
    for what, values in (("size", sizes), ("mode", modes)):
        if values.empty or (usual := values.value_counts(normalize=True)).iloc[0] < USUAL_SHARE:
            continue
        for row, value in values[values != usual.index[0]].items():
            odd[readable["path"][row]] = f"{what} {value}"
    for path in readable["path"]:
        thumbnail = facts[path].thumbnail
        if thumbnail is not None and thumbnail.std() < BLANK_SPREAD:
            odd[path] = "blank"
    return odd


def _compare_published(counts: dict[str, int], sizes: dict[str, int]) -> dict[str, Any] | None:
    """What the publisher of the three classes states, beside what is here; None for others."""
    if set(counts) != set(PUBLISHED_COUNTS):
        return None
    return {
        "classes": PUBLISHED_COUNTS,
        "size": PUBLISHED_SIZE,
        "agrees": counts == PUBLISHED_COUNTS and set(sizes) == {PUBLISHED_SIZE},
    }


def read_audit(data_dir: Path) -> dict[str, Any]:
    """The audit that an earlier run left; empty where there is none of this schema."""
    try:
        audit = json.loads((data_dir / "CSV" / "audit.json").read_text("utf-8"))
        return audit if audit["schema"] == AUDIT_SCHEMA else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def read_splits(data_dir: Path) -> dict[str, str]:
    """The splits of an earlier manifest by sha256; empty where there is none that can be read."""
    try:
        frame = load_manifest(data_dir)
    except (OSError, UserError):
        return {}
    divided = frame[frame["split"] != ""]
    return dict(zip(divided["sha256"], divided["split"], strict=True))


def keeps_splits(data_dir: Path, seed: int) -> bool:
    """Whether a new manifest keeps the splits of the earlier one.

    Not where the copies were found by another version or not at all, or the seed is another: the
    slices are then divided anew.
    """
    audit = read_audit(data_dir)
    copies = audit.get("copies") or {}
    return audit.get("seed") == seed and copies.get("finder") == FINDER_VERSION


def describe_moved(frame: pd.DataFrame, before: Mapping[str, str]) -> list[str]:
    """Which slices changed sides since the earlier manifest, why, and the way on."""
    was = frame["sha256"].map(before)
    moved = frame[was.notna() & (was != frame["split"]) & (frame["split"] != "")]
    if moved.empty:
        return []
    if (moved["split"] == "train").all():
        counts = was[moved.index].value_counts()
        parts = ", ".join(f"{count} of {split}" for split, count in counts.items())
        what = (
            "new images or known patients tie groups of different splits together: "
            f"{len(moved)} images ({parts}) of {moved['group'].nunique()} groups are training "
            f"slices now, such as {moved['path'].iloc[0]}"
        )
    else:
        what = (
            "the split was made anew (another seed or search for copies, or a class that was left "
            f"without train, val or test): {len(moved)} of {len(frame)} images changed sides"
        )
    return [
        what,
        "runs trained before keep their own split, whose test may now hold copies of training "
        "slices: train again",
    ]


def describe_audit(audit: Mapping[str, Any]) -> list[str]:
    """The audit as lines for the terminal."""
    width = max(5, *(len(label) for label in audit["classes"]))
    lines = [
        f"  {'class':<{width}} {'images':>7} {'train':>6} {'val':>6} {'test':>6} {'mean grey':>10}"
    ]
    for label, count in audit["classes"].items():
        parts = " ".join(f"{audit['splits'][split][label]:>6}" for split in SPLITS)
        grey = audit["by_class"][label]["brightness"]
        shown = f"{grey['mean']:>10.1f}" if grey else f"{'–':>10}"
        lines.append(f"  {label:<{width}} {count:>7} {parts} {shown}")
    lines.append(
        f"  sizes: {_list_counts(audit['sizes'])}; stored as {_list_counts(audit['modes'])}"
    )
    if published := audit.get("publisher"):
        stated = " / ".join(f"{count:,}" for count in published["classes"].values())
        here = " / ".join(f"{audit['classes'][label]:,}" for label in published["classes"])
        verdict = "as here" if published["agrees"] else f"here {here}"
        lines.append(f"  the publisher states {stated} images, all {published['size']}: {verdict}")
    if audit["phantom"]:
        lines.append(f"  {audit['n_groups']} made-up patients; the split keeps each on one side")
    else:
        lines += _tell_copies(audit)
    if shortcut := audit["shortcut"]:
        lines.append(
            f"  shortcut: brightness alone, without anatomy, reaches {shortcut['brightness']:.0%} "
            f"(always the commonest class: {shortcut['majority']:.0%})"
        )
    lines += [f"  not readable: {path} ({note})" for path, note in audit["unreadable"].items()]
    if odd := audit["odd"]:
        first = ", ".join(f"{path} ({what})" for path, what in list(odd.items())[:3])
        lines.append(f"  odd: {len(odd)} images, among them {first}; all in audit.json")
    if audit["not_in_source"]:
        lines.append(f"  {audit['not_in_source']} images of the folder are not in the source; kept")
    if count := audit["ignored_files"]["count"]:
        first = ", ".join(audit["ignored_files"]["first"][:3])
        lines.append(f"  {count} files that are no pictures were left out ({first})")
    return lines


def _tell_copies(audit: Mapping[str, Any]) -> list[str]:
    byte_copies, copies, leak = audit["byte_copies"], audit["copies"], audit["leak"]
    lines = [
        f"  exact copies: {byte_copies['files']} files repeat others byte for byte "
        f"({byte_copies['sets']} sets)"
    ]
    if across := byte_copies["sets_across_classes"]:
        lines.append(f"  {across} of these sets lie in more than one class: look at their labels")
    if copies is None:
        return lines
    known = f", {audit['n_patients']} known patients" if audit["n_patients"] else ""
    lines.append(
        f"  copies: {audit['n_images'] - len(audit['unreadable'])} files are {audit['n_slices']} "
        f"distinct slices; {copies['images_with_a_copy']} files have a copy"
    )
    lines.append(
        f"  groups: {audit['n_groups']} (copies and likely neighbours{known}), the largest of "
        f"{copies['largest_group']} images; the split keeps each on one side"
    )
    if count := copies["cut_links"]["count"]:
        lines.append(
            f"  groups larger than a patient were divided at their weakest: {count} links cut, "
            f"{copies['cut_links']['across_splits']} of them between splits now"
        )
    if leak:
        lines.append(
            f"  of a random test split {leak['copy']:.0%} of the images would have a copy in the "
            f"rest, and {leak['relative']:.0%} a copy or neighbour"
        )
    for kind, what in (
        ("slice", "copies join two classes: label conflicts"),
        ("group", "likely neighbours join two classes: label conflicts, or strangers that match"),
    ):
        if across := copies["links"][kind]["across_classes"]:
            lines.append(f"  {across} of {copies['links'][kind]['count']} links of {what}")
    for conflict in copies["conflicts"][:3]:
        how = f"{conflict['score']} points agree" if conflict["score"] else "the same bytes"
        lines.append(f"    {conflict['first']} and {conflict['second']} ({how})")
    return lines


def _list_counts(counts: Mapping[str, int]) -> str:
    shown = [f"{name} ({count})" for name, count in list(counts.items())[:3]]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {more} others" if more else "")
