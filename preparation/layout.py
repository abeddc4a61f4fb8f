"""Read from the folders of a source which class, patient and published split each image has.

The decision uses names alone. Where two readings of a tree are possible, it is refused, and the
error shows both.
"""

import fnmatch
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from helper import UserError
from preparation.class_folders import Parts, Reading, find_classes
from preparation.folder_kinds import (
    FEW_FOLDERS,
    FolderKind,
    are_identifiers,
    are_patients,
    find_folder_kind,
    find_split,
    is_global_identifier,
    is_part_of_data,
    list_first,
)
from preparation.label_table import LabelTable, read_label_table
from preparation.masks import find_masks
from preparation.options import LayoutConfig
from preparation.patients import FOLDERS
from preparation.sources import Entry
from preparation.targets import fold_name


@dataclass(frozen=True)
class Layout:
    """What the names of a source say about its images.

    Attributes:
        labels: Class by image; images that are left out are absent.
        patients: Patient by image, where folders or names tell it.
        patient_source: How the patients were found, for the audit.
        splits: train, val or test by image, where folders of a published split tell it.
        left_out: Names of the images that are left out, by reason.
        notes: How the tree was read, as lines of text.
    """

    labels: dict[str, str]
    patients: dict[str, str] = field(default_factory=dict)
    patient_source: str = ""
    splits: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def describe(self) -> list[str]:
        """Return how the tree was read, and a line for each reason why images are left out."""
        return self.notes + [
            f"{len(names)} images left out: {reason} (e.g. {names[0]})"
            for reason, names in self.left_out.items()
        ]


def read_source(
    entries: Sequence[Entry],
    where: Path,
    options: LayoutConfig,
    stated: Mapping[str, str],
    *,
    in_place: bool = False,
) -> Layout:
    """Read the layout of a source; see `read_layout`. In place, the class is the parent folder."""
    names = [entry.name for entry in entries]
    if in_place:
        return Layout({name: PurePosixPath(name).parent.name for name in names})
    masks = set(find_masks(entries))
    if len(masks) == len(names):
        masks = set()
    table = read_label_table(options.labels) if options.labels else None
    pictures = [name for name in names if name not in masks]
    layout = read_layout(pictures, where, options, table, stated)
    if masks:
        layout.left_out["masks of tumours, by their names"] = sorted(masks)
    return layout


def read_layout(
    names: Sequence[str],
    where: Path,
    options: LayoutConfig | None = None,
    table: LabelTable | None = None,
    stated: Mapping[str, str] | None = None,
) -> Layout:
    """Decide which folder of each image is its class, and which one its patient.

    Folders of a published split (Training, test), of sequences and planes (T1, axial) and of
    pictures beside masks (images) are no classes. Folders that are numbered, or more than a data
    set has classes, are patients if others remain. Everything in a folder of masks is left out.

    Args:
        names: Paths of the images inside the source, in POSIX form.
        where: The source, for errors.
        options: What the user stated; it takes precedence.
        table: The table of `--labels`.
        stated: Classes that files state themselves; other files need a folder.

    Raises:
        UserError: No folder can be the class, several can, or an option fits no image.
    """
    options = options or LayoutConfig()
    left_out: dict[str, list[str]] = {}
    kept = _exclude(list(names), where, options.exclude, left_out)
    kept = _leave_out_masks(kept, left_out)
    parts = {name: PurePosixPath(name).parts[:-1] for name in kept}
    notes: list[str] = []
    place = None
    if table is not None:
        rows = table.match(list(parts))
        labels = {name: table.rows[key][0] for name, key in rows.items()}
        if others := [name for name in parts if name not in labels]:
            left_out[f"without a class in {table.path}"] = others
        notes.append(table.describe(len(set(table.rows) - set(rows.values()))))
    elif options.class_names:
        labels = _read_named_classes(parts, where, options.class_names, left_out)
        notes.append(f"class = the folder of --classes {','.join(options.class_names)}")
    elif options.class_level is not None:
        place = options.class_level - 1
        labels = _read_level(parts, place, where, "--class-level")
    else:
        own = {name: label for name, label in (stated or {}).items() if name in parts}
        in_folders = {name: folders for name, folders in parts.items() if name not in own}
        labels, place = find_classes(in_folders, where) if in_folders else ({}, None)
        labels |= own
        if own:
            notes.append(f"class = what {len(own)} MATLAB files state, e.g. {_show_first(own)}")
    folders_of, labels = labels, _rename(labels, where, options.class_map)
    parts = {name: parts[name] for name in labels}
    if place is not None:
        notes.append(_explain("class", parts, labels, place))
    patients, source, line = _find_patients(parts, folders_of, where, options)
    if table is not None:
        named = {name: patient for name in labels if (patient := table.rows[rows[name]][1])}
        patients, source, line = (named, "--labels", "") if named else (patients, source, line)
    splits = {
        name: split for name in parts if (split := _read_split(parts[name], folders_of[name]))
    }
    return Layout(labels, patients, source, splits, left_out, notes + ([line] if line else []))


