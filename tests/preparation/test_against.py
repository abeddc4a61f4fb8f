"""prepare.py --against: copies of another folder's slices, their patients and their labels."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import prepare
from duplicates import set_comparison
from duplicates.clustering import STRONG_SCORE
from duplicates.registration import Registrations
from preparation import against
from preparation.audit import read_audit
from preparation.manifest import ImageFacts, cache_path, load_manifest
from tests.conftest import build_once
from tests.support.builders import Capture, Patch, expect_refusal
from tests.support.planted_copies import alter, render_slices, write_slices
from tests.support.sources import refuse, take_snapshot

# The other folder holds slices 0 to 17, the source copies of 0 to 11 and slices 18 to 29.
OTHER_CLASSES, CLASSES = ("glioma", "pituitary", "normal"), ("Class A", "Class B", "Class C")
N_OTHER, N_COPIES = 18, 12
RELABELLED = 5  # this copy has the class of another slice


def name_slice(number: int, classes: tuple[str, ...]) -> str:
    return f"{classes[number % 3]}/{number:02d}.png"


@pytest.fixture(scope="module")
def shared(shared_dir: Path) -> Path:
    """Two sources, and the data folders prepared from them; not to be changed."""

    def build(root: Path) -> None:
        slices = render_slices()
        others = {name_slice(number, OTHER_CLASSES): slices[number] for number in range(N_OTHER)}
        write_slices(root / "other source", others.items())
        copies = {
            name_slice(number, CLASSES): alter(slices[number], number) for number in range(N_COPIES)
        }
        copies["Class A/05.png"] = copies.pop(name_slice(RELABELLED, CLASSES))
        own = {
            name_slice(number, CLASSES): slices[number] for number in range(N_OTHER, len(slices))
        }
        write_slices(root / "source", (copies | own).items())
        rows = "".join(f"{name},person {int(Path(name).stem) // 2}\n" for name in others)
        (root / "patients.csv").write_text(f"path,patient\n{rows}")
        run(root / "other source", root / "other", "--patients", root / "patients.csv")
        run(root / "source", root / "data", "--against", root / "other")

    return build_once(shared_dir / "against", build)


@pytest.fixture
def folders(shared: Path, tmp_path: Path) -> Path:
    """A copy of `shared` that may be changed."""
    return shutil.copytree(shared, tmp_path / "against")


def run(source: Path, data: Path, *argv: object) -> pd.DataFrame:
    assert prepare.main([str(part) for part in (source, "--data", data, *argv)]) == 0
    return load_manifest(data)


def read_table(data: Path) -> pd.DataFrame:
    table = pd.read_csv(data / against.TABLE, keep_default_na=False)
    assert tuple(table.columns) == against.COLUMNS
    return table.set_index(table["path"].str.extract(r"(\d+)\.png")[0].astype(int).rename("number"))


def test_copies_inherit_their_patients(shared: Path) -> None:
    table, frame = read_table(shared / "data"), load_manifest(shared / "data")
    assert table["path"].tolist() == frame["path"].tolist()
    copies, own = table[table.index < N_COPIES], table[table.index >= N_COPIES]
    assert (copies["status"] == "copy").sum() == N_COPIES - 1
    assert copies["other_path"].tolist() == [
        f"Images/{name_slice(number, OTHER_CLASSES)}" for number in copies.index
    ]
    assert copies["patient"].tolist() == [f"person {number // 2}" for number in copies.index]
    assert (copies["score"] >= STRONG_SCORE).all()
    assert (copies["score"] - copies["second_score"] >= against.MARGIN).all()
    assert not own["status"].isin(["copy", "label conflict"]).any()
    assert set(own["patient"]) == {""}
    assert frame["patient"].tolist() == table["patient"].tolist()
    assert frame[frame["patient"] != ""].groupby("patient")["group"].nunique().eq(1).all()


def test_labels_are_compared_by_corresponding_classes(shared: Path, capsys: Capture) -> None:
    table, entry = read_table(shared / "data"), read_audit(shared / "data")["against"]
    conflicts = table[table["status"] == "label conflict"]
    assert conflicts.index.tolist() == [RELABELLED]
    assert conflicts["patient"].tolist() == [f"person {RELABELLED // 2}"]
    assert entry["label_conflicts"]["count"] == 1
    assert entry["label_conflicts"]["first"][0]["path"] == conflicts["path"].iloc[0]
    assert entry["classes"] == {
        "Class A": {"glioma": 4, "normal": 1},
        "Class B": {"pituitary": 4},
        "Class C": {"normal": 3},
    }
    total = entry["total"]
    assert (total["files"], total["copies"], total["slices"]) == (24, N_COPIES, N_COPIES)
    assert (total["patients"], total["share"]) == (N_COPIES // 2, 0.5)
    assert sum(counts["copies"] for counts in entry["by_class"].values()) == N_COPIES
    lines = "\n".join(against.describe(entry))
    assert "Class A corresponds to glioma: 4 of 5 copies" in lines
    assert "1 copies have another label" in lines
    assert (shared / "data" / against.SHEET).stat().st_size > 10_000


def test_a_second_run_changes_nothing(folders: Path, monkeypatch: Patch) -> None:
    source, data, other = folders / "source", folders / "data", folders / "other"
    before = take_snapshot(data)
    before_other = take_snapshot(other)
    run(source, data, "--against", other)
    assert take_snapshot(data).keys() == before.keys()
    changed = {name for name, content in take_snapshot(data).items() if content != before[name]}
    assert changed <= {"CSV/audit.json"}  # names the other folder as the command line does
    # without the cache of the other folder its features are computed, with the same result
    cache_path(other).unlink()
    run(source, data, "--against", other)
    assert take_snapshot(data)["CSV/against.csv"] == before["CSV/against.csv"]
    different = take_snapshot(other).keys() ^ before_other.keys()
    assert different - {"cache/verified.json"} == {"cache/duplicates.npz"}
    # without --against the patients stay known, and so does the comparison
    monkeypatch.setattr(set_comparison, "register_pairs", lambda *_: pytest.fail("compared again"))
    frame, entry = load_manifest(data), read_audit(data)["against"]
    pd.testing.assert_frame_equal(run(source, data), frame)
    assert read_audit(data)["against"] == entry
    write_slices(source, [("Class A/new.png", render_slices()[0])])
    after = run(source, data)
    assert set(frame["patient"]) <= set(after["patient"])
    assert "against" not in read_audit(data)
    assert not (data / against.TABLE).exists()
    assert not (data / against.SHEET).exists()


def test_precedence_of_patients(folders: Path) -> None:
    source, data, other = folders / "source", folders / "data", folders / "other"
    table = folders / "own.csv"
    first, second, third = (name_slice(number, CLASSES) for number in (0, 1, N_OTHER))
    table.write_text(f"path,patient\n{first},earlier\n{second},earlier\n{third},own\n")
    shutil.rmtree(data)
    run(source, data, "--patients", table)
    table.write_text(f"path,patient\n{first},given\n")
    frame = run(source, data, "--patients", table, "--against", other).set_index("path")
    patients = frame["patient"][[f"Images/{name}" for name in (first, second, third)]].tolist()
    assert patients == ["given", "person 0", "own"]


def make_pairs(*rows: tuple[int, int, int]) -> Registrations:
    """Pairs of a first row, a second row and their score."""
    pairs = np.array([(first, second, 0) for first, second, _ in rows], np.int64).reshape(-1, 3)
    scores = np.array([score for *_, score in rows], np.int16)
    return Registrations(pairs, scores, np.zeros((len(rows), 2, 3), np.float32))


def test_the_rival_is_the_best_slice_of_another_patient() -> None:
    slices = pd.DataFrame({"patient": ["p", "p", "q", "", ""], "group": ["g", "g", "g", "g", "h"]})
    compared = make_pairs(
        *((0, 0, 50), (0, 1, 45), (0, 2, 9)),  # another slice of p is no rival; q is, in one group
        *((2, 1, 30), (2, 3, 28), (2, 4, 25)),  # unknown: only one in another group is
        *((3, 4, 30), (3, 3, 29), (3, 0, 3)),
        *((5, 1, 40), (5, 0, 40)),  # a tie: the first slice
    )
    best, second_scores = against.choose_best(compared, slices)
    assert best.pairs[:, :2].tolist() == [[0, 0], [2, 1], [3, 4], [5, 0]]
    assert best.scores.tolist() == [50, 30, 30, 40]
    assert second_scores.tolist() == [9, 25, 29, 0]
    best, second_scores = against.choose_best(make_pairs(), slices)
    assert len(best.scores) == len(second_scores) == 0


def test_a_patient_is_inherited_only_over_a_strong_and_unambiguous_link(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    slices = pd.DataFrame(
        {
            "path": ["Images/x/0.png", "Images/x/1.png"],
            **{"label": "x", "patient": ["p", "q"], "group": ["g", "h"]},
        }
    )
    compared = make_pairs(
        *((0, 0, 40), (0, 1, 40 - against.MARGIN)),
        *((1, 0, 40), (1, 1, 41 - against.MARGIN)),  # may be a slice of q as well
        *((2, 1, STRONG_SCORE), (3, 1, STRONG_SCORE - 1)),
    )
    facts = {f"Images/y/{name}.png": ImageFacts(name, 8, 8, 1.0, "L") for name in "0123"}
    own: Any = SimpleNamespace(digests=list("0123"))
    others: Any = None
    monkeypatch.setattr(against, "compare_sets", lambda *_: compared)
    found = against.compare_with_other(facts, own, against.OtherData(tmp_path, others, slices))
    assert found.table["status"].tolist() == ["copy", "ambiguous", "copy", "none"]
    assert found.inherit_patients() == {"Images/y/0.png": "p", "Images/y/2.png": "q"}


def test_classes_correspond_by_majority() -> None:
    labels = pd.Series(["a"] * 4 + ["b"] * 3 + ["c"] * 2)
    others = pd.Series(["x", "x", "x", "y", "y", "y", "x", "y", "y"])  # b and c are both y
    expected = [False, False, False, True, False, False, True, False, False]
    assert against.find_conflicts(labels, others).tolist() == expected
    merged = pd.Series(["tumour"] * 5)
    assert not against.find_conflicts(merged, pd.Series(["x", "x", "x", "y", "z"])).any()
    assert not len(against.find_conflicts(labels[:0], others[:0]))


def test_unsuitable_folders_are_refused(
    folders: Path, phantom_dir: Path, tmp_path: Path, capsys: Capture
) -> None:
    source, data, other = folders / "source", folders / "data", folders / "other"
    new = tmp_path / "new"
    for folder, words in (
        (tmp_path / "nowhere", "images.csv is missing"),
        (phantom_dir, "holds phantoms"),
    ):
        refuse(folders, capsys, words, source, "--data", new, "--against", folder)
    refuse(folders, capsys, "folder to write", source, "--data", data, "--against", data)
    next((other / "Images").rglob("*.png")).unlink()
    command = [str(part) for part in (source, "--data", new, "--against", other)]
    assert "1 missing" in expect_refusal(capsys, prepare.main(command))
    assert not new.exists()
    with pytest.raises(SystemExit, match="2"):
        prepare.main(["--phantom", "60", "--against", str(other)])
