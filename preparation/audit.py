"""Summarise a prepared data folder: audit.json, and the same as text."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from duplicates.clustering import STRONG_SCORE
from duplicates.finder import FINDER_VERSION
from helper import UserError
from imaging.bit_depth import Ranges
from preparation.manifest import ImageFacts, load_earlier_manifest
from preparation.patients import GIVEN
from preparation.sources import count_suffixes
from preparation.splits import SPLITS, TEST_SHARE

AUDIT_SCHEMA = 4
PUBLISHED_COUNTS = {"Glioma": 2004, "Menin": 2004, "Tumor": 2048}
PUBLISHED_SIZE = "512 x 512"
MAX_LISTED = 20  # files that are not images, label conflicts
USUAL_SHARE = 0.95  # if at least this share has one size or mode, the others are odd
BLANK_SPREAD = 1.0  # standard deviation of grey (of 255) below which an image is blank


def build_audit(
    frame: pd.DataFrame,
    facts: Mapping[str, ImageFacts],
    source: str,
    seed: int,
    *,
    others: Sequence[str] = (),
    left_out: Mapping[str, Sequence[str]] | None = None,
    n_not_in_source: int = 0,
    links: pd.DataFrame | None = None,
    ranges: Ranges | None = None,
    shortcut: Mapping[str, float] | None = None,
    patient_sources: Mapping[str, int] | None = None,
    published_split: Mapping[str, Any] | None = None,
    evaluation_only: bool = False,
) -> dict[str, Any]:
    """Return the content of audit.json; the same data give the same audit.

    Args:
        frame: The manifest.
        facts: `ImageFacts` of each path in it.
        source: Name of the archive or folder.
        seed: Seed of the split.
        others: Files of the source that are not images.
        left_out: Images of the source that are left out, by reason.
        n_not_in_source: Images of the folder that the source lacks.
        links: `Duplicates.to_frame` with paths; None without a search for duplicates.
        ranges: Values that are black and white in files without a declared bit depth.
        shortcut: Accuracies of the brightness and majority-class baselines.
        patient_sources: Number of images by the source of their patient.
        published_split: The published split of the source, from `measure_leak`.
        evaluation_only: Nothing may be trained on these data.
    """
    readable = frame[frame["mean"].notna()]
    unreadable = frame[frame["mean"].isna()]
    counts = {str(label): int(n) for label, n in frame["label"].value_counts().sort_index().items()}
    wrapped = [path for path in readable["path"] if facts[path].is_wrapped]
    binary = [path for path in readable["path"] if facts[path].is_binary]
    modes = readable["path"].map(lambda path: facts[path].mode)
    sizes = readable["width"].astype(str) + " x " + readable["height"].astype(str)
    n_images = pd.crosstab(readable["label"], readable["split"])
    return {
        "schema": AUDIT_SCHEMA,
        "phantom": False,
        "evaluation_only": evaluation_only,
        "source": source,
        "seed": seed,
        "n_images": len(frame),
        "classes": counts,
        "sizes": _count(sizes),
        "modes": _count(modes),
        "value_ranges": dict(ranges or {}),
        "undeclared_depth": sum(bool(fact.extremes) for fact in facts.values()),
        "by_class": {
            label: {
                "sizes": _count(sizes[readable["label"] == label]),
                "modes": _count(modes[readable["label"] == label]),
                "brightness": _describe_brightness(readable["mean"][readable["label"] == label]),
            }
            for label in counts
        },
        "byte_duplicates": _count_byte_duplicates(frame),
        "n_duplicate_sets": int(readable["duplicate_set"].nunique()),
        "n_groups": int(frame["group"].nunique()),
        "n_patients": frame["patient"][frame["patient"] != ""].nunique(),
        "patients": {
            "n_images": int((frame["patient"] != "").sum()),
            "sources": dict(patient_sources or {}),
            "linked": [] if links is None else _list_linked_patients(readable, links),
        },
        "duplicates": None if links is None else _describe_duplicates(readable, links),
        "leak": None if evaluation_only else _compute_leak(readable),
        "shortcut": dict(shortcut) if shortcut else None,
        "splits": {
            split: {str(label): int(n_images.get(split, {}).get(label, 0)) for label in counts}
            for split in SPLITS
        },
        "published_split": dict(published_split) if published_split else None,
        "unreadable": dict(zip(unreadable["path"], unreadable["note"], strict=True)),
        "odd": _list_odd(readable, facts, sizes, modes),
        "wrapped": {"count": len(wrapped), "first": wrapped[:MAX_LISTED]},
        "binary": {"count": len(binary), "first": binary[:MAX_LISTED]},
        "not_in_source": n_not_in_source,
        "ignored_files": {
            "count": len(others),
            "suffixes": count_suffixes(others),
            "first": list(others[:MAX_LISTED]),
        },
        "left_out": {
            reason: {"count": len(names), "first": list(names[:MAX_LISTED])}
            for reason, names in (left_out or {}).items()
        },
        "publisher": _compare_published(counts, _count(sizes)),
    }


def _count(values: "pd.Series[str]") -> dict[str, int]:
    return dict(Counter(values).most_common())


def _describe_brightness(means: "pd.Series[float]") -> dict[str, float] | None:
    """Return mean and quartiles of a class's mean grey values, 0 to 255."""
    if means.empty:
        return None
    lower, median, upper = means.quantile([0.25, 0.5, 0.75]).round(3).tolist()
    mean = round(float(means.mean()), 3)
    return {"mean": mean, "lower_quartile": lower, "median": median, "upper_quartile": upper}


