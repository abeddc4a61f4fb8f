"""Cross-validation: K runs and one pooled result, stopped, resumed and refused."""

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest

import main
import trainer
from common import atomic_files, signals
from evaluation.predictions import predict_run
from helper import UserError
from modeling import checkpoint
from preparation.manifest import load_manifest, write_manifest
from runs import lifecycle
from tests.support.builders import (
    ON_CPU,
    QUICK,
    RESULT_FILES,
    SESSION_FILES,
    Capture,
    Patch,
    assert_same_weights,
    expect_refusal,
    make_data_folder,
    raise_in_step,
    read_metrics,
)

COMMAND = [*QUICK, *ON_CPU, "--epochs", "1", "--folds", "3"]
RUN_FILES = {"config.json", "split.csv", "ensemble.json"}
FOLDS = ["fold_1", "fold_2", "fold_3"]
RESUME = ["--resume", "session/cross", "--device", "cpu"]
PREDICT = {"device": "cpu", "batch_size": 64, "threads": 0}


def test_every_slice_is_tested_once(cross_run: Path) -> None:
    session, results = cross_run / "session/cross", cross_run / "results/cross"
    assert {path.name for path in session.iterdir()} == {*RUN_FILES, *FOLDS}
    manifest = pd.read_csv(cross_run / "data/phantom/CSV/images.csv")
    tested = []
    for fold in FOLDS:
        assert {path.name for path in (session / fold).iterdir()} == SESSION_FILES
        assert checkpoint.load_run(session / fold / "best.pt")["run"] == f"cross-{fold}"
        split = pd.read_csv(session / fold / "split.csv")
        assert split.groupby("group")["split"].nunique().eq(1).all()
        assert set(split["split"]) == {"train", "val", "test"}
        tested.extend(split.loc[split["split"] == "test", "path"])
    assert sorted(tested) == sorted(manifest["path"])
    report = read_metrics(cross_run, "cross")
    assert (report["n_images"], report["run"]) == (len(manifest), "cross")
    assert any("pooled over 3 folds" in note for note in report["notes"])
    assert not any("LEAK" in note for note in report["notes"])
    predictions = pd.read_csv(results / "predictions.csv")
    assert sorted(predictions["path"]) == sorted(manifest["path"])
    assert {path.name for path in results.iterdir()} == RESULT_FILES | {"plots"}
    assert not (results / "plots/training.png").exists()


@pytest.mark.usefixtures("crossed")
def test_a_cross_validation_is_predicted_as_a_whole_or_by_fold() -> None:
    split = pd.read_csv("session/cross/fold_2/split.csv")["split"]
    pooled = predict_run(Path("session/cross"), "test", None, **PREDICT)
    one = predict_run(Path("session/cross/fold_2/best.pt"), "test", None, **PREDICT)
    assert (len(pooled.rows), len(one.rows)) == (len(split), (split == "test").sum())
    with pytest.raises(UserError, match="leave out --split"):
        predict_run(Path("session/cross"), "val", None, **PREDICT)
    Path("session/cross/fold_2/best.pt").unlink()
    shutil.copy("session/cross/fold_1/best.pt", "session/cross/fold_2/best.pt")
    with pytest.raises(UserError, match="overlap"):
        predict_run(Path("session/cross"), "test", None, **PREDICT)


@pytest.mark.usefixtures("workplace", "no_evaluation")
def test_resumed_folds_are_exact(cross_run: Path, monkeypatch: Patch, capsys: Capture) -> None:
    train_step = trainer.Trainer.train_step

    def interrupt(self: trainer.Trainer, *arguments: object) -> object:
        if self.run_dir.name == "fold_2":
            raise KeyboardInterrupt
        return train_step(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "train_step", interrupt)
        line = expect_refusal(capsys, main.main([*COMMAND, "--name", "cross"]), expected=130)
    assert "fold 2" in line
    assert "--resume session/cross" in line
    with pytest.raises(UserError, match="--resume session/cross"):
        predict_run(Path("session/cross"), "test", None, **PREDICT)
    assert main.main(RESUME) == 0
    for fold in FOLDS:
        path = Path("session/cross", fold, "last.pt")
        assert_same_weights(checkpoint.load_run(cross_run / path), checkpoint.load_run(path))


