"""The benchmark: what it measures in which turn, its figures, its refusals."""

import contextlib
import io
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import args
import benchmark
import helper
import model
from benchmarking import dataloader_baseline, process_start, report, rounds, synthetic_step
from benchmarking.task import Task, choose_slices, open_task
from helper import UserError
from tests.support.builders import expect_refusal, list_files

SMALL = ("--model", "net", "--image-size", "32", "--batch-size", "4", "--slices", "24")
ON_CPU = ("--device", "cpu", "--threads", "1", "--repeats", "1")
CONTRACT = (
    *("limit_images_per_s", "pipeline_images_per_s", "pipeline_over_limit"),
    *("usual_images_per_s", "pipeline_over_usual", "peak_memory_mib"),
)


class Measured(NamedTuple):
    """What a small benchmark wrote and said."""

    figures: dict[str, Any]
    output: str


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder, output = tmp_path_factory.mktemp("speed"), io.StringIO()
    target = folder / "new" / "speed.json"
    with contextlib.redirect_stdout(output):
        assert benchmark.main([*SMALL, *ON_CPU, "--json", str(target)]) == 0
    assert [path.name for path in target.parent.iterdir()] == ["speed.json"]
    return Measured(json.loads(target.read_text("utf-8")), output.getvalue())


def make_task(phantom_dir: Path, work: Path, **values: Any) -> Task:
    plain = {"data": phantom_dir, "model": "net", "image_size": 32, "batch_size": 8}
    config = args.BenchmarkConfig(**{**plain, "slices": 640, "device": "cpu", **values})
    choose_slices(phantom_dir, work, config)
    return open_task(config, work)


# ---- a small benchmark, whole


def test_every_figure_is_there(measured: Measured) -> None:
    figures = measured.figures
    assert set(CONTRACT) < set(report.FIGURES) < set(figures)
    on_device = "peak_device_memory_mib"
    assert figures[on_device] is None
    assert any(note.startswith(on_device) for note in figures["notes"])
    defined = set(report.FIGURES) - {on_device}
    assert set(figures["rounds"]) == set(figures["spread"]) == defined
    for key in defined:
        (value,) = figures["rounds"][key]
        assert isinstance(figures[key], float)
        assert figures[key] == value > 0
        assert math.isfinite(value)
        assert figures["spread"][key] == [value, value]


def test_what_follows_from_other_figures(measured: Measured) -> None:
    figures = measured.figures
    pipeline = figures["pipeline_images_per_s"]
    assert figures["pipeline_over_limit"] == pipeline / figures["limit_images_per_s"]
    assert figures["pipeline_over_usual"] == pipeline / figures["usual_images_per_s"]
    beyond = figures["first_step_s"] - figures["import_torch_s"]
    assert figures["first_step_beyond_torch_s"] == beyond
    assert figures["steps"]["limit"] == figures["steps"]["pipeline"] == 6  # of 24 slices


def test_the_conditions_are_kept(measured: Measured) -> None:
    kept = measured.figures["environment"]
    expected = {
        **{"model": "net", "image_size": 32, "batch_size": 4, "n_slices": 24, "repeats": 1},
        **{"seed": 0, "data": "phantoms", "device": "cpu", "threads": 1},
    }
    assert {key: kept[key] for key in expected} == expected
    assert kept["precision"] in {"fp32", "bf16"}
    assert kept["cores"] >= 1
    assert kept["cpu"]
    assert set(kept) > {"python", "torch", "torchvision", "commit", "command"}


def test_it_tells_what_it_measures_and_takes_turns(measured: Measured) -> None:
    turns = [line for line in measured.output.splitlines() if line.startswith(("warm", "round"))]
    one, other = ["limit", "pipeline", "usual"], turns[6:]
    assert turns[:6] == [
        *(f"warm-up: {name}" for name in one),
        *(f"round 1 of 1: {name}" for name in one),
    ]
    assert len(other) == 10
    for what, unit in report.FIGURES.values():
        (row,) = (line for line in measured.output.splitlines() if line.startswith(f"{what} "))
        assert row.rstrip().endswith((unit, " -"))


# ---- rounds