def _count_byte_duplicates(frame: pd.DataFrame) -> dict[str, int]:
    by_content = frame.groupby("sha256")["label"].agg(["size", "nunique"])
    return {
        "files": len(frame) - len(by_content),
        "sets": int((by_content["size"] > 1).sum()),
        "sets_across_classes": int((by_content["nunique"] > 1).sum()),
    }


def _describe_duplicates(readable: pd.DataFrame, links: pd.DataFrame) -> dict[str, Any]:
    """Return counts of duplicates and related images, and links between two classes."""
    first, second = (
        readable.set_index("path").loc[links[end]].reset_index() for end in ("first", "second")
    )
    is_across, is_cut = (first[name] != second[name] for name in ("label", "group"))
    return {
        "finder": FINDER_VERSION,
        "images_with_a_duplicate": int(readable["duplicate_set"].duplicated(keep=False).sum()),
        "images_with_a_related_image": int(readable["group"].duplicated(keep=False).sum()),
        "largest_duplicate_set": int(readable["duplicate_set"].value_counts().max()),
        "largest_group": int(readable["group"].value_counts().max()),
        "links": {
            kind: {
                "count": int((links["kind"] == kind).sum()),
                "across_classes": int((is_across & (links["kind"] == kind)).sum()),
            }
            for kind in ("duplicate", "related")
        },
        "cut_links": {  # weak links between two groups
            "count": int(is_cut.sum()),
            "highest_score": int(links["score"][is_cut].max()) if is_cut.any() else None,
            "across_splits": int((is_cut & (first["split"] != second["split"])).sum()),
        },
        "conflicts": _list_conflicts(readable, links[is_across]),
    }


def _list_conflicts(readable: pd.DataFrame, across: pd.DataFrame) -> list[dict[str, Any]]:
    """Return linked pairs of two classes: identical files first, then by score, highest first."""
    conflicts: list[dict[str, Any]] = []
    for _, files in readable.groupby("sha256"):
        if files["label"].nunique() > 1:
            first, second = files.drop_duplicates("label")["path"].iloc[:2]
            conflicts.append({"first": first, "second": second, "score": None, "kind": "byte"})
    conflicts += across[["first", "second", "score", "kind"]].to_dict("records")
    return conflicts[:MAX_LISTED]