# ---- what is left out


def _exclude(
    names: list[str], where: Path, patterns: Sequence[str], left_out: dict[str, list[str]]
) -> list[str]:
    """Leave out the images that match a pattern, or are in a folder that does."""
    for pattern in patterns:
        found = {name for name in names if matches(name, pattern)}
        if found:
            left_out[f"--exclude {pattern}"] = sorted(found)
        names = [name for name in names if name not in found]
    if not names:
        raise UserError(f"{where}: --exclude leaves no image")
    return names


def matches(name: str, pattern: str) -> bool:
    """Return whether a pattern of `--exclude` matches a path, one of its folders or its name."""
    path = PurePosixPath(name.casefold())
    pattern = pattern.replace("\\", "/").strip("/").casefold()
    candidates = [str(path), path.name, *map(str, path.parents), *path.parts[:-1]]
    return any(fnmatch.fnmatchcase(candidate, pattern) for candidate in candidates)


def _leave_out_masks(names: list[str], left_out: dict[str, list[str]]) -> list[str]:
    """Leave out what is in folders of masks, unless that is everything."""
    masks = [
        name
        for name in names
        if any(
            find_folder_kind(part) is FolderKind.MASKS for part in PurePosixPath(name).parts[:-1]
        )
    ]
    if not masks or len(masks) == len(names):
        return names
    left_out["in a folder of masks or labels"] = masks
    return [name for name in names if name not in set(masks)]


# ---- classes


def _read_named_classes(
    parts: Mapping[str, Parts], where: Path, classes: Sequence[str], left_out: dict[str, list[str]]
) -> dict[str, str]:
    """Return the innermost folder of each image that is a named class."""
    by_fold = {fold_name(label): label for label in classes}
    labels: dict[str, str] = {}
    for name, folders in parts.items():
        found = [by_fold[key] for part in reversed(folders) if (key := fold_name(part)) in by_fold]
        if found:
            labels[name] = found[0]
    if missing := [label for label in classes if label not in set(labels.values())]:
        folders_found = sorted({part for folders in parts.values() for part in folders})
        raise UserError(
            f"{where}: --classes {','.join(classes)}: no image is in a folder {missing[0]!r}; "
            f"folders: {list_first(folders_found, 10)}"
        )
    if others := [name for name in parts if name not in labels]:
        left_out[f"in no folder of --classes {','.join(classes)}"] = others
    return labels


def _read_level(parts: Mapping[str, Parts], place: int, where: Path, option: str) -> dict[str, str]:
    """Return the folder at one place of the path of each image."""
    for name, folders in parts.items():
        if len(folders) <= place:
            raise UserError(
                f"{where}: {option} {place + 1}: {name} is in {len(folders)} folders only; leave "
                "it out by --exclude, or choose another level"
            )
    return {name: folders[place] for name, folders in parts.items()}


