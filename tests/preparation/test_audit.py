"""What prepare says of the data: the leak, odd files, copies, slices that change sides."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from duplicates.finder import FINDER_VERSION, LINK_COLUMNS
from duplicates.sift_features import THUMBNAIL_PX
from preparation.audit import (
    AUDIT_SCHEMA,
    _compute_leak,
    build_audit,
    describe_audit,
    describe_moved,
    keeps_splits,
    read_splits,
)
from preparation.manifest import COLUMNS, ImageFacts, manifest_path


def build_frame(slices: list[str], groups: list[str], labels: list[str]) -> pd.DataFrame:
    n_images = len(slices)
    frame = pd.DataFrame(
        {
            "path": [f"Images/{label}/{row}.png" for row, label in enumerate(labels)],
            "label": labels,
            "width": 8,
            "height": 8,
            "sha256": [f"{row:064d}" for row in range(n_images)],
            "mean": np.linspace(10, 20, n_images),
            "slice": slices,
            "group": groups,
            "split": "train",
            "note": "",
        }
    )
    return frame[list(COLUMNS)]


def build_facts(frame: pd.DataFrame) -> dict[str, ImageFacts]:
    rng = np.random.default_rng(0)
    shape = (THUMBNAIL_PX, THUMBNAIL_PX)
    return {
        row.path: ImageFacts(
            row.sha256, 8, 8, row.mean, "L", thumbnail=rng.integers(0, 255, shape, dtype=np.uint8)
        )
        for row in frame.itertuples()
    }


def build_links(rows: list[tuple[str, str, int, str]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["first", "second", "score", "kind"])
    return table.assign(mirrored=0, rotation_deg=0.0, zoom=1.0)[list(LINK_COLUMNS)]


def test_the_leak_is_what_random_splits_show() -> None:
    sizes = [1] * 30 + [2] * 20 + [5] * 10 + [12] * 3
    groups = np.repeat([f"g{number}" for number in range(len(sizes))], sizes)
    frame = build_frame([f"s{row}" for row in range(len(groups))], groups.tolist(), ["a"] * 156)
    leak = _compute_leak(frame)
    assert leak is not None
    assert leak["copy"] == 0.0
    rng = np.random.default_rng(0)
    n_test = round(0.15 * len(groups))
    shares = []
    for _ in range(3000):
        order = rng.permutation(groups)
        shares.append(np.isin(order[:n_test], order[n_test:]).mean())
    assert leak["relative"] == pytest.approx(np.mean(shares), abs=0.005)


def test_links_across_classes_are_listed() -> None:
    frame = build_frame(["s1", "s1", "s2", "s3"], ["g1", "g1", "g1", "g2"], ["a", "b", "b", "b"])
    digests = frame["sha256"]
    links = build_links(
        [(digests[0], digests[1], 44, "slice"), (digests[1], digests[2], 13, "group")]
    )
    audit = build_audit(frame, build_facts(frame), "source", 0, links=links)
    copies = audit["copies"]
    assert copies["links"] == {
        "slice": {"count": 1, "across_classes": 1},
        "group": {"count": 1, "across_classes": 0},
    }
    assert copies["conflicts"] == [
        {"first": "Images/a/0.png", "second": "Images/b/1.png", "score": 44, "kind": "slice"}
    ]
    assert (copies["largest_slice"], copies["largest_group"]) == (2, 3)
    assert copies["images_with_a_copy"] == 2
    assert copies["images_with_a_relative"] == 3
    text = "\n".join(describe_audit(audit))
    assert "1 of 1 links of copies join two classes: label conflicts" in text
    assert "Images/a/0.png and Images/b/1.png (44 points agree)" in text
    json.dumps(audit, allow_nan=False)


def test_odd_pictures_are_named() -> None:
    frame = build_frame([f"s{row}" for row in range(40)], [f"g{row}" for row in range(40)],
                        ["a", "b"] * 20)  # fmt: skip
    frame.loc[3, "width"] = 9
    facts = build_facts(frame)
    path = frame["path"][5]
    blank = np.full((THUMBNAIL_PX, THUMBNAIL_PX), 7, np.uint8)
    facts[path] = ImageFacts("x", 8, 8, 7.0, "L", thumbnail=blank)
    facts[frame["path"][6]] = ImageFacts("y", 8, 8, 7.0, "P", thumbnail=facts[path].thumbnail)
    audit = build_audit(frame, facts, "source", 0)
    assert audit["odd"] == {
        frame["path"][3]: "size 9 x 8",
        path: "blank",
        frame["path"][6]: "blank",
    }
    assert audit["by_class"]["a"]["sizes"] == {"8 x 8": 20}
    assert audit["by_class"]["b"]["brightness"]["mean"] == pytest.approx(
        frame["mean"][1::2].mean(), abs=1e-3
    )
    assert "odd: 3 images" in "\n".join(describe_audit(audit))


def test_slices_that_change_sides_are_told() -> None:
    frame = build_frame(["s1", "s2", "s3"], ["g1", "g1", "g1"], ["a", "a", "a"])
    before = {frame["sha256"][0]: "test", frame["sha256"][1]: "train"}
    first, second = describe_moved(frame, before)
    assert "1 images (1 of test) of 1 groups are training slices now" in first
    assert "Images/a/0.png" in first
    assert "train again" in second
    assert describe_moved(frame, {}) == []
    frame.loc[1, "split"] = "val"
    assert "made anew" in describe_moved(frame, before)[0]
    assert "2 of 3 images changed sides" in describe_moved(frame, before)[0]


def test_equal_files_in_two_classes_are_conflicts() -> None:
    frame = build_frame(["s1", "s1", "s2"], ["g1", "g1", "g2"], ["a", "b", "b"])
    frame.loc[1, "sha256"] = frame["sha256"][0]
    audit = build_audit(frame, build_facts(frame), "source", 0, links=build_links([]))
    assert audit["byte_copies"]["sets_across_classes"] == 1
    assert audit["copies"]["conflicts"] == [
        {"first": "Images/a/0.png", "second": "Images/b/1.png", "score": None, "kind": "byte"}
    ]
    assert "Images/a/0.png and Images/b/1.png (the same bytes)" in "\n".join(describe_audit(audit))


def test_links_that_were_cut_are_told() -> None:
    frame = build_frame(["s1", "s2"], ["g1", "g2"], ["a", "a"])
    frame.loc[1, "split"] = "test"
    links = build_links([(frame["sha256"][0], frame["sha256"][1], 14, "group")])
    audit = build_audit(frame, build_facts(frame), "source", 0, links=links)
    assert audit["copies"]["cut_links"] == {"count": 1, "highest_score": 14, "across_splits": 1}
    assert "1 links cut, 1 of them between splits" in "\n".join(describe_audit(audit))


def write_tables(data: Path, audit: object) -> None:
    frame = build_frame(["s1", "s2"], ["g1", "g2"], ["a", "b"])
    manifest_path(data).parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(manifest_path(data), index=False)
    (data / "CSV" / "audit.json").write_text(json.dumps(audit))


def test_splits_are_kept_of_the_same_seed_and_finder_alone(tmp_path: Path) -> None:
    assert read_splits(tmp_path) == {}
    assert not keeps_splits(tmp_path, 0)
    good = {"schema": AUDIT_SCHEMA, "seed": 0, "copies": {"finder": FINDER_VERSION}}
    write_tables(tmp_path, good)
    assert set(read_splits(tmp_path).values()) == {"train"}
    assert keeps_splits(tmp_path, 0)
    assert not keeps_splits(tmp_path, 1)
    no_copies, other_finder = good | {"copies": None}, good | {"copies": {"finder": -1}}
    useless: list[object] = [{}, [], good | {"schema": 1}, no_copies, other_finder]
    for audit in useless:
        write_tables(tmp_path, audit)
        assert not keeps_splits(tmp_path, 0)
    manifest_path(tmp_path).write_text("no table")
    assert read_splits(tmp_path) == {}


def test_sheets_show_links_groups_and_conflicts(tmp_path: Path, phantom_dir: Path) -> None:
    from duplicates.finder import find_copies
    from experiments.planted_duplicates import read_thumbnails
    from preparation.contact_sheets import PICTURES, draw_sheets
    from preparation.manifest import load_manifest

    frame = load_manifest(phantom_dir)
    thumbnails = read_thumbnails(frame, phantom_dir)
    copies = find_copies(thumbnails)
    draw_sheets(copies, thumbnails, frame, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(PICTURES[:2])
    for path in tmp_path.iterdir():
        assert np.asarray(Image.open(path)).std() > 10
    first = frame["sha256"] == copies.tabulate()["first"][0]
    frame.loc[first, "label"] = "elsewhere"
    draw_sheets(copies, thumbnails, frame, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(PICTURES)
    draw_sheets(copies, thumbnails, load_manifest(phantom_dir), tmp_path)
    assert not (tmp_path / PICTURES[2]).exists()
