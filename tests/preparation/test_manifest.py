"""Ids, and the manifest as text: what is read back and what is refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helper import UserError
from preparation.manifest import (
    COLUMNS,
    ImageFacts,
    build_manifest,
    link_groups,
    load_earlier_manifest,
    load_manifest,
    manifest_path,
    measure_images,
    name_sets,
)
from tests.support.builders import make_data_folder
from tests.support.fuzz_corpus import encode

ROWS = [
    "Images/A/1.png,A,8,8,aa,1.500,001,d1,g1,train,",
    "Images/A/2.png,A,8,8,bb,2.000,,d2,g2,test,",
    "Images/NA/3.png,NA,0,0,cc,,,d3,g1,,unreadable: x",
]


def write_rows(data: Path, header: str, rows: list[str]) -> None:
    path = manifest_path(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def test_text_is_read_back_as_text(tmp_path: Path) -> None:
    write_rows(tmp_path, ",".join(COLUMNS), ROWS)
    frame = load_manifest(tmp_path)
    assert frame["label"].tolist() == ["A", "A", "NA"]
    assert frame["patient"].tolist() == ["001", "", ""]
    assert frame["mean"].tolist()[:2] == [1.5, 2.0]
    assert np.isnan(frame["mean"][2])
    assert frame["split"][2] == ""


@pytest.mark.parametrize(
    ("old", "new", "pattern"),
    [
        ("test", "dev", r"row 3: split 'dev'"),
        ("/2.png", "/1.png", r"row 3: path 'Images/A/1.png' is listed twice"),
        ("png,A,", "png,B,", r"row 3: label 'B' is not the folder of its path"),
        ("Images/A/", "Images/A/B/", r"row 3: label 'A' is not the folder of its path"),
        ("Images/A/2.png,A,", "Images/../2.png,..,", r"row 3: label '..' is not the folder"),
        ("8,8", "8,x", r"row 3: height 'x' is not a whole number"),
        ("8,8", "8.5,8", r"row 3: width '8.5' is not a whole number"),
        ("2.000", "two", r"row 3: mean 'two' is not a number"),
    ],
)
def test_invalid_rows_are_refused(old: str, new: str, pattern: str, tmp_path: Path) -> None:
    write_rows(tmp_path, ",".join(COLUMNS), [ROWS[0], ROWS[1].replace(old, new), ROWS[2]])
    with pytest.raises(UserError, match=rf"images\.csv {pattern}.*prepare\.py"):
        load_manifest(tmp_path)
    assert load_earlier_manifest(tmp_path) is None


def test_a_missing_or_older_manifest_names_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing.*prepare\.py SOURCE.*--phantom 600.*main\.py"):
        load_manifest(tmp_path)
    older = ",".join(COLUMNS).replace("patient,duplicate_set", "slice")
    write_rows(tmp_path, older, ["Images/A/1.png,A,8,8,aa,1.500,s1,g1,train,"])
    with pytest.raises(UserError, match=r"missing: patient, duplicate_set; run prepare\.py again"):
        load_manifest(tmp_path)


def test_a_built_manifest_reads_back_the_same(tmp_path: Path) -> None:
    data = make_data_folder(tmp_path / "data")
    pd.testing.assert_frame_equal(build_manifest(data), load_manifest(data), check_dtype=False)


def test_groups_are_linked_in_chains() -> None:
    duplicate_sets = ["d1", "d1", "d2", "d3", "d4", "d5"]
    patients = ["p1", "", "p1", "p2", "p2", ""]
    assert link_groups(duplicate_sets, patients).tolist() == [0, 0, 0, 1, 1, 2]
    further = link_groups(duplicate_sets, patients, ["", "", "k", "k", "", ""])  # d2 and d3
    assert further.tolist() == [0, 0, 0, 0, 0, 1]


def test_ids_come_from_the_smallest_digest_of_the_set() -> None:
    digests = ["b" * 64, "a" * 64, "c" * 64]
    assert name_sets("g", [0, 0, 1], digests) == ["g" + "a" * 12, "g" + "a" * 12, "g" + "c" * 12]
    assert name_sets("d", [7, 5, 5], digests) == ["d" + "b" * 12, "d" + "a" * 12, "d" + "a" * 12]


def measure(content: bytes) -> ImageFacts:
    return measure_images([("name", content)], 1)["name"]


def test_masks_have_two_grey_values_alone() -> None:
    pixels = np.zeros((8, 8), np.uint8)
    assert not measure(encode(pixels, "PNG")).is_binary  # blank
    pixels[2:4] = 200
    assert measure(encode(pixels, "PNG")).is_binary
    pixels[5] = 90
    assert not measure(encode(pixels, "PNG")).is_binary


def test_an_unreadable_file_is_called_what_it_is() -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    assert "a Git LFS pointer" in measure(pointer).note
    assert "a web page" in measure(b"<!DOCTYPE html><html>404</html>").note
