"""The audit of a data folder: leak, odd files, duplicates and images that change their split."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from common.row_file import StoredRow
from duplicates.finder import FINDER_VERSION
from duplicates.sift_features import THUMBNAIL_PX
from preparation import audit as audits
from preparation import audit_text
from preparation.manifest import COLUMNS, ImageFacts, manifest_path, open_thumbnails


def build_frame(duplicate_sets: list[str], groups: list[str], labels: list[str]) -> pd.DataFrame:
    n_images = len(labels)
    frame = pd.DataFrame(
        {
            "path": [f"Images/{label}/{row}.png" for row, label in enumerate(labels)],
            "label": labels,
            "sha256": [f"{row:064d}" for row in range(n_images)],
            "mean": np.linspace(10, 20, n_images),
            "duplicate_set": duplicate_sets,
            "group": groups,
        }
    )
    return frame.assign(width=8, height=8, split="train", patient="", note="")[list(COLUMNS)]


def store(thumbnail: np.ndarray) -> StoredRow:
    file = open_thumbnails()
    return StoredRow(file, file.append(thumbnail))


def build_facts(frame: pd.DataFrame) -> dict[str, ImageFacts]:
    noise = np.random.default_rng(0).integers(0, 255, (THUMBNAIL_PX,) * 2, dtype=np.uint8)
    thumbnail = store(noise)
    return {
        row.path: ImageFacts(row.sha256, 8, 8, row.mean, "L", thumbnail=thumbnail)
        for row in frame.itertuples()
    }


def audit_links(frame: pd.DataFrame, *links: tuple[int, int, int, str]) -> tuple[dict, str]:
    """Audit and text of rows, with links of first row, second row, score and kind."""
    table = pd.DataFrame(links, columns=["first", "second", "score", "kind"])
    for end in ("first", "second"):
        table[end] = frame["path"].to_numpy()[table[end].to_numpy(int)]
    audit = audits.build_audit(frame, build_facts(frame), "source", 0, links=table)
    return json.loads(json.dumps(audit, allow_nan=False)), "\n".join(
        audit_text.describe_audit(audit)
    )


def test_the_leak_is_the_mean_of_random_splits() -> None:
    sizes = [1] * 30 + [2] * 20 + [5] * 10 + [12] * 3
    groups = np.repeat([f"g{number}" for number in range(len(sizes))], sizes)
    frame = build_frame([f"d{row // 2}" for row in range(156)], groups.tolist(), ["a"] * 156)
    leak = audits._compute_leak(frame)
    assert leak is not None
    assert leak["duplicate"] == round(133 / 155, 4)  # 23 in test: the other one is in the rest
    rng = np.random.default_rng(0)
    n_test = round(0.15 * 156)
    orders = [rng.permutation(groups) for _ in range(3000)]
    shares = [np.isin(order[:n_test], order[n_test:]).mean() for order in orders]
    assert leak["related"] == pytest.approx(np.mean(shares), abs=0.005)


def test_links_across_classes_are_listed() -> None:
    frame = build_frame(["d1", "d1", "d2", "d3"], ["g1", "g1", "g1", "g2"], ["a", "b", "b", "b"])
    frame["patient"] = ["p", "p", "", ""]
    audit, text = audit_links(frame, (0, 1, 44, "duplicate"), (1, 2, 13, "related"))
    duplicates = audit["duplicates"]
    assert duplicates["links"] == {
        "duplicate": {"count": 1, "across_classes": 1},
        "related": {"count": 1, "across_classes": 0},
    }
    assert duplicates["conflicts"] == [
        {"first": "Images/a/0.png", "second": "Images/b/1.png", "score": 44, "kind": "duplicate"}
    ]
    assert (duplicates["largest_duplicate_set"], duplicates["largest_group"]) == (2, 3)
    assert duplicates["images_with_a_duplicate"] == 2
    assert duplicates["images_with_a_related_image"] == 3
    assert (audit["n_duplicate_sets"], audit["n_groups"], audit["n_patients"]) == (3, 2, 1)
    assert "1 of 1 duplicate links connect two classes" in text
    assert "Images/a/0.png and Images/b/1.png (score 44)" in text
    assert audit["patients"]["n_images"] == 2
    assert "patients: 1, known for 2 of 4 images" in text


def test_identical_files_in_two_classes_are_conflicts() -> None:
    frame = build_frame(["d1", "d1", "d2"], ["g1", "g1", "g2"], ["a", "b", "b"])
    frame.loc[1, "sha256"] = frame["sha256"][0]
    audit, text = audit_links(frame)
    assert audit["byte_duplicates"] == {"files": 1, "sets": 1, "sets_across_classes": 1}
    assert audit["duplicates"]["conflicts"] == [
        {"first": "Images/a/0.png", "second": "Images/b/1.png", "score": None, "kind": "byte"}
    ]
    assert "Images/a/0.png and Images/b/1.png (identical bytes)" in text


def test_counts_and_size_of_the_publisher_are_compared() -> None:
    published, size = audits.PUBLISHED_COUNTS, {audits.PUBLISHED_SIZE: 6056}
    for counts, sizes, agrees in (
        *((published, size, True), (published | {"Menin": 9}, size, False)),
        (published, size | {"8 x 8": 1}, False),
    ):
        found = audits._compare_published(counts, sizes)
        assert found is not None
        assert found["agrees"] == agrees
    assert audits._compare_published({"A": 1, "B": 1}, size) is None


def test_cut_links_are_counted() -> None:
    frame = build_frame(["d1", "d2"], ["g1", "g2"], ["a", "a"])
    frame.loc[1, "split"] = "test"
    audit, text = audit_links(frame, (0, 1, 14, "related"))
    cut = {"count": 1, "highest_score": 14, "across_splits": 1}
    assert audit["duplicates"]["cut_links"] == cut
    assert "1 weak links between two groups were not used, 1 of them between two splits" in text


def test_strong_links_between_two_patients_are_listed_once() -> None:
    frame = build_frame(["d1", "d2", "d3", "d4"], ["g1", "g1", "g1", "g2"], ["a"] * 4)
    frame["patient"] = ["p", "q", "q", "r"]
    links = [(0, 1, 25, "related"), (0, 2, 22, "related"), (1, 2, 40, "duplicate")]
    audit, text = audit_links(frame, *links, (2, 3, 19, "related"))
    assert audit["patients"]["linked"] == [
        {"patients": ["p", "q"], "first": "Images/a/0.png", "second": "Images/a/1.png", "score": 25}
    ]
    assert "1 pairs of patients have a strong link, such as p and q (score 25)" in text


@pytest.mark.parametrize(("patient", "part"), [("", "patients: unknown"), ("p", "for all 2")])
def test_the_summary_says_whether_patients_are_known(patient: str, part: str) -> None:
    frame = build_frame(["d1", "d2"], ["g1", "g1"], ["a", "a"]).assign(patient=patient)
    assert part in audit_links(frame)[1]


def test_odd_images_are_named() -> None:
    ids = [f"{row}" for row in range(40)]
    frame = build_frame(ids, ids, ["a", "b"] * 20)
    frame.loc[3, "width"] = 9
    facts = build_facts(frame)
    blank = store(np.full((THUMBNAIL_PX,) * 2, 7, np.uint8))
    for row, mode in ((5, "L"), (6, "P")):
        facts[frame["path"][row]] = ImageFacts("x", 8, 8, 7.0, mode, thumbnail=blank)
    audit = audits.build_audit(frame, facts, "source", 0)
    found = {frame["path"][3]: "size 9 x 8", frame["path"][5]: "blank", frame["path"][6]: "blank"}
    assert audit["odd"] == found
    assert audit["by_class"]["a"]["sizes"] == {"8 x 8": 20}
    mean = frame["mean"][1::2].mean()
    assert audit["by_class"]["b"]["brightness"]["mean"] == pytest.approx(mean, abs=1e-3)
    assert "odd: 3 images" in "\n".join(audit_text.describe_audit(audit))


def test_images_that_change_their_split_are_described() -> None:
    frame = build_frame(["d1", "d2", "d3"], ["g1", "g1", "g1"], ["a", "a", "a"])
    earlier = {frame["sha256"][0]: "test", frame["sha256"][1]: "train"}
    joined, advice = audit_text.describe_moved(frame, earlier)
    assert "1 images (1 of test) are now in train, such as Images/a/0.png" in joined
    assert "train again" in advice
    assert audit_text.describe_moved(frame, {}) == []
    frame.loc[1, "split"] = "val"
    split_again = audit_text.describe_moved(frame, earlier)[0]
    assert "split again" in split_again
    assert "2 of 3 images" in split_again


def test_splits_are_kept_for_the_same_seed_and_search(tmp_path: Path) -> None:
    audit = {"schema": audits.AUDIT_SCHEMA, "seed": 0, "duplicates": {"finder": FINDER_VERSION}}
    assert audits.keeps_splits(audit, 0)
    assert not audits.keeps_splits(audit, 1)
    for useless in ({}, audit | {"duplicates": None}, audit | {"duplicates": {"finder": -1}}):
        assert not audits.keeps_splits(useless, 0)
    assert (audits.read_splits(tmp_path), audits.read_audit(tmp_path)) == ({}, {})
    manifest_path(tmp_path).parent.mkdir()
    build_frame(["d1", "d2"], ["g1", "g2"], ["a", "b"]).to_csv(manifest_path(tmp_path), index=False)
    assert set(audits.read_splits(tmp_path).values()) == {"train"}
    manifest_path(tmp_path).write_text("no table")
    assert audits.read_splits(tmp_path) == {}
    for content, expected in ((audit, audit), ([], {}), (audit | {"schema": 1}, {})):
        (tmp_path / "CSV" / "audit.json").write_text(json.dumps(content))
        assert audits.read_audit(tmp_path) == expected


def test_images_of_two_grey_values_are_counted_with_an_example() -> None:
    frame = build_frame(list("ab"), list("ab"), ["a", "b"])
    facts = build_facts(frame)
    path = frame["path"][1]
    facts[path] = dataclasses.replace(facts[path], is_binary=True)
    audit = audits.build_audit(frame, facts, "source", 0)
    assert audit["binary"] == {"count": 1, "first": [path]}
    assert [path in line for line in audit_text.describe_audit(audit) if "two grey" in line] == [
        True
    ]


def test_wrapped_intensities_are_counted_with_an_example() -> None:
    frame = build_frame(list("abcd"), list("abcd"), ["a", "a", "b", "b"])
    facts = build_facts(frame)
    for row in (1, 2):
        path = frame["path"][row]
        facts[path] = dataclasses.replace(facts[path], is_wrapped=True)
    audit = audits.build_audit(frame, facts, "source", 0)
    assert audit["wrapped"] == {"count": 2, "first": ["Images/a/1.png", "Images/b/2.png"]}
    (line,) = (line for line in audit_text.describe_audit(audit) if "wrapped" in line)
    assert all(part in line for part in ("2 images", "Images/a/1.png", "256"))
    plain = audits.build_audit(frame, build_facts(frame), "source", 0)
    assert "wrapped" not in "\n".join(audit_text.describe_audit(plain))
