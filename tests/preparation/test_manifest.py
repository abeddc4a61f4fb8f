"""The manifest as text: what is read back, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from duplicates import clustering
from helper import UserError
from preparation.manifest import COLUMNS, build_manifest, load_manifest, manifest_path
from tests.support.sources import build_files, run, write_zip


def test_load_manifest_names_both_ways_on(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_manifest(tmp_path)
    for part in (
        "python prepare.py SOURCE",
        "python prepare.py --phantom 600",
        "main.py --phantom",
    ):
        assert part in str(caught.value)


def test_ends_of_links_go_to_scipy_as_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    find, seen = clustering.connected_components, list[Any]()

    def watch(graph: Any, directed: bool) -> Any:
        seen.extend(part.dtype for part in graph.coords)
        return find(graph, directed=directed)

    monkeypatch.setattr(clustering, "connected_components", watch)
    pairs = np.array([[0, 3], [1, 2]], np.int64)
    assert clustering.connect(pairs, 5).tolist() == [0, 1, 1, 0, 2]
    assert seen == [np.int32, np.int32]  # of 64 scipy 1.11 makes nothing, and says nothing


ROWS = [
    "Images/A/1.png,A,8,8,aa,1.500,s1,g1,train,",
    "Images/A/2.png,A,8,8,bb,2.000,s2,g2,test,",
    "Images/NA/3.png,NA,0,0,cc,,s3,g1,,unreadable: x",
]


def write_rows(data: Path, header: str, rows: list[str]) -> None:
    path = manifest_path(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def test_load_manifest_keeps_text_as_text(tmp_path: Path) -> None:
    write_rows(tmp_path, ",".join(COLUMNS), [row.replace("s1", "001") for row in ROWS])
    frame = load_manifest(tmp_path)
    assert list(frame["label"]) == ["A", "A", "NA"]
    assert frame["slice"][0] == "001"
    assert frame["mean"].tolist()[:2] == [1.5, 2.0]
    assert np.isnan(frame["mean"][2])
    assert frame["split"][2] == ""


@pytest.mark.parametrize(
    ("row", "old", "new", "pattern"),
    [
        (1, "test", "dev", r"row 3: split 'dev'"),
        (1, "/2.png", "/1.png", r"row 3: path 'Images/A/1.png' is listed twice"),
        (1, "g2", "g1", r"row 2: group 'g1' is in two splits"),
        (1, "png,A,", "png,B,", r"row 3: label 'B' is not the folder of its path"),
        (1, "Images/A/", "Images/A/B/", r"row 3: label 'A' is not the folder of its path"),
        (1, "Images/A/2.png,A,", "Images/../2.png,..,", r"row 3: label '..' is not the folder"),
        (1, "8,8", "8,x", r"row 3: height 'x' is no whole number"),
        (1, "8,8", "8.5,8", r"row 3: width '8.5' is no whole number"),
        (1, "2.000", "two", r"row 3: mean 'two' is no number"),
    ],
)
def test_load_manifest_refuses(row: int, old: str, new: str, pattern: str, tmp_path: Path) -> None:
    rows = list(ROWS)
    rows[row] = rows[row].replace(old, new)
    write_rows(tmp_path, ",".join(COLUMNS), rows)
    with pytest.raises(UserError, match=pattern) as caught:
        load_manifest(tmp_path)
    assert "images.csv" in str(caught.value)


def test_load_manifest_refuses_missing_columns(tmp_path: Path) -> None:
    write_rows(tmp_path, ",".join(COLUMNS).replace("group", "gruppe"), ROWS)
    with pytest.raises(UserError, match=r"images.csv: column\(s\) missing: group"):
        load_manifest(tmp_path)


def test_a_built_manifest_reads_back_the_same(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert run(write_zip(tmp_path / "source.zip", build_files()), "--data", data) == 0
    pd.testing.assert_frame_equal(build_manifest(data), load_manifest(data), check_dtype=False)
