"""evaluate.py on other data: copies of training slices are found by the features of the run."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import evaluate
import main
import prepare
from duplicates.result_file import load_duplicates
from evaluation import recalibration
from evaluation.training_copies import FEATURES_FILE
from preparation.manifest import cache_path, load_manifest
from tests.conftest import build_once
from tests.support.builders import ON_CPU, Capture, expect_refusal, read_metrics, skip_plots
from tests.support.planted_copies import alter, render_slices, write_slices

CLASSES = ("A", "B", "C")
N_OWN, N_COPIES = 18, 12  # the other data are copies of slices 0 to 11, and slices 18 to 29
OPTIONS = ("--model", "net", "--image-size", "32", "--batch-size", "4", "--epochs", "1", *ON_CPU)


@pytest.fixture(autouse=True)
def _skip_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_plots(monkeypatch)


def name_slice(number: int) -> str:
    return f"{CLASSES[number % 3]}/{number:02d}.png"


@pytest.fixture(scope="module")
def shared(shared_dir: Path) -> Path:
    """Runs `one` and `folds` on `data`, and the folder `other`; not to be changed."""

    def build(root: Path) -> None:
        slices = render_slices()
        own = {name_slice(number): slices[number] for number in range(N_OWN)}
        again = {f"{name[0]}/again {name[2:]}": alter(own[name], 99) for name in list(own)[:3]}
        others = {name_slice(number): alter(slices[number], number) for number in range(N_COPIES)}
        others |= {name_slice(number): slices[number] for number in range(N_OWN, len(slices))}
        write_slices(root / "source", (own | again).items())
        write_slices(root / "other source", others.items())
        with contextlib.chdir(root):
            assert prepare.main(["source", "--data", "data"]) == 0
            assert prepare.main(["other source", "--data", "other"]) == 0
            command = [*OPTIONS, "--data", "data"]
            assert main.main([*command, "--name", "one"]) == 0
            assert main.main([*command, "--name", "folds", "--folds", "2"]) == 0

    return build_once(shared_dir / "training copies", build)


@pytest.fixture
def root(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `shared` that may be changed, as working folder."""
    folder = shutil.copytree(shared, tmp_path / "work")
    monkeypatch.chdir(folder)
    return folder


def run_evaluate(checkpoint: str, data: str = "other", split: str = "all") -> dict:
    argv = [checkpoint, "--data", data, "--split", split, "--device", "cpu", "--gallery", "0"]
    shutil.rmtree("results", ignore_errors=True)
    assert evaluate.main(argv) == 0
    [folder] = (path for path in Path("results").iterdir() if path.is_dir())
    return read_metrics(Path(), folder.name)


def has_note(report: dict, words: str) -> bool:
    return any(words in note for note in report["notes"])


def read_train(run: str, column: str = "split") -> pd.DataFrame:
    split = pd.read_csv(f"session/{run}/split.csv")
    return split[split[column] == "train"]


def find_copies(train: pd.DataFrame) -> np.ndarray:
    """Return which slices of the other data are copies of a training slice, by their names."""
    numbers = train["path"].str.extract(r"(\d+)\.png")[0].astype(int)
    names = [name_slice(number) for number in set(numbers) if number < N_COPIES]
    return (
        load_manifest(Path("other"))["path"].isin([f"Images/{name}" for name in names]).to_numpy()
    )


def test_a_run_keeps_the_features_of_its_distinct_training_slices(root: Path) -> None:
    train = read_train("one")
    stored = load_duplicates(Path("session/one") / FEATURES_FILE)
    assert stored is not None
    of_set = train.set_index("sha256")["duplicate_set"][stored.digests]
    assert sorted(of_set) == sorted(train["duplicate_set"].unique())
    everything = load_duplicates(Path("session/folds") / FEATURES_FILE)
    assert everything is not None
    trained = pd.concat([read_train("folds", f"fold_{fold}") for fold in (1, 2)])
    assert len(everything.digests) == trained["duplicate_set"].nunique()
    assert not list(Path("session/folds").glob(f"fold_*/{FEATURES_FILE}"))


