"""prepare.py on slices with planted duplicates: what it writes, keeps and changes."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import prepare
from duplicates import finder, result_file
from experiments.planted_duplicates import plant_duplicate
from phantoms.generator import plan_phantoms, render_phantom
from preparation.audit import read_audit
from preparation.manifest import load_manifest
from tests.conftest import build_once
from tests.support.builders import Capture, Patch

N_SLICES = 18
CLASSES = ("A", "no tumor", "C")
SIDES_PX = (224, 300, 512, 680, 1000)


def write_pairs(root: Path) -> None:
    """Write a slice of each of 18 generated patients and its duplicate, in mixed formats."""
    rng = np.random.default_rng(0)
    plans = {plan.patient: plan for plan in plan_phantoms(60, seed=9)}
    for number, plan in enumerate(list(plans.values())[:N_SLICES]):
        folder = root / CLASSES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        original = render_phantom(plan)[0]
        for version, pixels in enumerate((original, plant_duplicate(original, rng))):
            side = SIDES_PX[(number + 2 * version) % len(SIDES_PX)]
            wide = pixels if number % 3 else np.pad(pixels, ((0, 0), (60, 60)))
            size = (round(side * wide.shape[1] / 512), side)
            image = Image.fromarray(wide).resize(size, Image.Resampling.BICUBIC)
            image = image.convert("RGB") if (number + version) % 2 else image
            image.save(folder / f"{number:02d} {version}.{'jpg' if version else 'png'}")


@pytest.fixture(scope="module")
def shared(shared_dir: Path) -> Path:
    """A source and the data folder prepared from it; not to be changed."""

    def build(root: Path) -> None:
        write_pairs(root / "source")
        run(root / "source", root / "data")

    return build_once(shared_dir / "pairs", build)


@pytest.fixture
def pairs(shared: Path, tmp_path: Path) -> Path:
    """A copy of `shared` that may be changed."""
    return shutil.copytree(shared, tmp_path / "pairs")


def run(source: Path, data: Path, *argv: str) -> pd.DataFrame:
    assert prepare.main([str(source), "--data", str(data), *argv]) == 0
    return load_manifest(data)


def test_duplicates_share_set_group_and_split(shared: Path) -> None:
    data = shared / "data"
    frame = load_manifest(data)
    number = frame["path"].str.extract(r"/(\d\d) ")[0]
    assert frame.groupby(number)["duplicate_set"].nunique().eq(1).all()
    assert frame["duplicate_set"].nunique() == N_SLICES
    assert frame["duplicate_set"].str.fullmatch("d[0-9a-f]{12}").all()
    assert frame.groupby("group")["split"].nunique().eq(1).all()
    assert frame.groupby("label")["split"].nunique().eq(3).all()
    assert set(frame["label"]) == set(CLASSES)
    assert frame["width"].nunique() > 5
    links = pd.read_csv(data / "CSV/links.csv")
    assert set(links.columns) == set(finder.LINK_COLUMNS)
    assert set(links["first"]) | set(links["second"]) <= set(frame["path"])
    assert (links["kind"] == "duplicate").sum() == N_SLICES
    audit = read_audit(data)
    assert audit["n_duplicate_sets"] == N_SLICES
    assert audit["duplicates"]["images_with_a_duplicate"] == 2 * N_SLICES
    assert (data / "audit/pairs_by_score.png").exists()


def test_a_second_run_reuses_results(pairs: Path, monkeypatch: Patch) -> None:
    data, sheet = pairs / "data", pairs / "data/audit/pairs_by_score.png"
    frame, content = load_manifest(data), sheet.read_bytes()
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    with monkeypatch.context() as patched:
        for name in ("register_pairs", "extract_features", "find_within"):
            patched.setattr(finder, name, lambda *_: pytest.fail("computed again"))
        pd.testing.assert_frame_equal(run(pairs / "source", data), frame)
        assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before
        shutil.rmtree(data / "audit")
        run(pairs / "source", data)
    assert sheet.read_bytes() == content
    cache = data / "cache/duplicates.npz"
    cache.write_bytes(cache.read_bytes()[:1000])
    pd.testing.assert_frame_equal(run(pairs / "source", data), frame)
    assert result_file.load_duplicates(cache) is not None


def test_new_images_do_not_move_others(pairs: Path, tmp_path: Path, capsys: Capture) -> None:
    source, data = pairs / "source", tmp_path / "data"
    late = {path: path.read_bytes() for path in sorted(source.rglob("0[0-2] *"))}
    for path in late:
        path.unlink()
    before = run(source, data).set_index("sha256")
    for path, content in late.items():
        path.write_bytes(content)
    capsys.readouterr()
    after = run(source, data).set_index("sha256")
    assert "split again" not in capsys.readouterr().out
    columns = ["duplicate_set", "group", "split"]
    pd.testing.assert_frame_equal(after.loc[before.index, columns], before[columns])
    assert len(after) == len(before) + 6
    assert after["split"].ne("").all()
    at_once = load_manifest(pairs / "data").set_index("sha256").loc[after.index]
    pd.testing.assert_frame_equal(at_once[columns[:2]], after[columns[:2]])


def test_joined_splits_and_another_seed_split_again(pairs: Path, capsys: Capture) -> None:
    source, data, table = pairs / "source", pairs / "data", pairs / "patients.csv"
    frame = load_manifest(data)
    chosen = frame.groupby("split").first()["path"][["train", "test"]]
    table.write_text("path,patient\n" + "".join(f"{path},p1\n" for path in chosen))
    capsys.readouterr()
    after = run(source, data, "--patients", str(table))
    assert "split again" in capsys.readouterr().out  # each class has one test group
    pair = after.set_index("path").loc[chosen]
    assert pair["group"].nunique() == pair["split"].nunique() == 1
    assert after.groupby("label")["split"].nunique().eq(3).all()
    other = run(source, data, "--seed", "1")
    assert "split again" in capsys.readouterr().out
    assert (other["split"] != after["split"]).any()
    assert (other["group"] == after["group"]).all()
