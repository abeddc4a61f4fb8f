"""Classes and patients of images in a table: `--labels FILE`."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd

from helper import UserError
from preparation.folder_kinds import list_first, strip_suffix
from preparation.tables import (
    FILE_COLUMNS,
    PATIENT_COLUMNS,
    find_column,
    list_tails,
    read_user_table,
)

_REMEDY = "write a CSV with the header file,label"
_FOLDER_COLUMNS = (
    *("patient", "patientid", "subject", "subjectid", "case", "caseid", "brats21id", "brats20id"),
    *("bratsid", "volume"),
)
_LABEL_COLUMNS = (
    *("label", "class", "diagnosis", "target", "classname", "labelname", "category", "tumortype"),
    *("tumourtype", "tumor", "tumour", "histology", "grade", "finding", "mgmtvalue", "y"),
    *("histologicaltype", "neoplasmhistologicgrade", "tumorgrade", "pathology"),
)


@dataclass(frozen=True)
class LabelTable:
    """The rows of a table of labels.

    Attributes:
        path: The table.
        columns: Names of the columns of files, labels and patients ("" without patients).
        rows: Label and patient by what the file column names: a path, a file name with or without
            its suffix, or a folder such as that of a patient.
        names_folders: The column names patients or cases: folders take precedence over files.
    """

    path: Path
    columns: tuple[str, str, str]
    rows: dict[str, tuple[str, str]]
    names_folders: bool = False

    def describe(self, n_unused: int) -> str:
        """Return which columns are used, and how many rows name no image."""
        file, label, patient = self.columns
        also = f", patient = column {patient!r}" if patient else ""
        unused = f"; {n_unused} rows name no image of the source" if n_unused else ""
        return (
            f"class = column {label!r} of {self.path}, for the files in column {file!r}{also}"
            f"{unused}"
        )

    def match(self, names: Sequence[str]) -> dict[str, str]:
        """Return the key of the row of each image that has one.

        Raises:
            UserError: No row names an image, or one names a file that may be several.
        """
        by_key: dict[str, set[str]] = defaultdict(set)
        keys_of: dict[str, list[list[str]]] = {}
        for name in names:
            path = PurePosixPath(name)
            files = [
                tail for each in list_tails(name) for tail in (each, strip_suffix_of_path(each))
            ]
            folders = [
                part
                for parent in path.parents
                for part in (str(parent), *_list_prefixes(parent.name))
            ]
            keys_of[name] = [[key.casefold() for key in keys] for keys in (files, folders)]
            for key in {key.casefold() for key in files}:
                by_key[key].add(name)
        known = {key.casefold(): key for key in self.rows}
        found: dict[str, str] = {}
        for name in names:
            by_file, by_folder = (
                next((key for key in keys if key in known), "") for keys in keys_of[name]
            )
            key = by_folder or by_file if self.names_folders else by_file or by_folder
            if not key:
                continue
            both = {self.rows[known[each]] for each in (by_file, by_folder) if each}
            if len(both) > 1 and not self.names_folders:
                raise UserError(
                    f"{self.path}: {name!r} is row {known[by_file]!r} by its name and row "
                    f"{known[by_folder]!r} by its folder; write paths inside the source"
                )
            if key == by_file and len(same := by_key.get(key, set())) > 1:
                raise UserError(
                    f"{self.path}: {known[key]!r} may be any of {len(same)} images "
                    f"({list_first(sorted(same), 2)}); write the path inside the source"
                )
            found[name] = known[key]
        if not found:
            raise UserError(
                f"{self.path}: column {self.columns[0]!r} names no image of the source, e.g. "
                f"{next(iter(self.rows))!r} instead of {names[0]!r}"
            )
        return found


def _list_prefixes(folder: str) -> list[str]:
    """Return a folder name and its starts that hold a number: TCGA_CS_4941 of TCGA_CS_4941_1996."""
    ends = [found.start() for found in re.finditer(r"[_-]", folder)]
    starts = [folder[:end] for end in reversed(ends)]
    return [folder, *(start for start in starts if re.search(r"\d", start))]


def strip_suffix_of_path(name: str) -> str:
    """Return a path without the suffix of its file."""
    path = PurePosixPath(name)
    return str(path.with_name(strip_suffix(path.name)))


def read_label_table(path: Path) -> LabelTable:
    """Read the table of `--labels` and guess its columns; rows without a class are left out.

    Raises:
        UserError: Not a table, the columns cannot be guessed, or a file has two classes.
    """
    table = read_user_table(path, _REMEDY)
    file = find_column(table, (*FILE_COLUMNS, *_FOLDER_COLUMNS))
    label = find_column(table.drop(columns=[file] if file else []), _LABEL_COLUMNS)
    if file is None or label is None:
        missing = "files" if file is None else "classes"
        raise UserError(
            f"{path}: no column of {missing} among {', '.join(map(repr, table))}; name it "
            f"{'file' if file is None else 'label'}"
        )
    patient = find_column(table.drop(columns=[label]), PATIENT_COLUMNS) or ""
    columns = (file, label, patient)
    names_folders = find_column(table[[file]], _FOLDER_COLUMNS) is not None
    return LabelTable(path, columns, _read_rows(path, table, columns), names_folders)


def _read_rows(
    path: Path, table: pd.DataFrame, columns: tuple[str, str, str]
) -> dict[str, tuple[str, str]]:
    file, label, patient = columns
    rows: dict[str, tuple[str, str]] = {}
    first: dict[str, str] = {}
    for number, row in zip(table.index, table.to_dict("records"), strict=True):
        name = row[file].replace("\\", "/").removeprefix("./").strip("/")
        value = (row[label], row[patient] if patient else "")
        if not name or not value[0]:
            continue
        same = first.setdefault(name.casefold(), name)
        if rows.setdefault(same, value) != value:
            here, above = (" of patient ".join(filter(None, each)) for each in (value, rows[same]))
            raise UserError(
                f"{path} row {number}: {name!r} is {here!r} here and {above!r} above; keep one of "
                "the rows"
            )
    if not rows:
        raise UserError(f"{path}: no row has a file and a class; {_REMEDY}")
    return rows
