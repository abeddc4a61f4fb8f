"""Choose the path of every image of a source below the data folder."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from common.portable_names import find_fault, make_portable
from helper import UserError
from preparation.sources import Entry

ALIASES = {"brain_glioma": "Glioma", "brain_menin": "Menin", "brain_tumor": "Tumor"}


@dataclass(frozen=True)
class PlannedFile:
    """An entry and its destination; `target` is relative to the data folder, in POSIX form."""

    entry: Entry
    label: str
    target: str


def plan_files(
    entries: Sequence[Entry],
    labels: Mapping[str, str],
    where: Path,
    *,
    in_place: bool = False,
    one_class: bool = False,
) -> list[PlannedFile]:
    """Choose class and file name of every image; the same entries give the same plan.

    The publisher's three folder names are replaced by ALIASES if the source has no other class.
    Characters that Windows does not allow in a file name become `_`. A name that is taken within
    its class, ignoring case, gets `_2`, `_3`, ...

    Args:
        entries: The images of the source.
        labels: Class by origin of the entry; entries without one are left out.
        where: The source, for errors.
        in_place: The source is the Images folder of a data folder; its names stay as they are.
        one_class: Allow a single class.

    Raises:
        UserError: Fewer than two classes, or classes whose names some file systems do not allow
            or distinguish.
    """
    entries = [entry for entry in entries if entry.origin in labels]
    classes = _check_classes(set(labels.values()), where, one_class)
    aliases = ALIASES if not in_place and classes <= set(ALIASES) else {}
    originals = {(labels[entry.origin], fold_name(entry.file_name)) for entry in entries}
    planned: list[PlannedFile] = []
    taken: set[tuple[str, str]] = set()
    for entry in entries:
        name, label = entry.file_name, labels[entry.origin]
        name = name if in_place else make_portable(name)
        plain, number = PurePosixPath(name), 1
        while (key := (label, fold_name(name))) in taken or (
            name != entry.file_name and key in originals
        ):
            number += 1
            name = f"{plain.stem}_{number}{plain.suffix}"
        taken.add(key)
        label = aliases.get(label, label)
        planned.append(PlannedFile(entry, label, f"Images/{label}/{name}"))
    return planned


def fold_name(name: str) -> str:
    """Normalise a name like a file system that ignores case and the encoding of accents."""
    folded = unicodedata.normalize("NFC", name).casefold()
    return unicodedata.normalize("NFC", folded)


def check_clashes(planned: Sequence[PlannedFile], present: Sequence[str], data_dir: Path) -> None:
    """Raise a UserError if a planned path and an existing one differ by case or accents alone."""

    def list_parts(paths: Iterable[str]) -> list[str]:
        return [part for path in paths for part in (str(PurePosixPath(path).parent), path)]

    by_fold = {fold_name(part): part for part in list_parts(present)}
    for part in list_parts(file.target for file in planned):
        existing = by_fold.get(fold_name(part), part)
        if existing != part:
            raise UserError(
                f"{data_dir / existing} exists, and {part} of the source is the same name on some "
                "systems; choose another --data, or write both names alike"
            )


def _check_classes(classes: set[str], where: Path, one_class: bool) -> set[str]:
    """Return the class names; refuse unsafe or indistinguishable ones, and a single class."""
    first: dict[str, str] = {}
    for label in sorted(classes):
        key = fold_name(label.strip())
        if first.setdefault(key, label) != label:
            raise UserError(
                f"{where}: class folders {first[key]!r} and {label!r} are one folder on some "
                f'systems; rename one, or merge them: --class-map "{label}={label.strip()}" '
                f'--class-map "{first[key]}={label.strip()}"'
            )
        if label[:1] in {"=", "+", "-", "@", ""} or "|" in label:
            raise UserError(
                f"{where}: class {label!r} is empty, starts like a spreadsheet formula or contains "
                "|, the separator of class lists; rename it, or give --class-map OLD=NEW"
            )
        if fault := find_fault(label):
            raise UserError(
                f"{where}: class {label!r} {fault}, which Windows does not allow; rename it, or "
                "give --class-map OLD=NEW"
            )
    if len(classes) < 2 and not one_class:
        raise UserError(
            f"{where}: one class only ({', '.join(classes)}); a classifier needs two or more "
            "class folders (for data that are only evaluated: --evaluation-only)"
        )
    return classes
