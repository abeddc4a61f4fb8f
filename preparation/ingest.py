"""Pictures on their way to the disk: read or rendered, compared with what is there, written."""

import dataclasses
import hashlib
import math
import multiprocessing
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from helper import UserError
from phantoms.generator import PhantomPlan, encode_phantom, render_phantom
from preparation.manifest import ImageFacts, load_manifest, manifest_path, measure_images
from preparation.sources import PlannedFile

UNREADABLE_SHARE = 0.05
PHANTOMS_A_WORKER = 16  # fewer are not worth starting another process


def measure_source(
    planned: Sequence[PlannedFile], where: Path, data_dir: Path
) -> tuple[dict[str, ImageFacts], list[PlannedFile]]:
    """Read a source once and write nothing.

    Returns:
        The facts of each picture by its target, and the files that the disk has not, or not whole.

    Raises:
        UserError: More than one picture and more than 5 % of them cannot be read, one is over the
            pixel limit, or the disk holds other content under its name.
    """
    missing: list[PlannedFile] = []

    def read_all() -> Iterator[tuple[str, bytes]]:
        for file in sorted(planned, key=lambda file: file.entry.place):
            content = file.entry.read()
            if needs_writing(data_dir / file.target, content):
                missing.append(file)
            yield file.target, content

    facts = measure_images(read_all(), len(planned))
    unreadable = sorted(name for name, fact in facts.items() if fact.note)
    if len(unreadable) > max(1, UNREADABLE_SHARE * len(planned)):
        raise UserError(
            f"{where}: {len(unreadable)} of {len(planned)} images cannot be read, more than "
            f"{UNREADABLE_SHARE:.0%} ({', '.join(unreadable[:3])}, ...); get a whole copy of it"
        )
    return facts, missing


def render_phantoms(
    plans: Mapping[str, PhantomPlan], data_dir: Path
) -> Iterator[tuple[str, bytes]]:
    """Render phantoms on all cores, write each that is missing, and hand on name and content."""
    n_workers = min(os.cpu_count() or 1, math.ceil(len(plans) / PHANTOMS_A_WORKER))
    with multiprocessing.get_context("spawn").Pool(n_workers) as pool:
        contents = pool.imap(_render, plans.values(), chunksize=4)
        for name, content in zip(plans, contents, strict=True):
            if needs_writing(data_dir / name, content):
                write_image(data_dir / name, content)
            yield name, content


def _render(plan: PhantomPlan) -> bytes:
    return encode_phantom(plan, render_phantom(plan)[0])


def describe_plans(plans: Mapping[str, PhantomPlan]) -> str:
    """The truth about phantoms as CSV: path, label, patient, slice, plane, sibling and the rest."""
    rows = [
        {"path": name, **dataclasses.asdict(plan), "sibling": plan.sibling}
        for name, plan in plans.items()
    ]
    return pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")


def is_complete(data_dir: Path, names: Collection[str]) -> bool:
    """Whether the manifest lists just `names`, and every file still has its sha256."""
    if not manifest_path(data_dir).is_file():
        return False
    listed = load_manifest(data_dir).set_index("path")["sha256"].to_dict()
    return set(listed) == set(names) and all(
        (data_dir / name).is_file()
        and hashlib.sha256((data_dir / name).read_bytes()).hexdigest() == digest
        for name, digest in listed.items()
    )


def needs_writing(target: Path, content: bytes) -> bool:
    """Whether a file is absent or a beginning of `content` that was cut short.

    Raises:
        UserError: The file holds something else.
    """
    if not target.exists():
        return True
    present = target.read_bytes() if target.is_file() else None
    if present == content:
        return False
    if present is not None and content.startswith(present):
        return True
    raise UserError(
        f"{target} exists with other content than the source's file of that name; nothing was "
        "changed: choose another --data, or move the file away"
    )


def write_image(target: Path, content: bytes) -> None:
    """Write one picture, complete or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(".part")
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
