"""Plan what prepare.py takes from a source: class, patient and path of every picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from helper import UserError
from preparation.folder_kinds import FolderKind, find_folder_kind, list_first
from preparation.layout import matches, read_source
from preparation.options import PrepareConfig
from preparation.pages import Unpacked, read_stated_facts, unpack_entries
from preparation.patients import FOLDERS, STATED
from preparation.sources import Source, count_suffixes
from preparation.targets import PlannedFile, plan_files


@dataclass(frozen=True)
class SourcePlan:
    """What is taken from a source, and what is not.

    Attributes:
        files: The pictures and their paths below the data folder.
        patients: Patient by path, where the names of the source tell it.
        patient_source: How the patients were found.
        splits: Published split by path, where folders name it.
        outlines: Outline of the tumour by path, where a file states it.
        left_out: Names of the images that are left out, by reason.
        notes: What to tell about it, as lines of text.
    """

    files: list[PlannedFile]
    patients: dict[str, str]
    patient_source: str
    splits: dict[str, str]
    outlines: dict[str, str]
    left_out: dict[str, list[str]]
    notes: list[str]


def plan_source(
    source: Source,
    where: Path,
    options: PrepareConfig,
    *,
    in_place: bool = False,
    one_class: bool = False,
) -> SourcePlan:
    """Decide what is taken from a source.

    Args:
        source: The files of the source.
        where: The source, for errors.
        options: What the user stated.
        in_place: The source is the Images folder of a data folder; its names stay as they are.
        one_class: Allow a single class.

    Raises:
        UserError: The classes are not clear, or a folder gave no picture.
    """
    names = [*(entry.name for entry in source.entries), *source.others]
    names += [f"{folder}/" for folder in source.folders]
    for pattern in options.exclude:
        if not any(matches(name, pattern) for name in names):
            raise UserError(f"{where}: --exclude {pattern} matches nothing in it")
    if not (in_place or options.allow_empty or options.class_names or options.labels):
        _check_empty_folders(source, where, options.exclude)
    volumes = options.volume_options
    facts = {} if in_place else read_stated_facts(source.entries, volumes)
    stated = {name: fact.label for name, fact in facts.items() if fact.label}
    layout = read_source(source.entries, where, options, stated, in_place=in_place)
    chosen = [entry for entry in source.entries if entry.name in layout.labels]
    unpacked = Unpacked(chosen) if in_place else unpack_entries(chosen, volumes)
    origin = {entry.name: entry.container or entry.name for entry in unpacked.entries}
    labels = {name: layout.labels[first] for name, first in origin.items()}
    patients, patient_source = layout.patients, layout.patient_source
    if facts and patient_source in {"", FOLDERS}:  # options of the user take precedence
        patients = patients | {name: fact.patient for name, fact in facts.items() if fact.patient}
        patient_source = STATED
    files = plan_files(*(unpacked.entries, labels, where), in_place=in_place, one_class=one_class)

    def list_by_target(found: dict[str, str]) -> dict[str, str]:
        by_target = {file.target: found.get(origin[file.entry.name], "") for file in files}
        return {target: value for target, value in by_target.items() if value}

    return SourcePlan(
        files,
        list_by_target(patients),
        patient_source,
        list_by_target(layout.splits),
        list_by_target({name: fact.outline for name, fact in facts.items()}),
        layout.left_out,
        layout.describe() + unpacked.describe(),
    )


def _check_empty_folders(source: Source, where: Path, exclude: Sequence[str]) -> None:
    """Refuse folders without a picture below them, which may be classes."""
    used = {folder for entry in source.entries for folder in PurePosixPath(entry.name).parents}
    empty = sorted({PurePosixPath(folder) for folder in source.folders} - used)
    empty = [folder for folder in empty if not _may_be_empty(folder, exclude)]
    outermost = [folder for folder in empty if not set(folder.parents) & set(empty)]
    if outermost:
        folder = outermost[0]
        inside = [name for name in source.others if folder in PurePosixPath(name).parents]
        content = count_suffixes(inside) or "empty"
        raise UserError(
            f"{where}: no picture in {list_first([str(each) for each in outermost])} ({folder}: "
            f"{content}); leave such folders out by --exclude NAME, or go on by --allow-empty"
        )


def _may_be_empty(folder: PurePosixPath, exclude: Sequence[str]) -> bool:
    """Return whether no class is lost if a folder holds no picture."""
    is_mask = any(find_folder_kind(part) is FolderKind.MASKS for part in folder.parts)
    return is_mask or any(matches(f"{folder}/x", pattern) for pattern in exclude)
