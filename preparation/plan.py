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

# pictures and volumes in formats that are not read
_OTHER_PICTURES = (
    *(".avif", ".heic", ".heif", ".npy", ".npz", ".svg", ".psd", ".mha", ".mhd", ".nrrd", ".mgz"),
    *(".img", ".hdr", ".pdf", ".xcf", ".jxl", ".exr"),
)


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
    empty = [] if in_place else _find_empty_folders(source, options.exclude)
    if empty and not (options.allow_empty or options.class_names or options.labels):
        raise _refuse_empty(source, where, empty[0], empty)
    volumes = options.volume_options
    facts = {} if in_place else read_stated_facts(source.entries, volumes)
    stated = {name: fact.label for name, fact in facts.items() if fact.label}
    layout = read_source(source.entries, where, options, stated, in_place=in_place)
    chosen = [entry for entry in source.entries if entry.name in layout.labels]
    unpacked = Unpacked(chosen) if in_place else unpack_entries(chosen, volumes)
    patients, patient_source = layout.patients, layout.patient_source
    known = {name: fact.patient for name, fact in facts.items() if fact.patient}
    if known and patient_source in {"", FOLDERS}:  # options of the user take precedence
        patients, patient_source = patients | known, STATED
    files = plan_files(
        *(unpacked.entries, layout.labels, where), in_place=in_place, one_class=one_class
    )
    notes = layout.describe() + unpacked.describe()
    if empty:
        notes.append(f"no picture in {list_first(empty)}: left out")

    def list_by_target(found: dict[str, str]) -> dict[str, str]:
        by_target = {file.target: found.get(file.entry.origin, "") for file in files}
        return {target: value for target, value in by_target.items() if value}

    return SourcePlan(
        files,
        list_by_target(patients),
        patient_source,
        list_by_target(layout.splits),
        list_by_target({name: fact.outline for name, fact in facts.items()}),
        layout.left_out,
        notes,
    )


def _find_empty_folders(source: Source, exclude: Sequence[str]) -> list[str]:
    """Return the outermost folders without a picture below them, which may be classes."""
    used = {folder for entry in source.entries for folder in PurePosixPath(entry.name).parents}
    empty = sorted({PurePosixPath(folder) for folder in source.folders} - used)
    empty = [folder for folder in empty if not _may_be_empty(folder, exclude)]
    return [str(folder) for folder in empty if not set(folder.parents) & set(empty)]


def _refuse_empty(source: Source, where: Path, folder: str, empty: Sequence[str]) -> UserError:
    inside = [
        name for name in source.others if PurePosixPath(folder) in PurePosixPath(name).parents
    ]
    content = count_suffixes(inside) or "empty"
    can_be_converted = any(name.lower().endswith(_OTHER_PICTURES) for name in inside)
    remedy = "convert them to PNG, leave" if can_be_converted else "leave"
    return UserError(
        f"{where}: no picture in {list_first(empty)} ({folder}: {content}); {remedy} such folders "
        "out by --exclude NAME, or go on by --allow-empty"
    )


def _may_be_empty(folder: PurePosixPath, exclude: Sequence[str]) -> bool:
    """Return whether no class is lost if a folder holds no picture."""
    is_mask = any(find_folder_kind(part) is FolderKind.MASKS for part in folder.parts)
    return is_mask or any(matches(f"{folder}/x", pattern) for pattern in exclude)
