"""`benchmark.py --gpu-check`: refusals, parts that fail or do not apply, a whole small check."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import benchmark
from benchmarking import gpu_check, gpu_parts, gpu_speed, options
from benchmarking.gpu_check import Check, run_process
from benchmarking.gpu_speed import NotApplicableError
from helper import UserError
from tests.support.builders import Capture, Patch, expect_refusal

SMALL = ("--slices", "48", "--model", "net", "--image-size", "32", "--threads", "1")


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """A small check on the CPU that has not run anything yet."""
    config = options.GpuCheckConfig(slices=48, model="net", image_size=32, device="cpu", threads=1)
    return Check(config, tmp_path, time.monotonic() + 1000)


# ---- command line


def test_options_of_the_check() -> None:
    assert options.parse_benchmark(["--gpu-check"]) == options.GpuCheckConfig()
    config = options.parse_benchmark(
        ["--gpu-check", "--json", "a.json", "--slices", "24", "--debug"]
    )
    assert config == options.GpuCheckConfig(json=Path("a.json"), slices=24, debug=True)
    own = set(options.GpuCheckConfig().to_dict())
    assert own < set(options.BenchmarkConfig().to_dict())


@pytest.mark.parametrize("option", ["--batch-size 8", "--data data", "--compile on"])
def test_options_that_the_check_chooses_are_refused(option: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(["--gpu-check", *option.split()])
    assert option.split()[0] in capsys.readouterr().err


@pytest.mark.usefixtures("empty_dir")
def test_without_cuda_the_check_is_refused(capsys: Capture, monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("auto", "cuda", "cuda:1", "mps"):
        line = expect_refusal(capsys, benchmark.main(["--gpu-check", "--device", device]))
        assert "no CUDA device" in line
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    line = expect_refusal(capsys, benchmark.main(["--gpu-check", "--device", "cuda:2"]))
    assert "there are 2 CUDA devices" in line
    gpu_check.check_device("cuda:1")
    assert not list(Path().iterdir())


def test_an_older_result_is_not_replaced(empty_dir: Path, capsys: Capture) -> None:
    Path("gpu-check.json").write_text("{}")
    line = expect_refusal(capsys, benchmark.main(["--gpu-check", "--device", "cpu"]))
    assert "gpu-check.json exists" in line
    assert Path("gpu-check.json").read_text() == "{}"
    line = expect_refusal(capsys, benchmark.main(["--gpu-check", "--device", "cpu", "--json", "."]))
    assert "a folder" in line


# ---- parts


def test_a_failed_part_ends_no_other(empty_dir: Path, capsys: Capture, monkeypatch: Patch) -> None:
    def fail(check: Check) -> dict[str, Any]:
        raise UserError("the compiler is broken")

    def skip(check: Check) -> dict[str, Any]:
        raise NotApplicableError("there are not two CUDA devices")

    parts = {"torch.compile": fail, "two processes": skip, "tests": lambda _: {"passed": 3}}
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    command = ["--gpu-check", "--device", "cpu", *SMALL]
    line = expect_refusal(capsys, benchmark.main(command))
    assert "torch.compile" in line
    assert "gpu-check.json" in line
    report = json.loads(Path("gpu-check.json").read_text("utf-8"))
    found = {key: {**part, "time_s": 0} for key, part in report["parts"].items()}
    assert found == {
        "torch.compile": {"status": "failed", "reason": "the compiler is broken", "time_s": 0},
        "two processes": {
            "status": "skipped",
            "reason": "there are not two CUDA devices",
            "time_s": 0,
        },
        "tests": {"status": "done", "passed": 3, "time_s": 0},
    }
    assert report["options"]["slices"] == 48
    monkeypatch.setattr(gpu_check, "PARTS", {"tests": lambda _: {"passed": 3}})
    target = ["--json", "gpu-check.json"]  # named, so it is replaced
    assert benchmark.main([*command, *target]) == 0
    assert list(json.loads(Path("gpu-check.json").read_text("utf-8"))["parts"]) == ["tests"]
    assert [path.name for path in empty_dir.iterdir()] == ["gpu-check.json"]


@pytest.mark.parametrize(
    ("code", "limit_s", "words"),
    [
        ("import sys; print('error: no memory', file=sys.stderr); sys.exit(1)", 60, "^no memory$"),
        ("raise ValueError('many\\nlines')", 60, "^lines$"),
        ("raise SystemExit(3)", 60, "ended with status 3"),
        ("import os; os.abort()", 60, "Abort|status -6"),
        ("import time; time.sleep(60)", 1, "not finished after 1 s"),
        ("pass", 0, "no time left"),
    ],
)
def test_a_failed_process_has_a_reason(
    tmp_path: Path, code: str, limit_s: float, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        run_process(["-c", code], tmp_path, limit_s)


def test_an_unknown_part_fails_and_a_short_time_ends_it(check: Check) -> None:
    check.deadline_s = time.monotonic() + gpu_check.RUN_S
    with pytest.raises(UserError, match="no time left"):
        check.run("machine")


def test_a_failed_measurement_keeps_the_others(
    tmp_path: Path, capsys: Capture, monkeypatch: Patch
) -> None:
    """Of two batch sizes, the larger one does not fit."""

    def measure(config: options.GpuCheckConfig, work: Path, name: str, size: int) -> dict:
        if size == 128:
            raise torch.OutOfMemoryError("out of memory\nTried to allocate")
        return {"final_loss": 0.5}

    monkeypatch.setattr(gpu_speed, "measure_pipeline", measure)
    gpu_parts.main("speed", tmp_path, options.GpuCheckConfig(device="cpu"), ["fp32"])
    result = json.loads(capsys.readouterr().out)
    assert result["status"] == "failed"
    assert result["batch 32"] == {"final_loss": 0.5}
    assert result["reason"] == result["batch 128"]["error"] == "OutOfMemoryError: out of memory"
    gpu_parts.main("memory", tmp_path, options.GpuCheckConfig(device="cpu"), [])
    assert json.loads(capsys.readouterr().out)["status"] == "skipped"


def test_the_table_has_a_line_for_each_group_of_figures() -> None:
    part = {
        "status": "done",
        "time_s": 3.0,
        "batch 32": {"pipeline_images_per_s": 1234.5, "final_loss": 0.5},
        "images_per_s": [100.0, 300.0, 200.0],
        "driver": None,
        "failures": [],
    }
    assert gpu_check.describe_part(part) == [
        "batch 32: pipeline images/s 1234, final loss 0.5",
        "images/s 200.0 (median of 3), driver None, failures none",
    ]


def test_epochs_are_reduced_to_the_time_left(check: Check) -> None:
    check.parts = {
        "machine": {"precision": "bf16"},
        "speed in bf16": {"batch 16": {"pipeline_images_per_s": 12.0}},  # 4 s an epoch
    }
    assert gpu_speed.choose_batch_sizes(check.config) == [16]
    check.deadline_s = time.monotonic() + gpu_check.FINISH_S + 41
    assert gpu_check.choose_epochs(check) == 10
    check.deadline_s = time.monotonic()
    assert gpu_check.choose_epochs(check) == 1
    check.deadline_s = time.monotonic() + 10_000
    assert gpu_check.choose_epochs(check) == 30
    check.parts = {"machine": {"status": "failed"}}
    assert gpu_check.choose_epochs(check) == 30


def test_results_of_tests_are_counted(tmp_path: Path) -> None:
    test = tmp_path / "test_some.py"
    test.write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2, 'not equal'\n"
        "def test_left_out(): pytest.skip('no CUDA device')\n"
        "@pytest.fixture\n"
        "def broken(): raise OSError('no disk')\n"
        "def test_broken(broken): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "--junit-xml=tests.xml", test.name]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    counts = gpu_check.read_test_results(tmp_path / "tests.xml")
    assert (counts["tests"], counts["passed"], counts["skipped"]) == (4, 1, 1)
    bad, broken = counts["failures"]
    assert bad.startswith("test_bad: ")
    assert "not equal" in bad
    assert "no disk" in broken


def test_runs_are_compared_to_the_bit(tmp_path: Path) -> None:
    last = {
        "weights": {"a": torch.ones(2)},
        "trained_weights": {"a": torch.ones(2)},
        "optimizer": {"state": {0: {"step": torch.ones(())}}, "param_groups": [{"lr": 0.1}]},
        "loss_scaler": {},
        "history": [{"train_loss": 0.5, "time_s": 1.0}],
    }
    other = {
        **last,
        "trained_weights": {"a": torch.tensor([1.0, 1 + 2**-23])},
        "optimizer": {"state": {0: {"step": torch.ones(())}}, "param_groups": [{"lr": 0.2}]},
        "history": [{"train_loss": 0.5, "time_s": 2.0}],
    }
    third = {**last, "history": [{"train_loss": 0.25}]}
    for name, content in {"one": last, "other": other, "third": third}.items():
        (tmp_path / name).mkdir()
        torch.save(content, tmp_path / name / "last.pt")
    one = tmp_path / "one"
    assert gpu_check.find_differences(one, one) == []
    assert gpu_check.find_differences(one, tmp_path / "other") == ["trained_weights", "optimizer"]
    assert gpu_check.find_differences(one, tmp_path / "third") == ["train_loss"]


# ---- a whole check


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_check_on_the_cpu(empty_dir: Path, capsys: Capture, monkeypatch: Patch) -> None:
    """All parts that apply to a CPU; the compiler, which may be missing, is tested elsewhere."""
    parts = {key: run for key, run in gpu_check.PARTS.items() if key != "torch.compile"}
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    monkeypatch.setattr(gpu_check, "BUDGET_S", 800.0)
    assert benchmark.main(["--gpu-check", "--device", "cpu", *SMALL]) == 0, capsys.readouterr()
    report = json.loads(Path("gpu-check.json").read_text("utf-8"))
    found = {key: part for key, part in report["parts"].items() if part["status"] == "done"}
    skipped = {key for key, part in report["parts"].items() if part["status"] == "skipped"}
    assert skipped - {"speed in bf16"} == {"out of memory", "second device"}
    assert {"torch", "cpu", "cores", "commit", "gpus", "driver"} < set(found["machine"])
    for precision in ("fp32", "fp16"):
        (figures,) = (found[f"speed in {precision}"][f"batch {size}"] for size in (16,))
        assert 0 < figures["pipeline_over_synthetic_step"] < 2
        assert figures["final_loss"] > 0
    assert found["slices on device, host, disk"]["disk"]["images_per_s"] > 0
    assert len(found["deterministic resume, twice"]["bit_identical"]) == 2
    assert 0 < found["two processes"]["gradient_difference"] < gpu_check.GRADIENT_TOLERANCE
    assert found["tests marked gpu"]["tests"] > 5
    run = found["run to the report"]
    assert run["epochs"] == len(run["images_per_s"]) == 30
    assert 0 <= run["accuracy"]["value"] <= 1
    output = capsys.readouterr().out
    assert all(f"\n{key} " in output for key in report["parts"])
    assert "open an issue" in output
    assert [path.name for path in empty_dir.iterdir()] == ["gpu-check.json"]
