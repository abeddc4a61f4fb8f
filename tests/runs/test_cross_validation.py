"""Cross-validation through the command line: K runs, one pooled result."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

import evaluate
import main
import trainer
from helper import UserError
from tests.support.builders import (
    ON_CPU,
    PLOTS,
    QUICK,
    RESULT_FILES,
    SESSION_FILES,
    Run,
    expect_refusal,
    list_files,
    make_data_folder,
    read_metrics,
)

N_FOLDS = 3
COMMAND = [*QUICK, *ON_CPU, "--epochs", "1", "--folds", str(N_FOLDS)]
FOLDS = [f"fold_{fold}" for fold in range(1, N_FOLDS + 1)]


def test_folds_judge_every_slice_once(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([*COMMAND, "--name", "cross v1.2"]) == 0
    session, results = Path("session/cross v1.2"), Path("results/cross v1.2")
    assert {path.name for path in session.iterdir()} == {"config.json", "split.csv", *FOLDS}
    manifest = pd.read_csv("data/phantom/CSV/images.csv")
    judged = []
    for fold in FOLDS:
        assert {path.name for path in (session / fold).iterdir()} == SESSION_FILES
        split = pd.read_csv(session / fold / "split.csv")
        assert split.groupby("group")["split"].nunique().eq(1).all()
        assert set(split["split"]) == {"train", "val", "test"}
        judged.append(split[split["split"] == "test"])
    assert sorted(pd.concat(judged)["path"]) == sorted(manifest["path"])
    report = read_metrics(workplace, "cross v1.2")
    assert report["n_images"] == len(manifest)
    assert report["run"] == "cross v1.2"
    assert any(f"pooled over {N_FOLDS} folds" in note for note in report["notes"])
    assert not any("LEAK" in note for note in report["notes"])
    predictions = pd.read_csv(results / "predictions.csv")
    assert sorted(predictions["path"]) == sorted(manifest["path"])
    assert {path.name for path in results.iterdir()} == RESULT_FILES | {"plots"}
    assert {path.name for path in (results / "plots").iterdir()} == PLOTS - {"training.png"}
    assert "fold 3 of 3" in capsys.readouterr().out

    # the same again, and of one fold alone
    shutil.rmtree("results")
    assert evaluate.main(["session/cross v1.2", "--device", "cpu"]) == 0
    again = read_metrics(workplace, "cross v1.2")
    del report["environment"], again["environment"]
    assert again == report
    assert evaluate.main(["session/cross v1.2/fold_2/best.pt", "--device", "cpu"]) == 0
    assert read_metrics(workplace, "cross v1.2-fold_2")["n_images"] == len(judged[1])
    line = expect_refusal(
        capsys, evaluate.main(["session/cross v1.2", "--device", "cpu", "--split", "val"])
    )
    assert "leave out --split" in line


def test_a_stopped_cross_validation_goes_on(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([*COMMAND, "--name", "whole"]) == 0
    train_step, steps = trainer.Trainer.train_step, iter(range(10**6))

    def interrupt(self: trainer.Trainer, *batch: object) -> object:
        if self.run_dir.name == "fold_2" and next(steps) == 2:
            raise KeyboardInterrupt
        return train_step(self, *batch)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "train_step", interrupt)
        capsys.readouterr()
        line = expect_refusal(capsys, main.main([*COMMAND, "--name", "parts"]), expected=130)
    assert "ended in fold 2; go on with --resume session/parts" in line
    finished = list_files(Path("session/parts/fold_1"))
    line = expect_refusal(capsys, evaluate.main(["session/parts", "--device", "cpu"]))
    assert "--resume session/parts" in line
    assert main.main(["--resume", "session/parts", "--device", "cpu"]) == 0
    assert list_files(Path("session/parts/fold_1"))["split.csv"] == finished["split.csv"]
    reports = [read_metrics(workplace, run) for run in ("whole", "parts")]
    assert reports[0]["accuracy"] == reports[1]["accuracy"]
    assert reports[0]["confusion_matrix"] == reports[1]["confusion_matrix"]


def test_a_fold_killed_at_its_start_is_begun_again(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "evaluate", lambda _: None)
    assert main.main([*COMMAND, "--name", "cross"]) == 0
    (Path("session/cross/fold_2/last.pt")).unlink()
    assert main.main(["--resume", "session/cross", "--device", "cpu"]) == 0
    assert (Path("session/cross/fold_2/last.pt")).exists()
    (Path("session/cross/fold_2/last.pt")).unlink()
    capsys.readouterr()
    status = main.main(["--resume", "session/cross/fold_2", "--device", "cpu"])
    assert "last.pt" in expect_refusal(capsys, status)
    assert {path.name for path in Path("session/cross/fold_2").iterdir()} < SESSION_FILES


def test_folds_of_changed_slices_are_not_mixed(
    workplace: Path,
    phantom_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("data/phantom").unlink()
    shutil.copytree(phantom_dir, "data/phantom", ignore=shutil.ignore_patterns("cache"))
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "evaluate", lambda _: None)
        assert main.main([*COMMAND, "--name", "cross"]) == 0
    path = Path("data/phantom/CSV/images.csv")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.iloc[1:].to_csv(path, index=False)
    Path("data/phantom", table["path"].iloc[0]).unlink()
    capsys.readouterr()
    line = expect_refusal(capsys, main.main(["--resume", "session/cross", "--device", "cpu"]))
    assert "session/cross/split.csv: the slices are not divided as when the run began" in line


def test_overlapping_folds_are_refused(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "evaluate", lambda _: None)
        assert main.main([*COMMAND, "--name", "cross"]) == 0
    shutil.copy("session/cross/fold_1/best.pt", "session/cross/fold_2/best.pt")
    line = expect_refusal(capsys, evaluate.main(["session/cross", "--device", "cpu"]))
    assert "its folds overlap" in line


def test_folds_of_single_images_are_called_leaky(workplace: Path) -> None:
    assert main.main([*COMMAND, "--split-by", "image", "--name", "leaky"]) == 0
    notes = read_metrics(workplace, "leaky")["notes"]
    assert any("LEAKY SPLIT" in note for note in notes)


def test_too_many_folds_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_data_folder(tmp_path / "data")
    command = ["--model", "net", "--image-size", "32", "--folds", "7", "--name", "many"]
    assert "too few for --folds 7" in expect_refusal(capsys, main.main(command))
    assert not Path("session").exists()
    with pytest.raises(SystemExit) as caught:
        main.main(["--folds", "1"])
    assert caught.value.code == 2


def test_a_failed_first_fold_gives_the_name_back(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise UserError("no such luck")

    monkeypatch.setattr(trainer.Trainer, "fit", fail)
    assert "no such luck" in expect_refusal(capsys, main.main([*COMMAND, "--name", "failed"]))
    assert not Path("session/failed").exists()


def test_a_single_run_is_no_run_of_folds(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    line = expect_refusal(capsys, evaluate.main(["session/first", "--device", "cpu"]))
    assert "session/first" in line
