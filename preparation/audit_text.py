"""Describe the audit of a prepared data folder as lines of text."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from imaging.bit_depth import Ranges
from preparation.patients import PUBLISHED
from preparation.published_split import describe_split
from preparation.splits import SPLITS


def describe_moved(frame: pd.DataFrame, earlier: Mapping[str, str]) -> list[str]:
    """Return lines on the images whose split differs from the earlier one, and why."""
    old = frame["sha256"].map(earlier)
    moved = frame[old.notna() & (old != frame["split"]) & (frame["split"] != "")]
    if moved.empty:
        return []
    if (moved["split"] == "train").all():
        counts = old[moved.index].value_counts()
        parts = ", ".join(f"{count} of {split}" for split, count in counts.items())
        what = (
            f"new images or patients connect groups of different splits: {len(moved)} images "
            f"({parts}) are now in train, such as {moved['path'].iloc[0]}"
        )
    else:
        what = (
            "the data were split again (another seed or duplicate search, or new images or "
            f"patients connect too many groups of different splits): {len(moved)} of {len(frame)} "
            "images changed their split"
        )
    return [what, "test images of earlier runs may now have duplicates in training: train again"]


def describe_audit(audit: Mapping[str, Any]) -> list[str]:
    """Return the audit as lines of text."""
    lines = _describe_classes(audit)
    sizes, modes = (_list_counts(audit[name]) for name in ("sizes", "modes"))
    lines.append(f"  sizes: {sizes}; stored as {modes}")
    if count := audit["undeclared_depth"]:
        lines.append(
            f"  {count} files declare no bit depth; one scale for all, black to white: "
            f"{_describe_ranges(audit['value_ranges'])}"
        )
    if published := audit.get("publisher"):
        stated = " / ".join(f"{count:,}" for count in published["classes"].values())
        here = " / ".join(f"{audit['classes'][label]:,}" for label in published["classes"])
        result = "as here" if published["agrees"] else f"here {here}"
        lines.append(f"  the publisher states {stated} images, all {published['size']}: {result}")
    if audit["phantom"]:
        lines.append(f"  {audit['n_groups']} generated patients; no patient is in two splits")
    else:
        lines += _describe_related(audit)
    published_split = audit.get("published_split")
    if published_split and not audit["evaluation_only"]:
        lines += [f"  {line}" for line in describe_split(published_split)]
    if audit.get("evaluation_only"):
        lines.append("  for evaluation only: all images are in the test split")
    if shortcut := audit["shortcut"]:
        lines.append(
            f"  brightness baseline, without anatomy: accuracy {shortcut['brightness']:.0%} "
            f"(majority class: {shortcut['majority']:.0%})"
        )
    lines += [f"  not readable: {path} ({note})" for path, note in audit["unreadable"].items()]
    if odd := audit["odd"]:
        first = ", ".join(f"{path} ({reason})" for path, reason in list(odd.items())[:3])
        lines.append(f"  odd: {len(odd)} images, such as {first}; all are in audit.json")
    if count := audit["wrapped"]["count"]:
        lines.append(
            f"  wrapped intensities: {count} images, such as {audit['wrapped']['first'][0]}, look "
            "like values of more bits modulo 256 (white areas become black in steps); convert "
            "their originals again, scaled instead of cut to 8 bits"
        )
    if count := audit["binary"]["count"]:
        lines.append(
            f"  {count} images, such as {audit['binary']['first'][0]}, have two grey values alone; "
            "if they are masks, prepare another --data with --exclude"
        )
    if audit["not_in_source"]:
        lines.append(
            f"  {audit['not_in_source']} images of the folder are not in this source, but from an "
            "earlier run; kept (for this source alone, give another --data)"
        )
    if count := audit["ignored_files"]["count"]:
        kinds = audit["ignored_files"]["suffixes"]
        lines.append(f"  {count} files are not images and were passed over: {kinds}")
    return lines


def _describe_classes(audit: Mapping[str, Any]) -> list[str]:
    """Return a table of images and brightness by class."""
    rows = [("class", "images", *SPLITS, "mean grey")]
    for label, count in audit["classes"].items():
        grey = audit["by_class"][label]["brightness"]
        counts = (audit["splits"][split][label] for split in SPLITS)
        rows.append((label, count, *counts, f"{grey['mean']:.1f}" if grey else "–"))
    width = max(5, *(len(label) for label in audit["classes"]))
    return [
        f"  {label:<{width}} {count:>7} {train:>6} {val:>6} {test:>6} {grey:>10}"
        for label, count, train, val, test, grey in rows
    ]


def _describe_related(audit: Mapping[str, Any]) -> list[str]:
    """Return lines on byte duplicates, duplicate sets, groups, leak and label conflicts."""
    identical, duplicates, leak = audit["byte_duplicates"], audit["duplicates"], audit["leak"]
    lines = [f"  {identical['files']} files repeat others byte for byte ({identical['sets']} sets)"]
    if across := identical["sets_across_classes"]:
        lines.append(f"  {across} of these sets are in more than one class: check their labels")
    if duplicates is None:
        return lines
    n_readable = audit["n_images"] - len(audit["unreadable"])
    is_kept = (audit.get("published_split") or {}).get("kept")
    disjoint = "" if is_kept else "; no group is in two splits"
    known = "patients, " if audit["n_patients"] else ""
    lines += _describe_patients(audit)
    lines += [
        f"  duplicates: {n_readable} files show {audit['n_duplicate_sets']} distinct slices; "
        f"{duplicates['images_with_a_duplicate']} files have a duplicate",
        f"  groups: {audit['n_groups']} ({known}duplicates and probable neighbours), the largest "
        f"of {duplicates['largest_group']} images{disjoint}",
    ]
    if count := duplicates["cut_links"]["count"]:
        lines.append(
            f"  {count} weak links between two groups were not used, "
            f"{duplicates['cut_links']['across_splits']} of them between two splits"
        )
    if leak:
        lines.append(
            f"  of a random test split, {leak['duplicate']:.0%} of the images would have a "
            f"duplicate in the rest, and {leak['related']:.0%} another image of their group"
        )
    for kind, links in duplicates["links"].items():
        if across := links["across_classes"]:
            lines.append(
                f"  {across} of {links['count']} {kind} links connect two classes: label conflicts "
                "or false matches"
            )
    for conflict in duplicates["conflicts"][:3]:
        how = f"score {conflict['score']}" if conflict["score"] else "identical bytes"
        lines.append(f"    {conflict['first']} and {conflict['second']} ({how})")
    return lines


def _describe_patients(audit: Mapping[str, Any]) -> list[str]:
    """Return lines on how many patients are known, from where, and which ones are linked."""
    patients, n_images = audit["patients"], audit["n_images"]
    if not audit["n_patients"]:
        return [
            "  patients: unknown. Groups found in pictures are not patients: the accuracy on new "
            "patients is probably lower; give --patients FILE if they are known"
        ]
    n_known = patients["n_images"]
    of_images = f"all {n_images}" if n_known == n_images else f"{n_known} of {n_images}"
    sources = ", ".join(
        name if count == n_known else f"{name} ({count})"
        for name, count in patients["sources"].items()
    )
    lines = [f"  patients: {audit['n_patients']}, known for {of_images} images by {sources}"]
    if n_published := patients["sources"].get(PUBLISHED):
        lines.append(
            f"  {n_published} images are files of the published data set, by their SHA-256: copies "
            "of slices of Cheng et al., whose patients are known (docs/duplicates.md)"
        )
    if linked := patients["linked"]:
        lines.append(
            f"  {len(linked)} pairs of patients have a strong link, such as "
            f"{' and '.join(linked[0]['patients'])} (score {linked[0]['score']}): one person under "
            "two names, a duplicate or a resemblance; they share a group (listed in audit.json)"
        )
    return lines


def _list_counts(counts: Mapping[str, int]) -> str:
    first = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:3])
    n_more = len(counts) - 3
    return f"{first} and {n_more} more kinds" if n_more > 0 else first


def describe_rescaled(earlier: Mapping[str, Any], audit: Mapping[str, Any]) -> str:
    """Return a line on a changed scale of the files without a declared bit depth."""
    before, after = (_describe_ranges(each["value_ranges"]) for each in (earlier, audit))
    return (
        f"files without a declared bit depth are now scaled by {after}, before by {before}: their "
        "grey values have changed; earlier runs keep their own scale, train again for the new one"
    )


def _describe_ranges(ranges: Ranges) -> str:
    parts = (f"{low:g} to {high:g} ({kind})" for kind, (low, high) in ranges.items())
    return ", ".join(parts) or "none"
