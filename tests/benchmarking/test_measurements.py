"""Measurements: their slices, rounds, figures and processes."""

import dataclasses
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import helper
from benchmarking import (
    dataloader_baseline,
    duration,
    options,
    report,
    rounds,
    training_speed,
)
from benchmarking.process_start import time_process
from benchmarking.task import Task, choose_slices, open_task
from common import machine
from common.cli import restore_dataclass
from helper import UserError
from tests.support.builders import Patch, list_files

MakeTask = Callable[..., Task]


@pytest.fixture
def make_task(phantom_dir: Path, tmp_path: Path) -> MakeTask:
    """A function that makes a task from the 60 phantoms, in batches of 8 unless given."""

    def make(folder: str = "work", **values: Any) -> Task:
        default = {"data": phantom_dir, "model": "net", "image_size": 32, "batch_size": 8}
        config = options.BenchmarkConfig(**{**default, "slices": 640, "device": "cpu", **values})
        choose_slices(phantom_dir, tmp_path / folder, config)
        return open_task(config, tmp_path / folder)

    return make


def test_whole_batches_are_drawn(phantom_dir: Path, make_task: MakeTask) -> None:
    before = list_files(phantom_dir)
    task = make_task()
    assert len(task.distinct) == len(set(task.distinct["sha256"])) == 56  # of 60, in batches of 8
    assert (task.n_steps, task.n_short_steps) == (7, 7)
    slices = task.take_slices(2)
    assert slices.pixels.shape == (16, 1, 32, 32)
    assert [task.classes[label] for label in slices.labels] == list(task.rows["label"][:16])
    assert list(make_task("again").distinct["path"]) == list(task.distinct["path"])
    assert list(make_task("other", seed=1).distinct["path"]) != list(task.distinct["path"])
    assert list_files(phantom_dir) == before
    assert any(note.startswith("56 slices inst") for note in report.build_notes(task, set()))


def test_cuda_epoch_is_long_enough(make_task: MakeTask, monkeypatch: Patch) -> None:
    monkeypatch.setattr(helper, "resolve_device", lambda _: torch.device("cuda"))
    task = make_task(precision="bf16")
    assert task.n_short_steps == task.n_steps == 203  # 29 times 7, the first multiple over 200
    assert set(task.rows["sha256"].value_counts()) == {29}
    assert any("203 steps" in note for note in report.build_notes(task, set()))


def test_rounds_are_interleaved_after_a_warm_up() -> None:
    order: list[str] = []
    values = iter([100.0, 200.0, 1.0, 2.0, 3.0, 4.0])

    def measure(name: str) -> rounds.Figures:
        order.append(name)
        return {f"{name}_s": next(values)}

    measured = rounds.measure_interleaved({"a": lambda: measure("a"), "b": lambda: measure("b")}, 2)
    assert order == ["a", "b"] * 3
    assert measured == {"a_s": [1.0, 3.0], "b_s": [2.0, 4.0]}


def test_ratios_are_computed_per_round(make_task: MakeTask) -> None:
    measured = {key: [1.0, 1.0, 1.0] for key in set(report.FIGURES) - set(report.UNDEFINED)}
    measured |= {
        "synthetic_step_images_per_s": [10.0, 20.0, 40.0],
        "pipeline_images_per_s": [5.0, 19.0, 30.0],
        "dataloader_baseline_images_per_s": [5.0, 2.0, 3.0],
    }
    figures = report.build_report(make_task(), measured)
    assert figures["pipeline_images_per_s"] == 19.0
    assert figures["rounds"]["pipeline_over_synthetic_step"] == [0.5, 0.95, 0.75]
    assert figures["pipeline_over_synthetic_step"] == 0.75
    assert figures["spread"]["pipeline_over_synthetic_step"] == [0.5, 0.95]
    assert figures["pipeline_over_dataloader_baseline"] == 9.5
    assert figures["pipeline_over_dataloader_tuned"] == 19.0
    for key, reason in report.UNDEFINED.items():
        assert figures[key] is None
        assert f"{key}: {reason}" in figures["notes"]


def test_timm_is_compared_where_it_was_measured(make_task: MakeTask) -> None:
    measured = {key: [1.0] for key in set(report.FIGURES) - set(report.UNDEFINED)}
    measured |= {"pipeline_images_per_s": [30.0], "timm_images_per_s": [20.0]}
    assert report.build_report(make_task(), measured)["pipeline_over_timm"] == 1.5


def test_epochs_fit_into_eight_minutes() -> None:
    def count(step_s: float, **values: Any) -> int:
        return duration.count_steps(options.BenchmarkConfig(**values), step_s)

    assert count(0.1) == 20  # 640 slices in batches of 32
    assert count(0.1, batch_size=64) == 10
    assert count(0.1, batch_size=1024) == count(100.0) == duration.FEWEST_STEPS
    for step_s in (0.5, 1.0, 2.0, 3.0):
        for values in ({}, {"timm": Path("timm")}, {"repeats": 2}):
            config = options.BenchmarkConfig(**values)
            n_steps = duration.count_steps(config, step_s)
            assert duration.estimate_duration(config, step_s, n_steps) <= duration.BUDGET_S
            if n_steps < 20:
                more = duration.estimate_duration(config, step_s, n_steps + 1)
                assert more > duration.BUDGET_S
    assert count(4.0) < count(2.0) < count(1.5) < 20
    assert count(2.0, timm=Path("timm")) < count(2.0)


