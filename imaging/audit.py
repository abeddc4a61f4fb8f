"""What prepare found in a data folder: audit.json, and the same as lines to read."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from imaging.manifest import ImageFacts
from imaging.split import SPLITS

PUBLISHED_COUNTS = {"Glioma": 2004, "Menin": 2004, "Tumor": 2048}
PUBLISHED_SIZE = "512 x 512"
NAMES_KEPT = 20  # of the files that are no pictures


def build_audit(
    frame: pd.DataFrame,
    facts: Mapping[str, ImageFacts],
    source: str,
    others: Sequence[str] = (),
    n_patients: int = 0,
    n_not_in_source: int = 0,
) -> dict[str, Any]:
    """The content of audit.json; the same data give the same audit.

    Args:
        frame: The manifest.
        facts: Facts of each of its paths.
        source: Name of the archive or folder.
        others: Files of the source that are no pictures.
        n_patients: Known patients.
        n_not_in_source: Pictures of the folder that the source has not.
    """
    readable = frame[frame["mean"].notna()]
    unreadable = frame[frame["mean"].isna()]
    counts = {str(label): int(n) for label, n in frame["label"].value_counts().sort_index().items()}
    sizes = Counter(f"{row.width} x {row.height}" for row in readable.itertuples())
    modes = Counter(facts[path].mode for path in readable["path"])
    by_content = frame.groupby("sha256")["label"].agg(["size", "nunique"])
    divided = pd.crosstab(readable["label"], readable["split"])
    return {
        "schema": 1,
        "phantom": False,
        "source": source,
        "n_images": len(frame),
        "classes": counts,
        "sizes": dict(sizes.most_common()),
        "modes": dict(modes.most_common()),
        "byte_copies": {
            "files": len(frame) - len(by_content),
            "sets": int((by_content["size"] > 1).sum()),
            "sets_across_classes": int((by_content["nunique"] > 1).sum()),
        },
        "n_groups": int(frame["group"].nunique()),
        "n_patients": n_patients,
        "splits": {
            split: {str(label): int(divided.get(split, {}).get(label, 0)) for label in counts}
            for split in SPLITS
        },
        "unreadable": dict(zip(unreadable["path"], unreadable["note"], strict=True)),
        "not_in_source": n_not_in_source,
        "ignored_files": {"count": len(others), "first": list(others[:NAMES_KEPT])},
        "publisher": _compare_published(counts, sizes),
    }


def _compare_published(counts: dict[str, int], sizes: Counter[str]) -> dict[str, Any] | None:
    """What the publisher of the three classes states, beside what is here; None for others."""
    if set(counts) != set(PUBLISHED_COUNTS):
        return None
    return {
        "classes": PUBLISHED_COUNTS,
        "size": PUBLISHED_SIZE,
        "agrees": counts == PUBLISHED_COUNTS and set(sizes) == {PUBLISHED_SIZE},
    }


def describe_audit(audit: Mapping[str, Any]) -> list[str]:
    """The audit as lines for the terminal."""
    width = max(5, *(len(label) for label in audit["classes"]))
    lines = [f"  {'class':<{width}} {'images':>7} {'train':>6} {'val':>6} {'test':>6}"]
    for label, count in audit["classes"].items():
        parts = " ".join(f"{audit['splits'][split][label]:>6}" for split in SPLITS)
        lines.append(f"  {label:<{width}} {count:>7} {parts}")
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
        lines += _describe_copies(audit)
    lines += [f"  not readable: {path} ({note})" for path, note in audit["unreadable"].items()]
    if audit["not_in_source"]:
        lines.append(f"  {audit['not_in_source']} images of the folder are not in the source; kept")
    if count := audit["ignored_files"]["count"]:
        first = ", ".join(audit["ignored_files"]["first"][:3])
        lines.append(f"  {count} files that are no pictures were left out ({first})")
    return lines


def _describe_copies(audit: Mapping[str, Any]) -> list[str]:
    copies = audit["byte_copies"]
    lines = [
        f"  exact copies: {copies['files']} files repeat others byte for byte "
        f"({copies['sets']} sets); each set shares slice and group"
    ]
    if across := copies["sets_across_classes"]:
        lines.append(f"  {across} of these sets lie in more than one class: look at their labels")
    known = f" and {audit['n_patients']} known patients" if audit["n_patients"] else ""
    lines.append(
        f"  grouped so far: byte copies{known} ({audit['n_groups']} groups). Turned, shifted or "
        "recompressed copies are not found yet, so scores are too high"
    )
    return lines


def _list_counts(counts: Mapping[str, int]) -> str:
    shown = [f"{name} ({count})" for name, count in list(counts.items())[:3]]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {more} others" if more else "")
