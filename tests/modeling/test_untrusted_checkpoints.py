"""Checkpoints from elsewhere: code in them is never run, and invalid entries are named."""

import copy
import functools
import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import evaluate
import export
import main
import predict
from helper import UserError
from modeling.checkpoint import LAST_TYPES, RUN_TYPES, check_progress, load_run, restore_model
from tests.support.builders import Capture, Run, expect_refusal

BEST, LAST = Path("session/first/best.pt"), Path("session/first/last.pt")
CPU = ("--device", "cpu", "--threads", "1")
RESUME = ["--resume", "session/first", "--device", "cpu"]
MISSING = object()


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


def test_code_in_a_checkpoint_is_never_run(trained: Run, capsys: Capture) -> None:
    Path("whole.pt").write_bytes(pickle.dumps(Payload()))
    torch.save({**torch.load(BEST, weights_only=True), "notes": Payload()}, "within.pt")
    with zipfile.ZipFile("zip.pt", "w") as archive:
        archive.writestr("zip/data.pkl", pickle.dumps({"schema": 2, "a": Payload()}))
        archive.writestr("zip/version", "3")
    for path in ("whole.pt", "within.pt", "zip.pt"):
        shutil.copy(path, "new.pt")
        Path("new.pt").replace(LAST)
        for command, argv in (
            (evaluate.main, [path, *CPU, "--name", "new"]),
            (predict.main, [path, "data/phantom/Images", *CPU]),
            (export.main, [path, "--threads", "1"]),
            (main.main, RESUME),
        ):
            assert "weights_only=True refuses code" in expect_refusal(capsys, command(argv))
    assert not Path("ran").exists()
    assert not Path("results/new").exists()


@pytest.fixture(scope="module")
def checkpoints(first_run: Run) -> dict[str, Any]:
    return {path.name: torch.load(first_run.root / path) for path in (BEST, LAST)}


def change(checkpoint: dict[str, Any], keys: str, value: Any) -> dict[str, Any]:
    """Return a copy with another value, or without it, at keys such as `config.data.split_by`."""
    changed = copy.deepcopy(checkpoint)
    *parents, key = keys.split(".")
    part = functools.reduce(dict.__getitem__, parents, changed)
    if key == "*":  # the first weight
        key = next(iter(part))
        value = torch.full_like(part[key], value) if isinstance(value, float) else value
    if value is MISSING:
        del part[key]
    else:
        part[key] = value
    return changed


def load(path: Path) -> None:
    check = check_progress if path.name == "last.pt" else restore_model
    check(load_run(path), path)


def expect_error(path: Path, checkpoint: dict[str, Any], words: str) -> None:
    torch.save(checkpoint, path)
    with pytest.raises(UserError) as caught:
        load(path)
    assert f"{path}: " in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        ("schema", MISSING, "not a checkpoint of this program"),
        ("schema", 1, "checkpoint schema 1, this program reads"),
        ("schema", 4, "checkpoint schema 4, this program reads 5; train again"),
        ("classes", [], "classes must be two plain names or more, each once, but is []"),
        ("classes", ["A", "A", "B"], "classes must be two plain names or more"),
        ("classes", ["=1+1", "Menin", "Tumor"], "classes must be two plain names or more"),
        ("classes", ["Glioma", "Menin"], "do not fit net with 2 classes"),
        ("model", "resnet18", "do not fit resnet18 with 3 classes"),
        ("model", "nothing", "model must be a model of this version, but is 'nothing'"),
        ("model", "fasterrcnn_resnet50_fpn", "model must be"),
        ("weights.*", MISSING, "Missing key(s)"),
        ("weights.more", torch.zeros(1), "Unexpected key(s)"),
        ("weights.*", float("nan"), "weights must be finite"),
        ("weights.*", "text", "do not fit net with 3 classes"),
        ("preprocess.image_size", 0, "preprocess must be image_size (16 to 2048 px)"),
        ("preprocess.image_size", 10**6, "preprocess must be"),
        ("preprocess.intensity", "none", "preprocess must be"),
        ("preprocess.value_ranges", {"integers": [0, "9"]}, "preprocess must be"),
        ("preprocess", {"mean": 0.5}, "preprocess must be"),
        ("preprocess", {1: 2, "mean": 0.5}, "preprocess must be"),
        ("config.data.split_by", ["group"], "config must be the options of a run"),
        ("config", {}, "config must be"),
        ("config.model.dropout", 5.0, "config must be"),
        ("threads", 20000, "threads must be 1 to 1024, but is 20000"),
        ("precision", "bf17", "precision must be fp32, bf16 or fp16"),
        ("best", {"x": 1}, "best must be the row of an epoch"),
        ("run", "..", "run must be a plain name"),
        ("run", "", "run must be a plain name"),
        ("run", "a\\b", "run must be a plain name"),
        ("split.split", [], "split must be as many splits as sha256"),
    ],
)
def test_invalid_entries_are_named(
    checkpoints: dict[str, Any], tmp_path: Path, keys: str, value: Any, words: str
) -> None:
    expect_error(tmp_path / "best.pt", change(checkpoints["best.pt"], keys, value), words)


def test_missing_and_wrong_types_are_named(checkpoints: dict[str, Any], tmp_path: Path) -> None:
    for name, types in (("best.pt", RUN_TYPES), ("last.pt", LAST_TYPES)):
        for key, kind in types.items():
            missing, none = (change(checkpoints[name], key, value) for value in (MISSING, None))
            expect_error(tmp_path / name, missing, f"{key} missing")
            wrong = f"{key} must be of type {kind.__name__}, but is of type NoneType"
            expect_error(tmp_path / name, none, wrong)


def test_invalid_progress_is_named(checkpoints: dict[str, Any], tmp_path: Path) -> None:
    values: list[tuple[str, Any]] = [("micro_batch", 0), ("epoch", -1), ("partial_epoch", 5)]
    for losses, skipped in ((torch.zeros(2, 2), 0), ([1.0], 0), (torch.zeros(2), None)):
        values.append(("partial_epoch", {"losses": losses, "skipped_steps": skipped}))
    for key, value in values:
        changed = change(checkpoints["last.pt"], key, value)
        expect_error(tmp_path / "last.pt", changed, f"{key} must be ")


def test_a_run_that_cannot_be_resumed_is_refused(
    trained: Run, checkpoints: dict[str, Any], capsys: Capture
) -> None:
    def resume(keys: str, value: Any) -> str:
        torch.save(change(checkpoints["last.pt"], keys, value), "changed.pt")
        Path("changed.pt").replace(LAST)  # LAST is a link to the file of other tests
        return expect_refusal(capsys, main.main(RESUME))

    assert "last.pt: its training state" in resume("optimizer", {"state": {}, "param_groups": []})
    for keys, value in (
        *(("train.epochs", "many"), ("train.batch_size", 1), ("train.unknown", 1)),
        *(("run.precision", "fp8"), ("run.tensorboard", 1)),
    ):
        line = resume(f"config.{keys}", value)
        assert "last.pt: not the options of a run of this version" in line
        assert keys.split(".")[1] in line
    LAST.unlink()
    changed = change(checkpoints["last.pt"], "config.train.epochs", "many")
    options = json.dumps(changed["config"])
    for content, words in ((options, "not the options"), ("{", "not JSON")):
        Path("session/first/config.json").unlink()
        Path("session/first/config.json").write_text(content)
        assert f"config.json: {words}" in expect_refusal(capsys, main.main(RESUME))
