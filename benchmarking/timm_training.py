"""Training speed of timm's train.py on the same slices, in processes of its own."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch

import helper
from benchmarking import timm_launcher
from benchmarking.options import BenchmarkConfig
from benchmarking.rounds import Figures, Measure
from benchmarking.task import Task
from benchmarking.timm_setup import VERSION, find_python
from common.machine import count_cores
from helper import UserError

EPOCHS = 2  # the first one warms up
READ_SUFFIXES = {".png", ".jpg", ".jpeg"}  # by timm's reader of folders
# Of a log line: epoch, and mean speed over its steps so far, as in `(1.234s,   25.93/s)`
MEAN_SPEED = re.compile(r"Train: (\d+) .*\([\d.]+s, +([\d.]+)/s\)")
# No averaged weights, which the pipeline has
OPTIONS = (
    *("--opt", "adamw", "--lr", "1e-5", "--sched", "cosine", "--warmup-epochs", "0"),
    *("--smoothing", "0", "--scale", "0.8", "1", "--ratio", "1", "1", "--hflip", "0.5"),
    *("--color-jitter", "0.2", "--train-interpolation", "bilinear"),
    *("--channels-last", "--use-multi-epochs-loader", "--log-interval", "1"),
)


def check_timm(folder: Path, config: BenchmarkConfig) -> None:
    """Check a folder of `benchmarking.timm_setup`, the name of the network and the device.

    Raises:
        UserError: The folder is incomplete, timm has no network of this name, or train.py cannot
            use the device.
    """
    python = Path(find_python(folder))
    for path in (python, folder / "train.py"):
        if not path.exists():
            advice = "prepare it: python -m benchmarking.timm_setup DIR"
            raise UserError(f"--timm {folder}: no {path}; {advice}")
    names = _run([str(python), "-c", "import timm; print(*timm.list_models())"]).split()
    if config.model.removeprefix("timm/") not in names:
        raise UserError(f"--timm: timm {VERSION} has no {config.model}; give a --model of both")
    device = helper.resolve_device(config.device)
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--timm: train.py cannot use {device}; give --device cpu")


def build_timm(task: Task, folder: Path) -> Measure:
    """Measure an epoch of timm's train.py from random weights (images/s).

    It trains in the precision of the pipeline and in channels_last, with one worker per core that
    persists between epochs, without averaged weights, with flips, zoom and jitter, and with three
    channels (the pipeline has one). The figure is its own: the mean over the steps of the second
    epoch, in which it waits for batches; some were loaded in advance.

    Raises:
        UserError: A slice is of a format that its reader passes over.
    """
    slices = task.work / "timm"
    copy_slices(task, slices)
    command = [find_python(folder), timm_launcher.__file__, str(torch.get_num_threads())]
    command += [str(folder / "train.py"), "--data-dir", str(slices), *OPTIONS]
    command += ["--model", task.config.model.removeprefix("timm/")]
    command += ["--num-classes", str(len(task.classes)), "--seed", str(task.config.seed)]
    command += ["--input-size", "3", *[str(task.config.image_size)] * 2]
    command += ["--batch-size", str(task.config.batch_size), "--epochs", str(EPOCHS)]
    command += ["--workers", str(count_cores())]
    if task.device.type == "cuda":
        command.append("--pin-mem")
    variables = {"CUDA_VISIBLE_DEVICES": choose_visible_devices(task.device)}
    if task.precision != "fp32":
        names = {"bf16": "bfloat16", "fp16": "float16"}
        command += ["--amp", "--amp-dtype", names[task.precision]]

    def measure() -> Figures:
        with tempfile.TemporaryDirectory(dir=task.work) as output:
            log = _run([*command, "--output", output], variables)
        return {"timm_images_per_s": read_speed(log, task.n_short_steps)}

    return measure


def choose_visible_devices(device: torch.device) -> str:
    """Return CUDA_VISIBLE_DEVICES for a process that takes the first CUDA device, or none."""
    if device.type != "cuda":
        return ""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    index = device.index or 0
    return visible[index] if visible != [""] else str(index)


def copy_slices(task: Task, folder: Path) -> None:
    """Copy the slices of a short epoch to `train/CLASS`, and one of each class to `validation`.

    Raises:
        UserError: A slice is of a format that timm's reader passes over.
    """
    rows = task.rows.head(task.n_short_steps * task.config.batch_size)
    if other := set(map(get_suffix, rows["path"])) - READ_SUFFIXES:
        raise UserError(f"--timm: its reader passes over {', '.join(sorted(other))} files")
    for split, chosen in (("train", rows), ("validation", rows.drop_duplicates("label"))):
        for index, (path, label) in enumerate(zip(chosen["path"], chosen["label"], strict=True)):
            target = folder / split / label / f"{index}{Path(path).suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def get_suffix(path: str) -> str:
    """Return the suffix of a file, in lower case."""
    return Path(path).suffix.lower()


def read_speed(log: str, n_steps: int) -> float:
    """Return the mean speed over the last epoch in the output of train.py, images/s.

    Raises:
        UserError: The epoch had another number of steps.
    """
    speeds = [float(speed) for epoch, speed in MEAN_SPEED.findall(log) if int(epoch) == EPOCHS - 1]
    if len(speeds) != n_steps:
        raise UserError(
            f"train.py of timm logged {len(speeds)} steps of its second epoch instead of {n_steps}"
        )
    return speeds[-1]


def _run(command: list[str], variables: Mapping[str, str] = MappingProxyType({})) -> str:
    """Run a command and return what it prints to both outputs.

    Raises:
        UserError: It failed; gives its last line.
    """
    done = subprocess.run(
        command,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        lines = done.stdout.strip().splitlines() or ["no output"]
        raise UserError(f"timm ended with status {done.returncode}: {lines[-1]}")
    return done.stdout
