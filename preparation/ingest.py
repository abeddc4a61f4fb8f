"""Read images of a source or render phantoms; write those missing in the data folder."""

import dataclasses
import math
import multiprocessing
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from helper import UserError
from imaging.bit_depth import find_ranges, merge_extremes
from phantoms.generator import PhantomPlan, encode_phantom, plan_phantoms, render_phantom
from preparation.integrity import find_changes
from preparation.manifest import ImageFacts, build_manifest, load_earlier_manifest, measure_images
from preparation.targets import PlannedFile

UNREADABLE_SHARE = 0.05
MAX_REASONS = 3
PHANTOMS_A_WORKER = 16  # starting another process is not worth it for fewer
MAX_WORKERS = 60  # Windows waits for 63 handles at most, of which a pool needs two more


def measure_source(
    planned: Sequence[PlannedFile], where: Path, data_dir: Path, *, allow_empty: bool = False
) -> tuple[dict[str, ImageFacts], list[PlannedFile]]:
    """Read a source once without writing.

    Returns:
        The facts of each image by its target, and the files that are missing or incomplete on disk.

    Raises:
        UserError: More than one image and more than 5 % of all, or all of a class, cannot be read;
            one is over the pixel limit; a file of that name with different content exists.
    """
    missing: list[PlannedFile] = []

    def read_all() -> Iterator[tuple[str, bytes]]:
        for file in sorted(planned, key=lambda file: file.entry.place):
            content = file.entry.read()
            if needs_writing(data_dir / file.target, content):
                missing.append(file)
            yield file.target, content

    facts = measure_images(read_all(), len(planned))
    _check_unreadable(facts, planned, where, allow_empty)
    return facts, missing


def _check_unreadable(
    facts: Mapping[str, ImageFacts],
    planned: Sequence[PlannedFile],
    where: Path,
    allow_empty: bool,
) -> None:
    """Refuse a source of which a whole class, or more than 5 %, cannot be read."""
    notes = {name: fact.note.removeprefix("unreadable: ") for name, fact in facts.items()}
    unreadable = {name: note for name, note in notes.items() if note}
    for label in sorted({file.label for file in planned}):
        names = [file.target for file in planned if file.label == label]
        if not allow_empty and all(name in unreadable for name in names):
            raise UserError(
                f"{where}: no image of class {label} can be read: "
                f"{_count_reasons({name: unreadable[name] for name in names})}; leave the class "
                "out by --exclude, or go on by --allow-empty"
            )
    if len(unreadable) > max(1, UNREADABLE_SHARE * len(planned)):
        raise UserError(
            f"{where}: {len(unreadable)} of {len(planned)} images cannot be read, more than "
            f"{UNREADABLE_SHARE:.0%}: {_count_reasons(unreadable)}; {_advise(unreadable.values())}"
        )


def _count_reasons(unreadable: Mapping[str, str]) -> str:
    """Count the reasons, the commonest first, with an example of each."""
    examples = {reason: name for name, reason in reversed(list(unreadable.items()))}
    counts = Counter(unreadable.values()).most_common(MAX_REASONS)
    return ", ".join(f"{count} {reason} (e.g. {examples[reason]})" for reason, count in counts)


def _advise(reasons: Iterable[str]) -> str:
    """Return what to do about the commonest reason."""
    reason = Counter(reasons).most_common(1)[0][0]
    if reason.startswith(("truncated", "damaged", "empty")):
        return "download or copy them again, or leave them out by --exclude"
    return "convert them, or leave them out by --exclude"


def rescale(
    facts: Mapping[str, ImageFacts], planned: Sequence[PlannedFile], data_dir: Path
) -> tuple[dict[str, ImageFacts], dict[str, list[float]]]:
    """Measure all files without a declared bit depth again, on one scale for the data set.

    Args:
        facts: Of all files, each without a declared bit depth on its own scale.
        planned: Files of the source; others are read from the data folder.
        data_dir: Data folder.

    Returns:
        The facts of all files, and the ranges of values that they are scaled by.
    """
    ranges = find_ranges(merge_extremes(fact.extremes for fact in facts.values()))
    names = [name for name, fact in facts.items() if fact.extremes]
    entries = {file.target: file.entry for file in planned}
    contents = (
        (name, entries[name].read() if name in entries else (data_dir / name).read_bytes())
        for name in names
    )
    return {**facts, **measure_images(contents, len(names), "scaling", ranges)}, ranges


def plan_phantom_files(n_images: int, seed: int) -> dict[str, PhantomPlan]:
    """Plan phantoms (`plan_phantoms`) by their path below the data folder."""
    return {f"Images/{plan.label}/{plan.name}": plan for plan in plan_phantoms(n_images, seed)}


def ingest_phantoms(
    plans: Mapping[str, PhantomPlan], data_dir: Path, seed: int
) -> tuple[pd.DataFrame, dict[str, ImageFacts]]:
    """Write the missing phantoms; return the manifest with their true ids, and their facts."""
    ids = {
        name: (f"p{plan.patient:06d}", f"d{plan.duplicate_set:06d}", f"g{plan.patient:06d}")
        for name, plan in plans.items()
    }
    facts = measure_images(_render_phantoms(plans, data_dir), len(plans), "phantoms")
    return build_manifest(data_dir, seed, facts, true_ids=ids), facts


def _render_phantoms(
    plans: Mapping[str, PhantomPlan], data_dir: Path
) -> Iterator[tuple[str, bytes]]:
    """Render phantoms on all cores, write the missing ones, and yield name and content of each."""
    n_workers = min(os.cpu_count() or 1, MAX_WORKERS, math.ceil(len(plans) / PHANTOMS_A_WORKER))
    with multiprocessing.get_context("spawn").Pool(n_workers) as pool:
        contents = pool.imap(_render, plans.values(), chunksize=4)
        for name, content in zip(plans, contents, strict=True):
            if needs_writing(data_dir / name, content):
                write_image(data_dir / name, content)
            yield name, content


def _render(plan: PhantomPlan) -> bytes:
    return encode_phantom(plan, render_phantom(plan)[0])


def describe_plans(plans: Mapping[str, PhantomPlan]) -> str:
    """Return the true properties of phantoms as CSV, one row for each path."""
    rows = [{"path": name, **dataclasses.asdict(plan)} for name, plan in plans.items()]
    return pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")


def is_complete(data_dir: Path, names: Collection[str]) -> bool:
    """Return whether the manifest lists exactly `names`, and every file has its sha256."""
    listed = load_earlier_manifest(data_dir)
    if listed is None or set(listed["path"]) != set(names):
        return False
    return not len(find_changes(data_dir, listed))


def needs_writing(target: Path, content: bytes) -> bool:
    """Return whether a file is missing or incomplete; different content is a UserError."""
    if not target.exists():
        return True
    present = target.read_bytes() if target.is_file() else None
    if present is None or not content.startswith(present):
        raise UserError(
            f"{target} exists and differs from the file of that name in the source; nothing was "
            "changed: choose another --data, or move the file away"
        )
    return present != content


def write_image(target: Path, content: bytes) -> None:
    """Write one image atomically."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(".part")
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
