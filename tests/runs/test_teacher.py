"""--teacher: out-of-fold probabilities as targets, and no slice taught by who saw it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import dataset
import main
from evaluation.calibration import average_softmax
from evaluation.held_out import HeldOut
from helper import UserError
from loading.image_source import MemorySlices
from preparation.manifest import load_manifest
from runs.teacher import build_targets
from tests.support.builders import ON_CPU, QUICK, Capture, expect_refusal

RUN = Path("session/cross")
CLASSES = ["Glioma", "Menin", "Tumor"]
TRAIN = [*QUICK, *ON_CPU, "--epochs", "1"]


def read_outputs() -> HeldOut:
    return HeldOut.from_record(json.loads((RUN / "ensemble.json").read_text("utf-8"))["outputs"])


def make_table() -> pd.DataFrame:
    """The slices of the teacher in reverse order as training slices."""
    outputs = read_outputs()
    table = pd.DataFrame(
        {
            **{"path": outputs.path, "sha256": outputs.sha256, "group": outputs.groups},
            **{"label": [CLASSES[label] for label in outputs.labels], "split": "train"},
        }
    )
    return table.iloc[::-1].reset_index(drop=True)


@pytest.mark.usefixtures("crossed")
def test_targets_are_out_of_fold_probabilities_and_labels() -> None:
    outputs, table = read_outputs(), make_table()
    probs = average_softmax(outputs.logits)[::-1]
    hard = np.eye(3)[outputs.labels[::-1]]
    for weight in (0.0, 0.25, 1.0):
        targets = build_targets(RUN, weight, table, CLASSES)
        np.testing.assert_allclose(targets, weight * probs + (1 - weight) * hard, atol=1e-6)
    assert targets.dtype == torch.float32


@pytest.mark.usefixtures("crossed")
def test_initial_weights_of_a_teacher_must_not_know_the_slices(tmp_path: Path) -> None:
    table = make_table()
    tested = table[:4].assign(sha256=[f"{row}" for row in range(4)], group="x", split="test")
    both = pd.concat([table, tested], ignore_index=True)
    build_targets(RUN, 0.5, both, CLASSES)
    split = {"sha256": ["1", "2"], "split": ["train", "val"]}
    torch.save({"schema": 3, "split": split}, tmp_path / "first.pt")
    config = json.loads((RUN / "config.json").read_text("utf-8"))
    config["model"]["weights"] = str(tmp_path / "first.pt")
    (RUN / "config.json").unlink()  # a hard link
    (RUN / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(UserError, match=r"started from other weights .*LEAK: it was trained on 1"):
        build_targets(RUN, 0.5, both, CLASSES)


@pytest.mark.usefixtures("crossed")
def test_other_teachers_are_refused() -> None:
    table = make_table()

    def refuse(words: str, table: pd.DataFrame = table, path: Path = RUN) -> None:
        with pytest.raises(UserError, match=words) as caught:
            build_targets(path, 0.5, table, CLASSES)
        assert "\n" not in str(caught.value)

    tested = table.assign(split=["test" if row < 4 else "train" for row in range(len(table))])
    refuse(r"trained on 4 of the 4 slices .* --keep-test", tested)
    relative = tested.assign(
        sha256=[f"{row}" if row < 4 else x for row, x in enumerate(table["sha256"])]
    )
    refuse("slices of the groups of 4 slices", relative)
    refuse("no outputs for 1 of", pd.concat([table, table[:1].assign(sha256="x", path="new.png")]))
    refuse("not session/RUN of a run with --folds", path=RUN / "fold_1")
    refuse("not session/RUN of a run with --folds", path=Path("nowhere"))
    with pytest.raises(UserError, match="has the classes Glioma, Menin, Tumor, these data A, B"):
        build_targets(RUN, 0.5, table, ["A", "B"])
    shutil.rmtree(RUN / "fold_2")
    refuse("fold_2/best.pt is missing")


def test_batches_carry_the_targets_of_their_slices() -> None:
    pixels = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    slices = MemorySlices(pixels, torch.arange(10) % 3)
    slices.targets = torch.arange(10).view(10, 1) / torch.ones(3)
    halves = [slices.shuffle(4, 0, 0, part, 2) for part in range(2)]  # of two processes
    for batch in (*slices.shuffle(4, seed=0, epoch=0), *halves[0], *halves[1]):
        for part in batch.split(2):
            assert part.targets is not None
            assert torch.equal(part.targets[:, 0], part.pixels.flatten().float())
    slices.targets = None
    assert all(part.targets is None for batch in slices.shuffle(4, 0, 0) for part in batch.split(2))


def test_folds_can_leave_the_test_split_out(phantom_dir: Path) -> None:
    tables = dataset.load_fold_tables(phantom_dir, "group", None, 3, keep_test=True)
    manifest = load_manifest(phantom_dir)
    kept = set(manifest["path"][manifest["split"] != "test"])
    held_out = [path for table in tables for path in table["path"][table["split"] == "test"]]
    assert sorted(held_out) == sorted(kept)


@pytest.mark.integration
@pytest.mark.usefixtures("crossed", "no_evaluation")
def test_a_student_learns_from_a_teacher(capsys: Capture) -> None:
    line = expect_refusal(capsys, main.main([*TRAIN, "--teacher", "session/cross", "--name", "s"]))
    assert "was trained on" in line
    assert "--keep-test" in line
    folds = ["--folds", "3", "--keep-test", "--name", "teacher"]
    assert main.main([*TRAIN, *folds]) == 0
    teach = ["--teacher", "session/teacher", "--teacher-weight", "0.9", "--name", "student"]
    assert main.main([*TRAIN, *teach]) == 0
    assert main.main([*TRAIN, "--name", "alone"]) == 0
    losses = [
        pd.read_csv(f"session/{name}/history.csv")["train_loss"].iloc[0]
        for name in ("student", "alone")
    ]
    assert losses[0] != losses[1]
    # a resumed run neither needs its teacher nor changes with it
    last = torch.load("session/student/last.pt", weights_only=True)
    n_train = last["split"]["split"].count("train")
    assert last["targets"].shape == (n_train, 3)
    table = dataset.load_table(Path("data/phantom"))
    expected = build_targets(Path("session/teacher"), 0.9, table, CLASSES)
    assert torch.equal(last["targets"], expected)
    shutil.rmtree("session/teacher")
    assert main.main(["--resume", "session/student", "--epochs", "2", "--device", "cpu"]) == 0
    again = torch.load("session/student/last.pt", weights_only=True)
    assert torch.equal(again["targets"], last["targets"])
    assert "train one first" in expect_refusal(
        capsys, main.main([*TRAIN, *teach[:4], "--name", "t"])
    )
    assert not Path("session/t").exists()
    wrongs = (["--folds", "2", *teach], ["--keep-test"], ["--teacher-weight", "0.1"])
    for wrong in (*wrongs, ["--split-seed", "1", *teach], ["--layer-decay", "0.1"]):
        with pytest.raises(SystemExit, match="2"):
            main.main([*TRAIN, *wrong])
