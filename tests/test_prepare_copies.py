"""prepare.py and the copies: what it writes of them, what it keeps, what new slices change."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import prepare
from duplicates import finder
from experiments.planted_duplicates import plant_copy
from phantoms.generator import PhantomPlan, plan_phantoms, render_phantom
from preparation.manifest import load_manifest

N_PATIENTS = 18
CLASSES = ("A", "B", "C")


def encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def slices() -> list[np.ndarray]:
    """One slice of each of 18 made-up patients."""
    first: dict[int, PhantomPlan] = {}
    for plan in plan_phantoms(200, seed=9):
        first.setdefault(plan.patient, plan)
    plans = list(first.values())[:N_PATIENTS]
    assert len(plans) == N_PATIENTS
    return [render_phantom(plan)[0] for plan in plans]


@pytest.fixture
def source(tmp_path: Path, slices: list[np.ndarray]) -> Path:
    """Class folders with every slice and one copy of it: 36 pictures of 18 slices."""
    rng = np.random.default_rng(0)
    for number, pixels in enumerate(slices):
        folder = tmp_path / "source" / CLASSES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02d}.png").write_bytes(encode(pixels))
        (folder / f"{number:02d} copy.png").write_bytes(encode(plant_copy(pixels, rng)))
    return tmp_path / "source"


def test_four_classes_of_mixed_sizes_need_no_setting(
    tmp_path: Path, slices: list[np.ndarray]
) -> None:
    """Sides of 224 to 1,000 px, grey and RGB, upright and wide; a copy has another size."""
    rng = np.random.default_rng(0)
    classes = ("glioma", "meningioma", "no tumor", "pituitary")
    sides = (224, 300, 512, 680, 1000)
    for number, pixels in enumerate(slices[:16]):
        folder = tmp_path / "source" / classes[number % 4]
        folder.mkdir(parents=True, exist_ok=True)
        for copy, picture in enumerate((pixels, plant_copy(pixels, rng))):
            side = sides[(number + 2 * copy) % len(sides)]
            wide = picture if number % 3 else np.pad(picture, ((0, 0), (60, 60)))
            size = (round(side * wide.shape[1] / 512), side)
            image = Image.fromarray(wide).resize(size, Image.Resampling.BICUBIC)
            image = image.convert("RGB") if (number + copy) % 2 else image
            image.save(folder / f"{number:02d} {copy}.{'jpg' if copy else 'png'}")
    frame = run(tmp_path / "source", tmp_path / "data")
    number = frame["path"].str.extract(r"/(\d\d) ")[0]
    assert frame.groupby(number)["slice"].nunique().eq(1).all()
    assert frame["slice"].nunique() == 16
    assert set(frame["label"]) == set(classes)
    assert frame["width"].nunique() > 5
    assert frame.groupby("label")["split"].nunique().eq(3).all()


def run(source: Path, data: Path, *argv: str) -> pd.DataFrame:
    assert prepare.main([str(source), "--data", str(data), *argv]) == 0
    return load_manifest(data)


def test_copies_share_slice_group_and_split(source: Path, tmp_path: Path) -> None:
    frame = run(source, tmp_path / "data")
    number = frame["path"].str.extract(r"(\d\d)")[0]
    assert frame.groupby(number)["slice"].nunique().eq(1).all()
    assert frame["slice"].nunique() == N_PATIENTS
    assert frame.groupby("group")["split"].nunique().eq(1).all()
    assert frame["slice"].str.match("s[0-9a-f]{12}").all()
    links = pd.read_csv(tmp_path / "data/CSV/links.csv")
    assert set(links.columns) == set(finder.LINK_COLUMNS)
    assert set(links["first"]) | set(links["second"]) <= set(frame["path"])
    assert (links["kind"] == "slice").sum() == N_PATIENTS
    audit = json.loads((tmp_path / "data/CSV/audit.json").read_text("utf-8"))
    assert audit["n_slices"] == N_PATIENTS
    assert audit["copies"]["images_with_a_copy"] == 2 * N_PATIENTS
    assert (tmp_path / "data/audit/pairs_by_score.png").exists()


def test_labels_are_never_seen(source: Path, tmp_path: Path) -> None:
    """Every picture in a class folder chosen at random, under another name: the same ids."""
    frame = run(source, tmp_path / "data")
    rng = np.random.default_rng(1)
    paths = sorted(source.rglob("*.png"))
    labels = rng.permutation(np.resize(CLASSES, len(paths)))
    for number, (path, label) in enumerate(zip(paths, labels, strict=True)):
        folder = tmp_path / "permuted" / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"x{rng.integers(10**6)}-{number}.png").write_bytes(path.read_bytes())
    permuted = run(tmp_path / "permuted", tmp_path / "other")
    ids = ["sha256", "slice", "group"]
    before, after = (
        table[ids].sort_values("sha256").reset_index(drop=True) for table in (frame, permuted)
    )
    pd.testing.assert_frame_equal(before, after)


def test_a_second_run_compares_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    frame = run(source, data)
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    for name in ("register_pairs", "extract_features", "propose_pairs"):
        monkeypatch.setattr(finder, name, lambda *_: pytest.fail("worked out again"))
    pd.testing.assert_frame_equal(run(source, data), frame)
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before


def test_new_slices_leave_the_others_where_they_are(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    late = sorted(source.rglob("0[0-2]*.png"))
    contents = {path: path.read_bytes() for path in late}
    for path in late:
        path.unlink()
    before = run(source, data).set_index("sha256")
    for path, content in contents.items():
        path.write_bytes(content)
    capsys.readouterr()
    after = run(source, data).set_index("sha256")
    kept = after.loc[before.index, ["slice", "group", "split"]]
    pd.testing.assert_frame_equal(kept, before[["slice", "group", "split"]])
    assert len(after) == len(before) + 6
    assert after["split"].ne("").all()
    output = capsys.readouterr().out
    assert "train again" not in output
    assert "made anew" not in output
    (data / "cache/copies.npz").unlink()
    at_once = run(source, tmp_path / "at once").set_index("sha256")
    columns = ["slice", "group"]
    pd.testing.assert_frame_equal(at_once.loc[after.index, columns], after[columns])


def test_patients_that_tie_splits_together_empty_none(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    frame = run(source, data)
    chosen = frame.groupby("split").first()["path"]
    groups = tmp_path / "patients.csv"
    groups.write_text(f"path,group\n{chosen['train']},p1\n{chosen['test']},p1\n")
    capsys.readouterr()
    after = run(source, data, "--groups", str(groups))
    assert "the split was made anew" in capsys.readouterr().out  # a class has one test group here
    pair = after.set_index("path").loc[[chosen["train"], chosen["test"]]]
    assert pair["group"].nunique() == pair["split"].nunique() == 1
    assert after.groupby("label")["split"].nunique().eq(3).all()


def test_another_seed_divides_anew(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(source, tmp_path / "data")
    capsys.readouterr()
    second = run(source, tmp_path / "data", "--seed", "1")
    assert "the split was made anew" in capsys.readouterr().out
    assert (first["split"] != second["split"]).any()
    assert (first["group"] == second["group"]).all()


def test_sheets_that_were_removed_are_drawn_again(source: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    run(source, data)
    sheet = data / "audit" / "pairs_by_score.png"
    content = sheet.read_bytes()
    shutil.rmtree(data / "audit")
    run(source, data)
    assert sheet.read_bytes() == content


def test_a_damaged_cache_is_made_again(source: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    frame = run(source, data)
    cache = data / "cache/copies.npz"
    cache.write_bytes(cache.read_bytes()[:1000])
    pd.testing.assert_frame_equal(run(source, data), frame)
    assert finder.load_copies(cache) is not None
