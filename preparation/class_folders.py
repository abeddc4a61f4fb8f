"""Find the folder of each image that is its class, by the names of all folders."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

from helper import UserError
from preparation.folder_kinds import (
    FEW_FOLDERS,
    MANY_FOLDERS,
    FolderKind,
    are_identifiers,
    are_patients,
    find_folder_kind,
    is_part_of_data,
    list_first,
)

_WAYS_OUT = (
    "say which folders are classes: --class-level N, --classes A,B or --labels FILE (leave others "
    "out by --exclude PATTERN)"
)

Parts = tuple[str, ...]
Reading = Mapping[str, str]  # class by image


def find_classes(parts: Mapping[str, Parts], where: Path) -> tuple[dict[str, str], int | None]:
    """Find the folder that is the class.

    Folders of a published split, of sequences and of pictures are none. Of the others, folders
    around everything are ignored; numbered ones, or more than a data set has classes, are patients.

    Args:
        parts: Folders of each image, outermost first.
        where: The source, for errors.

    Returns:
        The class by image, and the place of its folder; None if that differs between images.

    Raises:
        UserError: No folder can be the class, or several can; shows each reading.
    """
    places = {name: _list_candidates(folders) for name, folders in parts.items()}
    places = _dissolve_wrappers(parts, places)
    _check_candidates(parts, places, where)
    lengths = {len(found) for found in places.values()}
    if len(lengths) > 1 or len(_list_shapes(parts, places)) > 1:
        raise UserError(
            f"{where}: its folders are arranged in different ways: "
            f"{_count_folders(parts)}; {_WAYS_OUT}"
        )
    depth = lengths.pop()
    readings = [
        {name: parts[name][found[number]] for name, found in places.items()}
        for number in range(depth)
    ]
    chosen = _choose_reading(readings, where)
    labels = readings[chosen]
    found = {each[chosen] for each in places.values()}
    return labels, found.pop() if len(found) == 1 else None


def _list_candidates(folders: Parts) -> list[int]:
    """Return the places of the folders that may be classes or patients."""
    kinds = [find_folder_kind(part) for part in folders]
    if FolderKind.UNLABELLED in kinds:
        return []
    return [place for place, kind in enumerate(kinds) if kind is FolderKind.PLAIN]


def _dissolve_wrappers(
    parts: Mapping[str, Parts], places: Mapping[str, list[int]]
) -> dict[str, list[int]]:
    """Drop outer folders around everything, and those that repeat the folders beside them."""
    result = {name: list(found) for name, found in places.items()}
    while True:
        nested = {name: found for name, found in result.items() if len(found) > 1}
        outer = {parts[name][found[0]] for name, found in result.items() if found}
        alone = {parts[name][found[0]] for name, found in result.items() if len(found) == 1}
        inner: dict[str, set[str]] = defaultdict(set)
        for name, found in nested.items():
            inner[parts[name][found[0]]].add(parts[name][found[1]])
        wrappers = {
            folder
            for folder, names in inner.items()
            if folder not in alone and (len(outer) == 1 or names <= alone)
        }
        if not wrappers or (len(outer) == 1 and alone):
            return result
        for name, found in nested.items():
            if parts[name][found[0]] in wrappers:
                result[name] = found[1:]


def _check_candidates(
    parts: Mapping[str, Parts], places: Mapping[str, list[int]], where: Path
) -> None:
    """Refuse images that are in no folder that may be a class."""
    homeless = [name for name, found in places.items() if not found]
    if not homeless:
        return
    example = homeless[0]
    folders = sorted({"/".join(parts[name]) for name in homeless})
    if not any(parts[name] for name in homeless):
        what = f"{len(homeless)} images, such as {example}, are in no class folder"
    else:
        kinds = {find_folder_kind(part).value for name in homeless for part in parts[name]}
        kinds -= {FolderKind.PLAIN.value}
        what = (
            f"{len(homeless)} images are in no class folder, but in {list_first(folders)} "
            f"({' or '.join(sorted(kinds))})"
        )
    raise UserError(
        f"{where}: {what}; put every image into a folder with the name of its class, or {_WAYS_OUT}"
    )


def _list_shapes(
    parts: Mapping[str, Parts], places: Mapping[str, list[int]]
) -> set[tuple[FolderKind, ...]]:
    """Return the kinds of the folders from the first candidate of each image on."""
    return {
        tuple(find_folder_kind(part) for part in parts[name][found[0] :])
        for name, found in places.items()
    }


def _choose_reading(readings: list[dict[str, str]], where: Path) -> int:
    """Return the number of the reading whose folders are classes.

    Args:
        readings: The folder of each image at each level that may be the class, outermost first.
        where: The source, for errors.
    """
    names = [set(reading.values()) for reading in readings]
    if len(readings) == 1:
        numbered = are_identifiers(names[0]) and len(names[0]) > FEW_FOLDERS
        if len(names[0]) > MANY_FOLDERS or numbered or are_patients(names[0]):
            raise UserError(
                f"{where}: its {len(names[0])} folders ({list_first(sorted(names[0]), 3)}) look "
                f"like patients, not classes; name the classes by --labels FILE, or insist by "
                "--class-level N"
            )
        return 0
    plain = [
        number
        for number, folders in enumerate(names)
        if len(folders) <= MANY_FOLDERS
        and not are_identifiers(folders)
        and not all(map(is_part_of_data, folders))
    ]
    if not plain:  # numbered classes above numbered patients
        few = [number for number, folders in enumerate(names) if len(folders) <= FEW_FOLDERS]
        plain = few if len(few) == 1 else []
    candidates = [number for number in plain if len(names[number]) > 1] or plain
    if len(candidates) == 1:
        return candidates[0]
    shown = "; ".join(
        f"{_count_classes(readings[number])}" for number in (candidates or range(len(readings)))
    )
    raise UserError(
        f"{where}: {len(candidates or readings)} folders of each path may be the class: {shown}; "
        f"{_WAYS_OUT}"
    )


def _count_classes(reading: Reading) -> str:
    counts = Counter(reading.values()).most_common()
    return list_first([f"{name} {count}" for name, count in counts])


def _count_folders(parts: Mapping[str, Parts]) -> str:
    counts = Counter("/".join(folders) or "(no folder)" for folders in parts.values())
    return list_first([f"{folder} {count}" for folder, count in sorted(counts.items())], 8)
