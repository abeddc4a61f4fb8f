"""Tables whose rows are on disk."""

import errno
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.row_file import RowFile, StoredRow, StoredRows
from helper import UserError


def test_rows_are_read_as_written_by_many_threads() -> None:
    file = RowFile((3, 50), np.int16)

    def write(value: int) -> StoredRow:
        return StoredRow(file, file.append(np.full((3, 50), value, np.int16)))

    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(write, range(200)))
        found = list(pool.map(lambda row: row.read(), rows))
    assert [np.unique(each).tolist() for each in found] == [[value] for value in range(200)]
    assert found[0].shape == (3, 50)
    assert found[0].dtype == np.int16


def test_tables_are_taken_and_joined() -> None:
    tables = []
    for start in (0, 10):
        file = RowFile((2,), np.float32)
        places = [file.append(np.full(2, start + row, np.float32)) for row in range(4)]
        tables.append(StoredRows(file, np.array(places)))
    joined = tables[0].take(np.array([3, 1])).join(tables[1].take(np.array([2])))
    assert [joined[row].tolist() for row in range(len(joined))] == [[3, 3], [1, 1], [12, 12]]
    assert len(tables[0]) == 4


@pytest.mark.parametrize("array", [np.zeros(3, np.uint8), np.zeros(2, np.int16)])
def test_other_shapes_and_types_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"is not uint8 \(2,\)"):
        RowFile((2,), np.uint8).append(array)


def test_a_full_or_missing_temporary_folder_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    file = RowFile((2,), np.uint8)
    monkeypatch.setattr(file, "_file", type("Full", (), {"seek": fail, "write": fail}))
    with pytest.raises(UserError, match=rf"{tmp_path.name}: No space left .*TMPDIR"):
        file.append(np.zeros(2, np.uint8))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"none: No such file .*TMPDIR"):
        RowFile((2,), np.uint8)