def test_epochs_are_shortened_unless_slices_are_given(
    make_task: MakeTask,
    phantom_dir: Path,
    tmp_path: Path,
    monkeypatch: Patch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    task = make_task()
    assert duration.fit_to_machine(task.config, phantom_dir, tmp_path) is task.config
    caplog.set_level("INFO")
    monkeypatch.setattr(duration, "count_steps", lambda _, step_s, __: 3 if step_s < 60 else 0)
    free = dataclasses.replace(task.config, slices=None)
    assert duration.fit_to_machine(free, phantom_dir, tmp_path).slices == 24
    assert not caplog.messages[-1].startswith("this takes about")
    fixed = dataclasses.replace(free, batch_size=4, repeats=60)
    monkeypatch.setattr(duration, "count_steps", lambda _config, _step_s, fewest: fewest)
    fitted = duration.fit_to_machine(fixed, phantom_dir, tmp_path)
    assert fitted.slices == options.FEWEST_SLICES == 12  # another number is refused by the process
    assert restore_dataclass(options.BenchmarkConfig, fitted.to_dict()) == fitted
    assert re.match(r"this takes about \d+ minutes; fewer --repeats", caplog.messages[-1])


def test_synthetic_step_trains_what_it_counts(make_task: MakeTask, monkeypatch: Patch) -> None:
    seen: list[int] = []
    replica = training_speed.Replica

    def count(network: torch.nn.Module, **options: Any) -> Any:
        network.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
        return replica(network, **options)

    monkeypatch.setattr(training_speed, "Replica", count)
    monkeypatch.setattr(training_speed, "time_run", lambda run, _: run() or 2.0)
    measure = training_speed.build_synthetic_step(make_task(precision="fp32"))
    assert measure() == {"synthetic_step_images_per_s": 28.0}  # 56 in 2 s
    assert seen == [8] * 7


def test_baseline_loads_the_same_files(make_task: MakeTask) -> None:
    for name, channels in (("net", 1), ("resnet18", 3)):
        task = make_task(name, model=name)
        loader, n_classes = dataloader_baseline.build_loader(task)
        assert len(loader) == task.n_steps
        assert n_classes == len(task.classes)
        for row in range(4):
            image, label = loader.dataset[row]
            assert image.shape == (channels, 32, 32)
            assert task.classes[label] == task.rows["label"][row]


@pytest.mark.parametrize("tuned", [True, False])
def test_tuned_baseline_has_the_settings_of_the_pipeline(
    make_task: MakeTask, monkeypatch: Patch, tuned: bool
) -> None:
    seen: list[tuple[bool, bool]] = []

    class Recorder(torch.nn.Module):
        def __init__(self, n_classes: int) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(3, n_classes, 32)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            is_last = images.is_contiguous(memory_format=torch.channels_last)
            seen.append((torch.is_autocast_enabled("cpu"), is_last))
            return self.layer(images).flatten(1)

    monkeypatch.setattr(
        dataloader_baseline, "build_baseline_network", lambda _, n_classes: Recorder(n_classes)
    )
    task = make_task(model="resnet18", precision="bf16")
    (speed,) = dataloader_baseline.build_dataloader_baseline(task, tuned=tuned)().values()
    assert speed > 0
    assert seen == [(tuned, tuned)] * task.n_short_steps


def test_baseline_network_accepts_the_size(make_task: MakeTask) -> None:
    for name, size in (("vit_b_32", 64), ("maxvit_t", 448), ("googlenet", 64)):
        task = make_task(name, model=name, image_size=size)
        with torch.device("meta"):
            network = dataloader_baseline.build_baseline_network(task, 3)
            assert network(torch.empty(2, 3, size, size)).shape == (2, 3)


@pytest.mark.integration
def test_time_and_errors_of_new_processes() -> None:
    started_s = time.perf_counter()
    time_s, rest = time_process(["-c", "import time; print(flush=True); time.sleep(2); print('x')"])
    assert rest == "x\n"
    assert time.perf_counter() - started_s - time_s > 1  # the sleep comes after the first line
    with pytest.raises(UserError, match=r"^python -c .* ended with status 1: no good$"):
        time_process(["-c", "raise SystemExit('many\\nno good')"])


@pytest.mark.integration
def test_peak_memory_excludes_the_parent_process() -> None:
    held = np.ones(2**27)  # 1 GiB, which getrusage would count in the new process too
    code = "from common.machine import read_peak_memory_mib as p; print(); print(p())"
    _, rest = time_process(["-c", code])
    own = machine.read_peak_memory_mib()
    assert own is not None
    assert own > held.nbytes / 2**20
    assert float(rest) < own / 2
