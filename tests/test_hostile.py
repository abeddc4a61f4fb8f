"""Checkpoints that come by mail: nothing in them is run, and what does not fit is named."""

import copy
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import evaluate
import export
import main
import predict
from modeling import checkpoint
from tests.support.builders import Run, expect_refusal

BEST, LAST = Path("session/first/best.pt"), Path("session/first/last.pt")
CPU = ("--device", "cpu", "--threads", "1")


def judge(path: Path | str = "mail.pt") -> int:
    return evaluate.main([str(path), *CPU, "--name", "mail"])


def send(change: Callable[[dict[str, Any]], object]) -> None:
    """best.pt, changed, as a file that somebody sent."""
    kept = torch.load(BEST, weights_only=True)
    change(kept)
    torch.save(kept, "mail.pt")


def put(kept: dict[str, Any]) -> None:
    """Another last.pt."""
    LAST.unlink()  # it may be a link to that of other tests
    torch.save(kept, LAST)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("where", ["whole", "within", "in a zip"])
def test_code_in_a_checkpoint_is_never_run(
    trained: Run, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    if where == "whole":
        Path("mail.pt").write_bytes(pickle.dumps(Payload()))
    elif where == "within":
        torch.save({**torch.load(BEST, weights_only=True), "notes": Payload()}, "mail.pt")
    else:
        with zipfile.ZipFile("mail.pt", "w") as archive:
            archive.writestr("mail/data.pkl", pickle.dumps({"schema": 2, "a": Payload()}))
            archive.writestr("mail/version", "3")
    for verb in (
        lambda: judge(),
        lambda: predict.main(["mail.pt", "data/phantom/Images", *CPU]),
        lambda: export.main(["mail.pt", "--threads", "1"]),
    ):
        line = expect_refusal(capsys, verb())
        assert "mail.pt: not readable as plain tensors (weights_only=True refuses code)" in line
    shutil.move("mail.pt", LAST)
    line = expect_refusal(capsys, main.main(["--resume", "session/first", "--device", "cpu"]))
    assert "weights_only=True refuses code" in line
    assert not Path("ran").exists()
    assert not Path("results/mail").exists()


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "schema": (lambda kept: kept.update(schema=1), "checkpoint schema 1, this program reads 2"),
    "no classes": (
        lambda kept: kept.update(classes=[]),
        "its classes should be two plain names or more",
    ),
    "a class twice": (
        lambda kept: kept.update(classes=["A", "A", "B"]),
        "its classes should be two plain names or more, each once, and is ['A', 'A', 'B']",
    ),
    "a class too few": (
        lambda kept: kept.update(classes=["Glioma", "Menin"]),
        "its weights do not fit net with 2 classes",
    ),
    "another network": (
        lambda kept: kept.update(model="resnet18"),
        "its weights do not fit resnet18 with 3 classes",
    ),
    "an unknown network": (
        lambda kept: kept.update(model="nothing"),
        "its model should be one that this version knows, and is 'nothing'",
    ),
    "a weight is missing": (
        lambda kept: kept["weights"].pop(next(iter(kept["weights"]))),
        "its weights do not fit net with 3 classes (Missing key(s) in state_dict: ",
    ),
    "a weight too many": (
        lambda kept: kept["weights"].update(more=torch.zeros(1)),
        "its weights do not fit net with 3 classes (Unexpected key(s) in state_dict: ",
    ),
    "a weight is NaN": (
        lambda kept: next(iter(kept["weights"].values())).fill_(float("nan")),
        "its weights should be numbers; ",
    ),
    "a weight is no tensor": (
        lambda kept: kept["weights"].update({next(iter(kept["weights"])): "text"}),
        "its weights do not fit net with 3 classes",
    ),
    "slices of no size": (
        lambda kept: kept["preprocess"].update(image_size=0),
        "its preprocess should be image_size (16 to 2048 px), mean and std, and is ",
    ),
    "slices of vast size": (
        lambda kept: kept["preprocess"].update(image_size=10**6),
        "its preprocess should be image_size (16 to 2048 px), mean and std, and is ",
    ),
    "other preprocessing": (
        lambda kept: kept.update(preprocess={"mean": 0.5}),
        "its preprocess should be image_size (16 to 2048 px), mean and std, and is {'mean': 0.5}",
    ),
    "preprocessing of other keys": (
        lambda kept: kept.update(preprocess={1: 2, "mean": 0.5}),
        "its preprocess should be image_size (16 to 2048 px), mean and std",
    ),
    "a split by a list": (
        lambda kept: kept["config"]["data"].update(split_by=["group"]),
        "its config should be the options of a run",
    ),
    "no options": (
        lambda kept: kept.update(config={}),
        "its config should be the options of a run",
    ),
    "a class that is a formula": (
        lambda kept: kept.update(classes=["=1+1", "Menin", "Tumor"]),
        "its classes should be two plain names or more",
    ),
    "a network that is no classifier": (
        lambda kept: kept.update(model="fasterrcnn_resnet50_fpn"),
        "its model should be one that this version knows, and is 'fasterrcnn_resnet50_fpn'",
    ),
    "dropout out of range": (
        lambda kept: kept["config"]["model"].update(dropout=5.0),
        "its config should be the options of a run",
    ),
    "threads without number": (
        lambda kept: kept.update(threads=20000),
        "its threads should be 1 to 1024, and is 20000",
    ),
    "another precision": (
        lambda kept: kept.update(precision="bf17"),
        "its precision should be fp32 or bf16, and is 'bf17'",
    ),
    "a best epoch that is none": (
        lambda kept: kept.update(best={"x": 1}),
        "its best should be the row of an epoch",
    ),
    "a run outside": (lambda kept: kept.update(run=".."), "its run name '..' is no plain name"),
    "a run of no name": (lambda kept: kept.update(run=""), "its run name '' is no plain name"),
    "half a split": (
        lambda kept: kept["split"]["split"].pop(),
        "its split should be as many splits as sha256",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_named(
    trained: Run, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    change, words = FAULTS[fault]
    send(change)
    line = expect_refusal(capsys, judge())
    assert "mail.pt: " in line
    assert words in line
    assert "--debug" not in line
    assert not Path("results/mail").exists()


@pytest.mark.parametrize("key", checkpoint.RUN_TYPES)
def test_every_part_is_missed_and_told_from_another_kind(
    trained: Run, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    send(lambda kept: kept.pop(key))
    assert f"mail.pt: not a checkpoint of a run; {key} missing" in expect_refusal(capsys, judge())
    send(lambda kept: kept.update({key: None}))
    line = expect_refusal(capsys, judge())
    kind = checkpoint.RUN_TYPES[key].__name__
    assert f"mail.pt: its {key} should be of type {kind}, and is of type NoneType" in line


@pytest.mark.parametrize("key", checkpoint.LAST_TYPES)
def test_every_part_that_a_run_goes_on_with_is_missed(
    trained: Run, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    before = torch.load(LAST, weights_only=True)
    for change, words in (
        (lambda kept: kept.pop(key), f"last.pt: not a checkpoint of a run; {key} missing"),
        (lambda kept: kept.update({key: "x"}), f"last.pt: its {key} should be of type "),
    ):
        kept = copy.deepcopy(before)
        change(kept)
        put(kept)
        line = expect_refusal(capsys, main.main(["--resume", "session/first", "--device", "cpu"]))
        assert words in line


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"micro_batch": 0}, "its micro_batch should be 1 or more"),
        ({"begun": 5}, "its begun should be losses and weights of steps, and is 5"),
        (
            {"begun": {"losses": torch.zeros(2), "weights": [8]}},
            "its begun should be as many losses as weights",
        ),
    ],
)
def test_steps_that_are_none_are_named(
    trained: Run, capsys: pytest.CaptureFixture[str], values: dict[str, Any], words: str
) -> None:
    put({**torch.load(LAST, weights_only=True), **values})
    line = expect_refusal(capsys, main.main(["--resume", "session/first", "--device", "cpu"]))
    assert f"session/first/last.pt: {words}" in line


def test_a_state_of_training_that_does_not_fit_is_named(
    trained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = torch.load(LAST, weights_only=True)
    put({**kept, "optimizer": {"state": {}, "param_groups": []}})
    line = expect_refusal(capsys, main.main(["--resume", "session/first", "--device", "cpu"]))
    assert "last.pt: the state of its training is not that of this run (ValueError: " in line


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("train", {"epochs": "many"}, "epochs should be of type int, and is 'many'"),
        ("train", {"batch_size": 1}, "batch_size"),
        ("run", {"precision": "fp8"}, "precision should be one of auto, fp32, bf16"),
        ("run", {"tensorboard": 1}, "tensorboard should be of type bool, and is '1'"),
        ("train", {"unknown": 1}, "unknown"),
    ],
)
def test_options_that_are_none_are_named(
    trained: Run,
    capsys: pytest.CaptureFixture[str],
    section: str,
    values: dict[str, Any],
    words: str,
) -> None:
    kept = torch.load(LAST, weights_only=True)
    kept["config"][section].update(values)
    put(kept)
    resume = ["--resume", "session/first", "--device", "cpu"]
    line = expect_refusal(capsys, main.main(resume))
    assert "last.pt: not the options of a run of this version" in line
    assert words in line
    LAST.unlink()
    Path("session/first/config.json").unlink()
    Path("session/first/config.json").write_text(json.dumps(kept["config"]))
    line = expect_refusal(capsys, main.main(resume))
    assert "config.json: not the options of a run of this version" in line
    Path("session/first/config.json").write_text("{")
    assert "config.json: not JSON" in expect_refusal(capsys, main.main(resume))
