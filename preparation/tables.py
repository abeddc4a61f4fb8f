"""Read tables of this program, and tables as people write them, with any separator and encoding."""

import csv
import io
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
        All cells as text without blanks at the ends, "" where nothing stands. The index is the
        line of the file that a row ends in.

    Raises:
        UserError: The file is missing or empty, a quote is not closed, two columns have one name,
            or a row has more cells than the header.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {remedy}") from error
    text = _decode(content)
    header = next((line for line in text.splitlines() if line.strip()), "")
    if not header or "\0" in text:
        raise UserError(f"{path}: {'empty' if not content else 'not a text table'}; {remedy}")
    separator = max(_SEPARATORS, key=re.sub('"[^"]*"', "", header).count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: dict[int, list[str]] = {}
    try:
        for row in reader:
            if any(row):
                rows[reader.line_num] = [cell.strip() for cell in row]
    except csv.Error as error:
        raise UserError(
            f"{path} row {reader.line_num}: {error}; close its quotes, or write them twice"
        ) from error
    first, *lines = rows
    names = rows[first]
    by_plain: dict[str, str] = {}
    for name in names:
        if _simplify(name) and by_plain.setdefault(_simplify(name), name) is not name:
            raise UserError(f"{path}: two columns are called {name!r}; rename or remove one")
    for line in lines:
        if len(rows[line]) > len(names):
            raise UserError(
                f"{path} row {line}: {len(rows[line])} cells under {len(names)} columns; put cells "
                f"that contain {separator!r} into quotes"
            )
    cells = [rows[line] + [""] * (len(names) - len(rows[line])) for line in lines]
    return pd.DataFrame(cells, index=lines, columns=names, dtype=str)


def read_table(path: Path, columns: Sequence[str], remedy: str) -> pd.DataFrame:
    """Read a CSV with at least `columns`, all cells as text.

    Raises:
        UserError: Not a CSV, or columns are missing; ends with `remedy`.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except ValueError as error:  # not UTF-8, no columns, rows of unequal length
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a CSV table ({reason}); {remedy}") from error
    missing = [column for column in columns if column not in table]
    if missing:
        raise UserError(f"{path}: column(s) missing: {', '.join(missing)}; {remedy}")
    return table.fillna("")


def find_column(table: pd.DataFrame, names: Sequence[str]) -> str | None:
    """Return the column that has one of these names, in their order, whatever its case."""
    by_plain = {_simplify(str(column)): column for column in table}
    return next((str(by_plain[name]) for name in names if name in by_plain), None)


def _simplify(name: str) -> str:
    """Return a column name without case and punctuation."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


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