def test_turns_and_the_round_left_out_by_hand() -> None:
    order: list[str] = []
    values = iter([100.0, 200.0, 1.0, 2.0, 3.0, 4.0])

    def measure(name: str) -> rounds.Figures:
        order.append(name)
        return {f"{name}_s": next(values)}

    found = rounds.measure_in_turn({"a": lambda: measure("a"), "b": lambda: measure("b")}, 2)
    assert order == ["a", "b"] * 3
    assert found == {"a_s": [1.0, 3.0], "b_s": [2.0, 4.0]}


def test_ratios_are_of_the_rounds_and_not_of_the_medians(phantom_dir: Path, tmp_path: Path) -> None:
    measured = {key: [1.0, 1.0, 1.0] for key in set(report.FIGURES) - set(report.UNDEFINED)}
    measured |= {
        "limit_images_per_s": [10.0, 20.0, 40.0],
        "pipeline_images_per_s": [5.0, 19.0, 30.0],
        "usual_images_per_s": [5.0, 2.0, 3.0],
    }
    found = report.build_report(make_task(phantom_dir, tmp_path), measured)
    assert found["pipeline_images_per_s"] == 19.0
    assert found["rounds"]["pipeline_over_limit"] == [0.5, 0.95, 0.75]
    assert found["pipeline_over_limit"] == 0.75
    assert found["spread"]["pipeline_over_limit"] == [0.5, 0.95]
    assert found["pipeline_over_usual"] == 9.5
    for key, reason in report.UNDEFINED.items():
        assert found[key] is None
        assert f"{key}: {reason}" in found["notes"]


# ---- which slices


def test_whole_batches_of_the_folder_are_drawn(phantom_dir: Path, tmp_path: Path) -> None:
    before = list_files(phantom_dir)
    task = make_task(phantom_dir, tmp_path / "first")
    assert len(task.distinct) == len(set(task.distinct["sha256"])) == 56  # of 60, in batches of 8
    assert (task.n_steps, task.n_short_steps) == (7, 7)
    slices = task.take_slices(2)
    assert slices.pixels.shape == (16, 1, 32, 32)
    assert [task.classes[label] for label in slices.labels] == list(task.rows["label"][:16])
    again = make_task(phantom_dir, tmp_path / "again")
    other = make_task(phantom_dir, tmp_path / "other", seed=1)
    assert list(again.distinct["path"]) == list(task.distinct["path"])
    assert list(other.distinct["path"]) != list(task.distinct["path"])
    assert list_files(phantom_dir) == before
    notes = report.build_notes(task, set())
    assert any(note.startswith("56 slices instead of 640") for note in notes)


def test_an_epoch_on_a_gpu_is_long_enough(
    phantom_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helper, "resolve_device", lambda _: torch.device("cuda"))
    task = make_task(phantom_dir, tmp_path, precision="bf16")
    assert task.n_short_steps == task.n_steps == 203  # 29 times 7, the first number over 200
    assert set(task.rows["sha256"].value_counts()) == {29}
    assert any("203 steps" in note for note in report.build_notes(task, set()))


# ---- the usual pipeline


@pytest.mark.parametrize(("name", "channels"), [("net", 1), ("resnet18", 3)])
def test_the_usual_pipeline_sees_the_same_files(
    phantom_dir: Path, tmp_path: Path, name: str, channels: int
) -> None:
    task = make_task(phantom_dir, tmp_path, model=name)
    paths = task.rows["path"].tolist()
    images = dataloader_baseline.open_folder(task, Path(paths[0]).parents[1])
    loader = dataloader_baseline.build_loader(task, images, paths)
    assert len(loader) == task.n_steps
    pictures = [loader.dataset[row] for row in range(4)]
    assert {tuple(picture.shape) for picture, _ in pictures} == {(channels, 32, 32)}
    assert [images.classes[label] for _, label in pictures] == list(task.rows["label"][:4])


@pytest.mark.parametrize(("name", "size"), [("vit_b_32", 64), ("maxvit_t", 448), ("resnet18", 40)])
def test_the_usual_network_takes_the_size(
    phantom_dir: Path, tmp_path: Path, name: str, size: int
) -> None:
    task = make_task(phantom_dir, tmp_path, model=name, image_size=size)
    with torch.device("meta"):
        network = dataloader_baseline.build_usual_network(task, 3)
        assert network(torch.empty(2, 3, size, size)).shape == (2, 3)