def _list_linked_patients(readable: pd.DataFrame, links: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the best strong link between each two known patients, highest score first."""
    strong = links[links["score"] >= STRONG_SCORE]
    patients = readable.set_index("path")["patient"]
    ends = (strong[end].map(patients) for end in ("first", "second"))
    pairs = pd.Series([tuple(sorted(pair)) for pair in zip(*ends, strict=True)], strong.index)
    is_across = pairs.map(lambda pair: pair[0] not in {"", pair[1]}).astype(bool)
    best = strong.assign(patients=pairs)[is_across].drop_duplicates("patients")
    return best[["patients", "first", "second", "score"]].to_dict("records")


def _compute_leak(readable: pd.DataFrame) -> dict[str, float] | None:
    """Return the share of a random test split with a duplicate, or a related image, outside it.

    This is the expectation over all random splits. If one image of a set of m is in test, all the
    others are, too, with a probability of prod((n_test - d) / (n_images - d)), d = 1 to m - 1.
    """
    n_images = len(readable)
    n_test = round(TEST_SHARE * n_images)
    if n_test < 1:
        return None
    expected = {}
    for kind, column in (("duplicate", "duplicate_set"), ("related", "group")):
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
    """Return blank images, and those that differ from nearly all others in size or mode."""
    odd: dict[str, str] = {}
    for name, values in (("size", sizes), ("mode", modes)):
        if values.empty or (shares := values.value_counts(normalize=True)).iloc[0] < USUAL_SHARE:
            continue
        for row, value in values[values != shares.index[0]].items():
            odd[readable["path"][row]] = f"{name} {value}"
    for path in readable["path"]:
        thumbnail = facts[path].thumbnail
        if thumbnail is not None and thumbnail.read().std() < BLANK_SPREAD:
            odd[path] = "blank"
    return odd


def _compare_published(counts: dict[str, int], sizes: dict[str, int]) -> dict[str, Any] | None:
    """Return the publisher's counts and whether they hold here; None for other classes."""
    if set(counts) != set(PUBLISHED_COUNTS):
        return None
    return {
        "classes": PUBLISHED_COUNTS,
        "size": PUBLISHED_SIZE,
        "agrees": counts == PUBLISHED_COUNTS and set(sizes) == {PUBLISHED_SIZE},
    }


def read_audit(data_dir: Path) -> dict[str, Any]:
    """Return the audit of a data folder; {} if it is missing or of another schema."""
    try:
        audit = json.loads((data_dir / "CSV" / "audit.json").read_text("utf-8"))
        return audit if audit["schema"] == AUDIT_SCHEMA else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def check_version(data_dir: Path) -> None:
    """Check that a folder with an audit was prepared by this version.

    The audit holds the scale of values without a declared bit depth; without it, each slice would
    be scaled by its own maximum.

    Raises:
        UserError: The audit is damaged or of another schema.
    """
    path = data_dir / "CSV" / "audit.json"
    if path.is_file() and not read_audit(data_dir):
        raise UserError(
            f"{path} is damaged or of another version of prepare.py; run prepare.py again on the "
            "source of this folder"
        )


def choose_purpose(data_dir: Path, evaluation_only: bool) -> bool:
    """Return whether a data folder is for evaluation only: all images of its manifest are in test.

    Raises:
        UserError: It was prepared for training, and `evaluation_only` is given now.
    """
    splits = set(read_splits(data_dir).values())
    if evaluation_only and splits - {"test"}:
        raise UserError(
            f"{data_dir} was prepared for training, and --evaluation-only would put all of its "
            "images into the test split; choose another --data"
        )
    return evaluation_only or splits == {"test"}


def has_given_patients(data_dir: Path) -> bool:
    """Return whether --patients or --against told patients of the earlier manifest."""
    return GIVEN in read_audit(data_dir).get("patients", {}).get("sources", {})


def read_splits(data_dir: Path) -> dict[str, str]:
    """Return the splits of the earlier manifest by sha256; {} without a valid one."""
    frame = load_earlier_manifest(data_dir)
    if frame is None:
        return {}
    assigned = frame[frame["split"] != ""]
    return dict(zip(assigned["sha256"], assigned["split"], strict=True))


def keeps_splits(audit: Mapping[str, Any], seed: int) -> bool:
    """Return whether earlier splits are kept: if seed and duplicate-search version are the same."""
    finder = (audit.get("duplicates") or {}).get("finder")
    return audit.get("seed") == seed and finder == FINDER_VERSION


def keeps_scale(audit: Mapping[str, Any], ranges: Ranges) -> bool:
    """Return whether files of an earlier audit without a declared bit depth keep their scale."""
    earlier = audit.get("value_ranges", {}) if audit else dict.fromkeys(ranges)
    return all(ranges.get(kind, ends) == ends for kind, ends in earlier.items())
