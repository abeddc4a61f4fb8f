"""Builders that several tests share: data folders, slices, configurations, trainers."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

import args

if TYPE_CHECKING:
    from loading.image_source import MemorySlices
    from model import Classifier

ROOT = Path(__file__).resolve().parents[2]
Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
PHANTOMS = 60
QUICK = ("--phantom", "--model", "net", "--image-size", "32", "--batch-size", "8")
ON_CPU = ("--device", "cpu", "--precision", "fp32")


# ---- what a run leaves

SESSION_FILES = {"config.json", "split.csv", "history.csv", "last.pt", "best.pt"}
RESULT_FILES = {
    *("metrics.json", "predictions.csv", "patients.csv", "label_review.csv"),
    *("report.html", "model_card.md"),
}
PLOTS = {
    "accuracy.png",
    "confusion_matrix.png",
    "class_metrics.png",
    "roc.png",
    "pr.png",
    "training.png",
    "reliability.png",
    "risk_coverage.png",
    "errors.png",
    "least_certain.png",
}
FIGURES = (
    *("accuracy", "accuracy_per_slice", "precision_macro", "recall_macro", "f1_macro"),
    *("roc_auc_macro", "mcc"),
)


def read_metrics(root: Path, name: str) -> dict:
    return json.loads((root / "results" / name / "metrics.json").read_text("utf-8"))


def assert_same_weights(one: dict, other: dict) -> None:
    """Check that two contents of last.pt hold the same weights, to the bit."""
    import torch

    for key in ("weights", "trained_weights"):
        assert all(torch.equal(value, other[key][name]) for name, value in one[key].items())


def run_python(*command: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run Python in another process, which finds the modules of the project, until it ends."""
    argv = [sys.executable, *map(str, command)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False, **options)


def raise_in_step(monkeypatch: pytest.MonkeyPatch, number: int, event: object) -> None:
    """At the start of a training step, send a signal to this process or raise an exception."""
    from trainer import Trainer

    train_step = Trainer.train_step

    def run(self: Trainer, batch: Any, step: int) -> Any:
        if step == number:
            if isinstance(event, BaseException):
                raise event
            os.kill(os.getpid(), event)  # type: ignore[arg-type]
        return train_step(self, batch, step)

    monkeypatch.setattr(Trainer, "train_step", run)


def expect_refusal(capsys: pytest.CaptureFixture[str], status: int, expected: int = 1) -> str:
    """The status is the expected one and the error one line, which is returned."""
    captured = capsys.readouterr()
    assert status == expected, captured.err
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in captured.err
    return errors[0]


# ---- data folders


def link_phantoms(root: Path, phantom_dir: Path) -> None:
    """Put the phantoms where main.py looks for them."""
    (root / "data").mkdir()
    (root / "data" / "phantom").symlink_to(phantom_dir, target_is_directory=True)


def make_data_folder(root: Path, classes: tuple[str, ...] = ("A", "B"), n_each: int = 6) -> Path:
    """A prepared folder of small noise pictures, each its own slice and group."""
    from preparation.manifest import build_manifest, write_manifest

    rng = np.random.default_rng(0)
    for label in classes:
        folder = root / "Images" / label
        folder.mkdir(parents=True)
        for number in range(n_each):
            pixels = rng.integers(0, 256, (20 + number, 24), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    write_manifest(build_manifest(root), root)
    return root


def hash_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def list_files(root: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its content."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hash_file(path) for path in files}


# ---- configurations, slices, trainers


def make_config(**values: Any) -> args.TrainConfig:
    """The default configuration of `net` with some fields set, each in the group that has it."""
    values = {"model": "net", "image_size": 32, "device": "cpu", "precision": "fp32"} | values
    groups = {}
    for key, group in args.TRAIN_GROUPS.items():
        names = {field.name for field in dataclasses.fields(group)}
        groups[key] = group(**{name: values.pop(name) for name in names & set(values)})
    assert not values, f"no such option: {values}"
    return args.TrainConfig(**groups)


def make_slices(
    n_slices: int, n_classes: int = 3, size_px: int = 32, seed: int = 0
) -> "MemorySlices":
    """Noise with a bright bar whose width tells the class, at any place and in any direction."""
    import torch

    from loading.image_source import MemorySlices

    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (n_slices, size_px, size_px), dtype=np.uint8)
    labels = np.arange(n_slices) % n_classes
    for picture, label in zip(pixels, labels, strict=True):
        width = 2 + 6 * int(label)
        start = int(rng.integers(1, size_px - width))
        (picture if rng.random() < 0.5 else picture.T)[start : start + width, 4:-4] = 220
    return MemorySlices(torch.from_numpy(pixels).unsqueeze(1), torch.from_numpy(labels))


def build_net(config: args.TrainConfig, n_classes: int = 3, seed: int = 0) -> "Classifier":
    import torch

    from model import build_model

    torch.manual_seed(seed)
    return build_model("net", n_classes, config.model.image_size, dropout=config.model.dropout)


def take_out_batch_norm(network: "Classifier") -> None:
    """Leave every slice of a batch to itself, so that divided batches are like whole ones."""
    from torch import nn

    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(1, child.num_features))


def make_trainer(
    run_dir: Path,
    *,
    n_train: int = 24,
    n_val: int = 12,
    start: str = "scratch",
    weights_seed: int = 0,
    batch_norm: bool = True,
    **values: Any,
) -> Any:  # of Trainer: torch types what a test looks at inside as Tensor | Module
    """A trainer of `net` on made-up slices, as main.py would make it."""
    import model
    from trainer import Trainer

    config = make_config(**{"batch_size": 8, "epochs": 3, "patience": 0} | values)
    network = build_net(config, seed=weights_seed)
    if not batch_norm:
        take_out_batch_norm(network)
    record = {
        **model.describe_model("net", network, ["a", "b", "c"]),
        "run": run_dir.name,
        "start": start,
        "config": config.to_dict(),
        "precision": config.run.precision,
    }
    size_px = config.model.image_size
    train, val = make_slices(n_train, size_px=size_px), make_slices(n_val, size_px=size_px, seed=1)
    return Trainer(network, train, val, config, record, run_dir)


# ---- trained runs


class Run(NamedTuple):
    """The working folder of a run that has ended, and what it said."""

    root: Path
    output: str


def skip_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an evaluation draw no plots and compute no heat maps."""
    monkeypatch.setattr("reporting.results.draw_plots", lambda *_: ())
    monkeypatch.setattr("reporting.galleries.select", lambda *_: [])