# ---- new processes


def test_the_clock_stops_at_the_first_line() -> None:
    started_s = time.perf_counter()
    code = "import time; print(flush=True); time.sleep(1); print('rest')"
    time_s, rest = process_start.time_process(["-c", code])
    assert rest == "rest\n"
    assert time.perf_counter() - started_s - time_s > 0.9


def test_a_process_that_fails_is_one_line() -> None:
    with pytest.raises(UserError, match=r"ended with status 1: no good$"):
        process_start.time_process(["-c", "raise SystemExit('much\\nno good')"])


def test_memory_is_of_the_process_alone() -> None:
    held = np.ones(2**27)  # 1 GiB, which getrusage would count in the new process too
    code = "from benchmarking import process_start as p; print(); print(p.read_peak_memory_mib())"
    _, rest = process_start.time_process(["-c", code])
    own = process_start.read_peak_memory_mib()
    assert own is not None
    assert own > held.nbytes / 2**20
    assert 10 < float(rest) < own / 2


# ---- what is refused


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (["--model", "resnet81"], 2, "no such model"),
        (["--model", "vit_b_16", "--image-size", "100"], 2, "--image-size 100"),
        (["--data", "nowhere"], 1, "nowhere/CSV/images.csv is missing"),
        (["--json", "."], 1, "--json .: a folder"),
        (["--json", "/dev/null/x.json"], 1, "--json /dev/null/x.json: not writable"),
        (["--device", "cuda:99"], 1, "--device cuda:99"),
    ],
)
def test_refusals_leave_nothing(
    argv: list[str],
    status: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert words in expect_refusal(capsys, benchmark.main(argv), status)
    assert not list(tmp_path.iterdir())


def test_less_than_a_batch(phantom_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--data", str(phantom_dir), "--model", "net", "--batch-size", "61"]
    line = expect_refusal(capsys, benchmark.main([*command, "--device", "cpu"]))
    assert "60 readable slices are less than a batch of 61" in line


def test_a_benchmark_that_fails_writes_nothing(
    phantom_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(benchmark, "measure", fail)
    kept = tmp_path / "kept.json"
    kept.write_text("{}")
    command = [*SMALL, *ON_CPU, "--data", str(phantom_dir), "--json", str(kept)]
    assert expect_refusal(capsys, benchmark.main(command)) == "error: broken by hand"
    assert list_files(tmp_path) == {"kept.json": list_files(tmp_path)["kept.json"]}
    assert kept.read_text() == "{}"


def fail(_: object) -> None:
    raise UserError("broken by hand")


# ---- the limit


def test_the_limit_trains_as_many_slices_as_it_counts(
    phantom_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task(phantom_dir, tmp_path, precision="fp32")
    seen: list[int] = []
    entropy = synthetic_step.F.cross_entropy

    def count(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(len(labels))
        return entropy(logits, labels)

    monkeypatch.setattr(synthetic_step.F, "cross_entropy", count)
    monkeypatch.setattr(synthetic_step, "time_run", lambda run, _: run() or 2.0)
    assert synthetic_step.build_limit(task)() == {"limit_images_per_s": 28.0}  # 56 in 2 s
    assert seen == [8] * 7


def test_a_step_of_the_limit_moves_the_weights() -> None:
    network = model.build_model("net", 3, 32)
    weight = next(network.head.parameters())
    before = weight.detach().clone()
    synthetic_step.build_step(network, torch.rand(4, 1, 32, 32), torch.arange(4) % 3, "fp32")()
    assert not torch.equal(before, weight)
    assert all(part.grad is None for part in network.parameters())


def test_the_usual_way_takes_every_step(
    phantom_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, step = [], torch.optim.Adam.step

    def count(self: torch.optim.Adam, *rest: Any) -> Any:
        steps.append(1)
        return step(self, *rest)

    monkeypatch.setattr(torch.optim.Adam, "step", count)
    task = make_task(phantom_dir, tmp_path)
    dataloader_baseline.build_usual(task)()
    assert len(steps) == task.n_short_steps