@pytest.mark.usefixtures("crossed", "no_evaluation")
def test_a_fold_killed_at_its_start_restarts(capsys: Capture) -> None:
    path = Path("session/cross/fold_2/last.pt")
    path.unlink()
    with atomic_files.lock(Path("session/cross"), "busy"):
        assert "another program" in expect_refusal(capsys, main.main(RESUME))
    assert path.with_name("best.pt").exists()
    assert main.main(RESUME) == 0
    path.unlink()
    capsys.readouterr()
    status = main.main(["--resume", "session/cross/fold_2", "--device", "cpu"])
    assert "last.pt" in expect_refusal(capsys, status)


@pytest.mark.usefixtures("workplace", "no_evaluation")
def test_folds_without_a_save_can_be_resumed(monkeypatch: Patch, capsys: Capture) -> None:
    def fill_the_disk(path: Path, content: dict[str, Any]) -> None:
        if content["epoch"]:
            raise OSError(28, "No space left on device", str(path))
        checkpoint.save_checkpoint(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "build_trainer", Mock(side_effect=signals.Terminated))
        line = expect_refusal(capsys, main.main([*COMMAND, "--name", "cross"]), 143)
    assert "fold 1" in line
    assert "--resume session/cross" in line
    (Path("session/cross/.part-fold") / "inside").mkdir(parents=True)  # killed in new_folder
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_checkpoint", fill_the_disk)
        line = expect_refusal(capsys, main.main(RESUME))
    assert "fold 1: session/cross/fold_1/last.pt: No space left on device" in line
    assert "--resume session/cross" in line
    assert main.main(RESUME) == 0
    assert Path("session/cross/fold_3/best.pt").exists()
    assert not list(Path("session/cross").glob(".*"))


@pytest.mark.usefixtures("crossed")
def test_folds_of_changed_slices_are_refused(phantom_dir: Path, capsys: Capture) -> None:
    Path("data/phantom").unlink()
    shutil.copytree(phantom_dir, "data/phantom", ignore=shutil.ignore_patterns("cache"))
    table = load_manifest(Path("data/phantom"))
    write_manifest(table.iloc[1:], Path("data/phantom"))
    Path("data/phantom", table["path"].iloc[0]).unlink()
    line = expect_refusal(capsys, main.main(RESUME))
    assert "session/cross/split.csv: the slices have changed" in line


def test_too_many_folds_leave_nothing_behind(empty_dir: Path, capsys: Capture) -> None:
    make_data_folder(empty_dir / "data")
    command = ["--model", "net", "--image-size", "32", "--folds", "7", "--name", "many"]
    assert "too few for --folds 7" in expect_refusal(capsys, main.main(command))
    assert not Path("session").exists()


@pytest.mark.usefixtures("workplace")
def test_the_name_of_failed_folds_can_be_used_again(monkeypatch: Patch, capsys: Capture) -> None:
    with monkeypatch.context() as patch:
        raise_in_step(patch, 0, UserError("no such luck"))
        assert "no such luck" in expect_refusal(capsys, main.main([*COMMAND, "--name", "failed"]))
    for folder in ("session/failed", "session/failed/fold_1"):
        assert "no such luck" in Path(folder, "failed.txt").read_text("utf-8")
    with monkeypatch.context() as patch:
        raise_in_step(patch, 0, UserError("bad luck again"))
        assert "bad luck" in expect_refusal(capsys, main.main([*COMMAND, "--name", "failed"]))
    assert main.main(["--resume", "session/failed", "--device", "cpu"]) == 0
    assert not list(Path("session/failed").rglob("failed.txt"))
