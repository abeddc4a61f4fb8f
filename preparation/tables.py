"""Read tables as people write them: any separator, any case of the header, any common encoding."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from helper import UserError

# names of columns without case and punctuation, the plainest first
FILE_COLUMNS = (
    *("file", "filename", "path", "filepath", "image", "imagename", "imagepath", "imageid"),
    *("imagefile", "img", "slice", "name", "id"),
)
PATIENT_COLUMNS = ("patient", "patientid", "subject", "subjectid", "pid", "person", "case")
_SEPARATORS = ",;\t|"
_ENCODINGS = ("utf-8-sig", "cp1252")


def read_user_table(path: Path, remedy: str) -> pd.DataFrame:
    """Read a CSV or TSV with a header; the separator is guessed from the header.

    Args:
        path: The table: UTF-8, UTF-16 with its mark, or Windows-1252.
        remedy: What to do if it is no table, for the error.

    Returns:
        All cells as text without blanks at the ends, "" where nothing stands.

    Raises:
        UserError: The file is missing, empty, or its rows have unequal lengths.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {remedy}") from error
    text = _decode(content)
    header = next((line for line in text.splitlines() if line.strip()), "")
    if not header or "\0" in text:
        raise UserError(f"{path}: {'empty' if not content else 'not a text table'}; {remedy}")
    separator = max(_SEPARATORS, key=header.count)
    rows = [row for row in csv.reader(text.splitlines(), delimiter=separator) if any(row)]
    names = [cell.strip() for cell in rows[0]]
    for number, row in enumerate(rows[1:], start=2):
        if len(row) > len(names):
            raise UserError(
                f"{path} row {number}: {len(row)} cells under {len(names)} columns; put cells that "
                f"contain {separator!r} into quotes"
            )
    cells = [[cell.strip() for cell in row] + [""] * (len(names) - len(row)) for row in rows[1:]]
    return pd.DataFrame(cells, columns=names, dtype=str)


def find_column(table: pd.DataFrame, names: Sequence[str]) -> str | None:
    """Return the column that has one of these names, in their order, whatever its case."""
    by_plain = {re.sub(r"[^a-z0-9]", "", str(column).casefold()): column for column in table}
    return next((str(by_plain[name]) for name in names if name in by_plain), None)


def list_tails(path: str) -> list[str]:
    """Return a path without its first 0, 1, 2 … folders: tables often name a part of it."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _decode(content: bytes) -> str:
    if content[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        return content.decode("utf-16", errors="replace")
    for encoding in _ENCODINGS:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    return content.decode("latin-1")
