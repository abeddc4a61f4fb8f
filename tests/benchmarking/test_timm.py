"""The comparison with timm's train.py: its preparation, slices, output and refusals."""

import dataclasses
import subprocess
import sys
import urllib.error
import urllib.request
import venv
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from benchmarking import timm_launcher, timm_setup, timm_training
from benchmarking.options import BenchmarkConfig
from benchmarking.task import choose_slices, open_task
from helper import UserError
from tests.support.builders import Capture, Patch, expect_refusal

LOG = """\
Scheduled epochs: 2. LR stepped per epoch.
Train: 0 [   7/8 (100%)]  Loss: 1.1 (1.1)  Time: 1.0s,   30.00/s  (2.0s,   15.00/s)  LR: 1e-5
Train: 1 [   6/8 ( 86%)]  Loss: 1.1 (1.1)  Time: 1.0s,   30.00/s  (1.6s,   20.00/s)  LR: 1e-5
Train: 1 [   7/8 (100%)]  Loss: 1.1 (1.1)  Time: 1.0s,   31.00/s  (1.234s,   25.93/s)  LR: 1e-5
"""


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A folder that looks like one of timm_setup."""
    folder = tmp_path / "timm"
    python = Path(timm_setup.find_python(folder))
    python.parent.mkdir(parents=True)
    python.touch()
    (folder / "train.py").touch()
    return folder


def test_speed_is_the_mean_of_the_last_epoch() -> None:
    assert timm_training.read_speed(LOG, 2) == 25.93
    with pytest.raises(UserError, match="logged 2 steps of its second epoch instead of 8"):
        timm_training.read_speed(LOG, 8)
    with pytest.raises(UserError, match="logged 0 steps"):
        timm_training.read_speed(LOG.split("Train: 1")[0], 2)


def test_the_device_of_the_benchmark_is_the_only_visible_one(monkeypatch: Patch) -> None:
    choose = timm_training.choose_visible_devices
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert choose(torch.device("cpu")) == ""
    assert choose(torch.device("cuda")) == "0"
    assert choose(torch.device("cuda:1")) == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    assert choose(torch.device("cuda")) == "3"
    assert choose(torch.device("cuda:1")) == "GPU-5"


def test_slices_of_a_short_epoch_are_copied(phantom_dir: Path, tmp_path: Path) -> None:
    config = BenchmarkConfig(model="resnet18", image_size=32, batch_size=4, slices=60, device="cpu")
    choose_slices(phantom_dir, tmp_path, config)
    task = open_task(config, tmp_path)
    timm_training.copy_slices(task, tmp_path / "copies")
    train = [path for path in (tmp_path / "copies" / "train").rglob("*") if path.is_file()]
    assert len(train) == task.n_short_steps * 4 == 32
    labels = task.rows["label"][:32]
    assert sorted(path.parent.name for path in train) == sorted(labels)
    val = [path for path in (tmp_path / "copies" / "validation").rglob("*") if path.is_file()]
    assert sorted(path.parent.name for path in val) == sorted(set(labels))
    rows = task.rows.assign(path=[*task.rows["path"][:-1], "slice.BMP"])
    other = dataclasses.replace(task, rows=rows.iloc[::-1])
    with pytest.raises(UserError, match=r"its reader passes over \.bmp files"):
        timm_training.copy_slices(other, tmp_path / "others")


def test_command_has_size_precision_and_device(
    prepared: Path, phantom_dir: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    run = Mock(return_value=LOG)
    monkeypatch.setattr(timm_training, "_run", run)
    monkeypatch.setattr(timm_training, "read_speed", lambda log, n_steps: len(log) + n_steps)
    small = BenchmarkConfig(model="timm/resnet18", image_size=64, batch_size=4, device="cpu")
    for precision in ("fp32", "bf16"):
        config = dataclasses.replace(small, precision=precision)
        choose_slices(phantom_dir, tmp_path / precision, config)
        task = open_task(config, tmp_path / precision)
        measured = timm_training.build_timm(task, prepared)()
        assert measured == {"timm_images_per_s": len(LOG) + task.n_short_steps}
        command, variables = run.call_args.args
        line = " ".join(command)
        assert "--model resnet18 --num-classes 3 --seed 0 --input-size 3 64 64" in line
        assert ("--amp --amp-dtype bfloat16" in line) == (precision == "bf16")
        assert "--pin-mem" not in line
        assert variables == {"CUDA_VISIBLE_DEVICES": ""}


def test_unprepared_folders_other_networks_and_devices_are_refused(
    prepared: Path, monkeypatch: Patch
) -> None:
    config = BenchmarkConfig(model="net", device="cpu")
    (prepared / "train.py").rename(prepared / "other.py")
    with pytest.raises(UserError, match=r"no .*train.py; prepare it: python -m benchmarking"):
        timm_training.check_timm(prepared, config)
    (prepared / "other.py").rename(prepared / "train.py")
    monkeypatch.setattr(timm_training, "_run", Mock(return_value="resnet18 vgg11\n"))
    with pytest.raises(UserError, match=r"timm 0.9.2 has no net; give a --model of both"):
        timm_training.check_timm(prepared, config)
    timm_training.check_timm(prepared, BenchmarkConfig(model="resnet18", device="cpu"))
    monkeypatch.setattr("helper.resolve_device", lambda _: SimpleNamespace(type="mps"))
    with pytest.raises(UserError, match=r"train\.py cannot use"):
        timm_training.check_timm(prepared, BenchmarkConfig(model="resnet18"))


def test_last_line_of_a_failed_process_is_given() -> None:
    code = "import sys; print('first'); sys.exit('RuntimeError: no good')"
    with pytest.raises(UserError, match=r"^timm ended with status 1: RuntimeError: no good$"):
        timm_training._run([sys.executable, "-c", code])


def test_launcher_sets_threads_and_arguments(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, torch\n"
        "torch.cuda.is_available() or torch.cuda.synchronize()\n"
        "if __name__ == '__main__':\n"
        "    print(torch.get_num_threads(), sys.argv[1:])\n"
    )
    command = [sys.executable, timm_launcher.__file__, "1", str(script), "--epochs", "2"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "1 ['--epochs', '2']\n"


def test_existing_environment_is_not_touched(prepared: Path, capsys: Capture) -> None:
    assert "exists; remove it" in expect_refusal(capsys, timm_setup.main([str(prepared)]))


def test_failed_downloads_say_what_to_do(
    tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    packages, environment = tmp_path / "packages", tmp_path / "timm" / "env"
    packages.mkdir()
    status = {"pip": 1}

    def run(command: list[str], **_: object) -> SimpleNamespace:
        return SimpleNamespace(stdout=str(packages), returncode=status["pip"] * ("pip" in command))

    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(venv, "create", lambda path, **_: path.mkdir(parents=True))
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    command = [str(tmp_path / "timm")]
    assert "was not installed" in expect_refusal(capsys, timm_setup.main(command))
    assert not environment.exists()  # the next try can begin
    status["pip"] = 0
    words = expect_refusal(capsys, timm_setup.main(command))
    assert "no network" in words
    assert "train.py by hand" in words
    assert Path((packages / "parent.pth").read_text("utf-8"), "torch", "__init__.py").exists()