def test_planted_copies_of_training_slices_are_found(root: Path) -> None:
    expected = find_copies(read_train("one"))
    report = run_evaluate("session/one/best.pt")
    copies = report["copies_of_training"]
    assert 0 < expected.sum() < N_COPIES  # copies of val and test slices are no leak
    assert (copies["n"], copies["n_checked"]) == (expected.sum(), len(expected))
    assert copies["share"] == pytest.approx(expected.mean())
    assert has_note(report, f"LEAK: {expected.sum()} of these {len(expected)} slices")
    assert has_note(report, f"OTHER DATA: {expected.sum()} copies of training slices")
    table = pd.read_csv(next(Path("results").iterdir()) / "predictions.csv")
    hits = (table["label"] == table["predicted"]).to_numpy()
    assert copies["accuracy_without"]["value"] == pytest.approx(hits[~expected].mean())


def test_a_fold_is_compared_with_its_own_training_slices(root: Path) -> None:
    for fold in (1, 2):
        train = read_train("folds", f"fold_{fold}")
        report = run_evaluate(f"session/folds/fold_{fold}/best.pt")
        assert report["copies_of_training"]["n"] == find_copies(train).sum()


def test_other_data_without_copies_are_no_leak(root: Path) -> None:
    others = Path("other/Images")
    for path in [path for path in others.rglob("*.png") if int(path.stem) < N_COPIES]:
        path.unlink()
    assert prepare.main(["other/Images", "--data", "other"]) == 0
    report = run_evaluate("session/one/best.pt")
    copies = report["copies_of_training"]
    assert (copies["n"], copies["share"]) == (0, 0.0)
    assert copies["accuracy_without"] == report["accuracy"]
    assert has_note(report, "no copy of a training slice was found")
    assert not has_note(report, "LEAK")


def test_missing_features_are_reported(root: Path) -> None:
    features = Path("session/one") / FEATURES_FILE
    content = features.read_bytes()
    for broken in (None, content[:1000]):
        features.unlink()
        if broken:
            features.write_bytes(broken)
        report = run_evaluate("session/one/best.pt")
        assert report["copies_of_training"] is None
        assert has_note(report, "copies of training slices were not searched for")
        assert has_note(report, "--resume session/one")
        features.write_bytes(content)
    cache_path(Path("other")).unlink()
    assert has_note(run_evaluate("session/one/best.pt"), "prepare.py other --data other")


def test_a_finished_run_gets_its_features_when_resumed(root: Path) -> None:
    for run in ("one", "folds"):
        features = Path("session") / run / FEATURES_FILE
        before = load_duplicates(features)
        features.unlink()
        cache = cache_path(Path("data"))
        hidden = cache.rename("hidden.npz")
        assert main.main(["--resume", f"session/{run}", "--device", "cpu"]) == 0
        assert not features.exists()  # there is nothing to take them from
        hidden.rename(cache)
        assert main.main(["--resume", f"session/{run}", "--device", "cpu"]) == 0
        after = load_duplicates(features)
        assert before is not None
        assert after is not None
        assert before.digests == after.digests


def test_slices_of_the_run_are_not_searched(root: Path) -> None:
    for split in ("test", "all"):
        report = run_evaluate("session/one/best.pt", "data", split)
        assert report["copies_of_training"] is None
        assert not has_note(report, "OTHER DATA")


def test_recalibration_leaves_out_copies_of_training_slices(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    is_copy = find_copies(read_train("one"))
    table = load_manifest(Path("other"))
    argv = ["session/one/best.pt", "--recalibrate", "other", "--device", "cpu"]
    line = expect_refusal(capsys, evaluate.main(argv))
    assert f"without copies of training slices ({is_copy.sum()} slices)" in line
    monkeypatch.setattr(recalibration, "MIN_GROUPS", 5)
    assert evaluate.main(argv) == 0
    assert f"note: {is_copy.sum()} slices are left out" in capsys.readouterr().out
    values = json.loads(Path("session/one/calibration-other.json").read_text("utf-8"))
    assert values["slices"] == sorted(table["sha256"][~is_copy])
    assert values["calibration"]["n_images"] == (~is_copy).sum()