def _rename(labels: Reading, where: Path, class_map: Sequence[str]) -> dict[str, str]:
    """Rename or merge classes by `old=new`."""
    new_names: dict[str, str] = {}
    classes = set(labels.values())
    for text in class_map:
        old, _, new = text.partition("=")
        alike = {label for label in classes if fold_name(label) == fold_name(old)}
        if not alike:
            raise UserError(
                f"{where}: --class-map {text}: no class {old!r}; classes: "
                f"{list_first(sorted(set(labels.values())), 10)}"
            )
        new_names |= dict.fromkeys({old} & alike or alike, new)
    return {name: new_names.get(label, label) for name, label in labels.items()}


# ---- patients and splits


def _find_patients(
    parts: Mapping[str, Parts], labels: Reading, where: Path, options: LayoutConfig
) -> tuple[dict[str, str], str, str]:
    """Return the patient of each image, how it was found, and a line that explains it.

    Args:
        parts: Folders of each image.
        labels: The folder of each image that is its class, or the class.
        where: The source, for errors.
        options: What the user stated.
    """
    if options.patient_from is not None:
        patients = _match_patients(parts, where, options.patient_from)
        name = next(iter(patients))
        line = f"patient = {options.patient_from} in the path, e.g. {name} -> {patients[name]}"
        return patients, "--patient-from", line
    if options.patient_level is not None:
        place = options.patient_level - 1
        patients = _read_level(parts, place, where, "--patient-level")
        return patients, "--patient-level", _explain("patient", parts, patients, place)
    by_depth: dict[int, set[str]] = defaultdict(set)
    spare = {
        name: [
            place
            for place, part in enumerate(folders)
            if find_folder_kind(part) is FolderKind.PLAIN and part != labels[name]
        ]
        for name, folders in parts.items()
    }
    for name, places in spare.items():
        for place in places:
            by_depth[place].add(parts[name][place])
    numbered = {
        place
        for place, folders in by_depth.items()
        if len(folders) > 1
        and (len(folders) > FEW_FOLDERS or are_identifiers(folders))
        and not all(map(is_part_of_data, folders))
    }
    if not numbered:
        return {}, "", ""
    sure = {place for place in numbered if are_patients(by_depth[place])}
    place = max(sure or numbered)  # sites and scanners are outside patients
    above = {each for each, folders in by_depth.items() if each <= place and len(folders) > 1}
    patients = {
        name: _name_patient(parts[name], [each for each in places if each in above], labels[name])
        for name, places in spare.items()
        if place in places
    }
    example = next(iter(patients))
    line = (
        f"patient = folder {place + 1} of {len(parts[example])}, e.g. {example} -> "
        f"{patients[example]} ({len(set(patients.values()))} patients)"
    )
    return patients, FOLDERS, line


def _name_patient(folders: Parts, places: Sequence[int], label: str) -> str:
    """Return a patient's name: a short number means another patient in each class and site."""
    name = folders[places[-1]]
    if is_global_identifier(name):
        return name
    return "/".join([label, *(folders[place] for place in places)])


def _match_patients(parts: Iterable[str], where: Path, pattern: str) -> dict[str, str]:
    """Return the first group, or the whole match, of a regular expression in each path."""
    patients: dict[str, str] = {}
    for name in parts:
        if found := re.search(pattern, name):
            patient = next((group for group in found.groups() if group), found[0])
            patients[name] = patient
    if not patients:
        example = next(iter(parts))
        raise UserError(f"{where}: --patient-from {pattern} matches no path, such as {example}")
    return patients


def _read_split(folders: Parts, label: str) -> str:
    """Return the published split that an image is in, "" if no folder names one."""
    found = [find_split(part) for part in folders if part != label]
    return next((split for split in found if split), "")


# ---- explanations


def _show_first(values: Reading) -> str:
    """Return such as `1.mat -> glioma`."""
    name, value = next(iter(values.items()))
    return f"{name} -> {value}"


def _explain(what: str, parts: Mapping[str, Parts], values: Reading, place: int) -> str:
    """Return such as `class = folder 1 of 2, e.g. yes/p1/a.png -> yes`."""
    name = next(iter(parts))
    return f"{what} = folder {place + 1} of {len(parts[name])}, e.g. {name} -> {values[name]}"
