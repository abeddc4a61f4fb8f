"""GPU check: one command that shows on a GPU what a machine without one cannot.

Every part runs in processes of its own (`benchmarking.gpu_parts`), so that a failure ends no other
part. The longest one comes last and is shortened if little time is left.
"""

import dataclasses
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarking.gpu_speed import (
    NotApplicableError,
    Result,
    choose_batch_sizes,
    make_benchmark_config,
)
from benchmarking.options import GpuCheckConfig
from benchmarking.report import format_figure
from benchmarking.task import choose_slices
from helper import PROJECT_DIR, UserError, describe_error, log

SCHEMA = 1
BUDGET_S = 570.0
RUN_S = 200.0  # kept for the run, which is the last part
PART_S = 150.0  # a process that takes longer is ended
SAMPLE = 640  # slices of all parts but the run: a multiple of every batch size
EPOCHS = 30
FINISH_S = 60.0  # of the run: start, decoding, evaluation and report
TEST_PACKAGES = ("pytest", "pytest_timeout", "xdist", "hypothesis")
GRADIENT_TOLERANCE = 1e-3  # relative; float32 sums in another order differ by less


@dataclasses.dataclass
class Check:
    """A check in progress.

    Attributes:
        config: Options of the check.
        work: Temporary folder; `data` holds the phantoms, `sample` a manifest of some of them.
        deadline_s: End of the time budget, `time.monotonic`.
        parts: Results of the finished parts.
    """

    config: GpuCheckConfig
    work: Path
    deadline_s: float
    parts: dict[str, Result] = dataclasses.field(default_factory=dict)

    def count_seconds_left(self, reserve_s: float = RUN_S) -> float:
        """Return the time until the deadline, less a reserve."""
        return self.deadline_s - time.monotonic() - reserve_s

    def run(self, part: str, *arguments: Any, launcher: Sequence[str] = ()) -> Result:
        """Measure a part of `gpu_parts` in a process and return its result.

        A part that fails after some measurements returns them, with the status `failed`.

        Raises:
            NotApplicableError: This machine cannot run it, or no time is left.
            UserError: The process ended with an error and without a result.
        """
        options = [json.dumps(self.config.to_dict()), json.dumps(arguments)]
        command = [*launcher, "-m", "benchmarking.gpu_parts", part, str(self.work), *options]
        limit_s = min(PART_S, self.count_seconds_left())
        output = run_process(command, PROJECT_DIR, limit_s, self.config.debug)
        result: Result = json.loads(output.strip().splitlines()[-1])
        if result["status"] == "skipped":
            raise NotApplicableError(result["reason"])
        return result


def run_process(arguments: Sequence[str], folder: Path, limit_s: float, debug: bool = False) -> str:
    """Run Python until it ends and return its output.

    Raises:
        UserError: It failed, or took longer than `limit_s`; says the last line of its errors.
        NotApplicableError: No time is left.
    """
    if limit_s < 1:
        raise NotApplicableError("no time left")
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, stdout=output, stderr=errors
        )
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise UserError(f"not finished after {limit_s:.0f} s") from None
        finally:
            end_process(process)
        errors.seek(0)
        text = errors.read().decode(errors="replace")
        if status:
            if debug:
                log.info("%s", text)
            raise UserError(find_reason(text) or f"ended with status {status}")
        output.seek(0)
        return output.read().decode(errors="replace")


def end_process(process: subprocess.Popen) -> None:
    """End a process: first by a signal that lets it save, or end its own processes."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def find_reason(errors: str) -> str:
    """Return the program's own error line, else the last line of an error output."""
    lines = [line for line in errors.splitlines() if line.strip()]
    own = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (own or lines or [""])[-1]


# ---- the check


def check_device(name: str) -> None:
    """Check that there is the CUDA device; `cpu` is for trying the check itself.

    Raises:
        UserError: There is none.
    """
    if name == "cpu":
        return
    if name == "mps" or not torch.cuda.is_available():
        raise UserError(
            f"no CUDA device (torch {torch.__version__}); this check is for a machine with an "
            "NVIDIA GPU and a torch that supports it, see docs/installation.md"
        )
    index = int(name.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices")


def run_check(config: GpuCheckConfig, work: Path) -> dict[str, Any]:
    """Run every part in a temporary folder and return the content of the JSON file."""
    started_s = time.monotonic()
    check = Check(config, work, started_s + BUDGET_S)
    for number, (key, measure) in enumerate(PARTS.items(), 1):
        log.info("[%2d/%d] %s", number, len(PARTS), key)
        part_started_s = time.monotonic()
        try:
            result = {"status": "done", **measure(check)}
        except NotApplicableError as error:
            result = {"status": "skipped", "reason": str(error)}
        except (UserError, OSError, RuntimeError, ValueError, LookupError) as error:
            result = {"status": "failed", "reason": describe_error(error)}
        result["time_s"] = round(time.monotonic() - part_started_s, 1)
        check.parts[key] = result
    return {
        "schema": SCHEMA,
        "options": {key: each for key, each in config.to_dict().items() if key != "json"},
        "parts": check.parts,
        "time_s": round(time.monotonic() - started_s, 1),
    }


def generate_phantoms(check: Check) -> Result:
    """Generate the phantoms of the run, and choose the sample of the other parts."""
    config, data_dir = check.config, check.work / "data"
    command = [str(PROJECT_DIR / "prepare.py"), "--phantom", str(config.slices)]
    options = ["--data", str(data_dir), "--seed", str(config.seed)]
    run_process([*command, *options], check.work, check.count_seconds_left(), config.debug)
    largest = choose_batch_sizes(config)[-1]
    n_sample = min(SAMPLE, config.slices)
    sample = make_benchmark_config(config, slices=n_sample, batch_size=largest)
    choose_slices(data_dir, check.work / "sample", sample)
    return {"slices": config.slices}


def resume_twice(check: Check) -> Result:
    """Compare two interrupted and resumed runs with an uninterrupted one, bit for bit."""
    check.run("train", "whole", None)
    differences = {}
    for epoch in (0, 1):
        name = f"stopped in epoch {epoch + 1}"
        if check.run("train", name, epoch)["stopped"] is None:
            raise UserError(f"the run was not interrupted in epoch {epoch + 1}")
        check.run("resume", name)
        differences[name] = find_differences(check.work / "whole", check.work / name)
    if any(differences.values()):
        raise UserError(f"not equal to the uninterrupted run: {differences}")
    return {"bit_identical": list(differences)}


def find_differences(one: Path, other: Path) -> list[str]:
    """Return the entries of last.pt in which two runs differ."""
    keys = ("weights", "trained_weights", "optimizer", "loss_scaler")
    first, second = (torch.load(run / "last.pt", weights_only=True) for run in (one, other))
    losses = [[row["train_loss"] for row in last["history"]] for last in (first, second)]
    found = [key for key in keys if not are_equal(first[key], second[key])]
    return found if losses[0] == losses[1] else [*found, "train_loss"]


def are_equal(one: Any, other: Any) -> bool:
    """Return whether two nested values are equal, tensors to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(are_equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(are_equal, one, other))
    return bool(one == other)


def train_in_two_processes(check: Check) -> Result:
    """Compare speed and gradients of two processes, one for each GPU, with those of one."""
    on_cpu = check.config.device == "cpu"
    if not on_cpu and torch.cuda.device_count() < 2:
        raise NotApplicableError("there are not two CUDA devices")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    one = check.run("processes")
    two = check.run("processes", launcher=launcher)
    files = (check.work / f"gradients-{count}.pt" for count in (1, 2))
    single, double = (torch.load(path, weights_only=True) for path in files)
    difference = float((single - double).norm() / single.norm())
    if not difference < GRADIENT_TOLERANCE:
        raise UserError(f"gradients differ by {difference:.2g} of their norm")
    return {
        "one_images_per_s": one["images_per_s"],
        "two_images_per_s": two["images_per_s"],
        "two_over_one": two["images_per_s"] / one["images_per_s"],
        "gradient_difference": difference,
    }


def run_tests(check: Check) -> Result:
    """Run the tests marked gpu."""
    missing = [name for name in TEST_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise NotApplicableError(
            f"{', '.join(missing)} not installed: python -m pip install -r requirements-dev.txt"
        )
    tests = sorted((PROJECT_DIR / "tests").rglob("test_*.py"))
    files = [str(path) for path in tests if "pytest.mark.gpu" in path.read_text("utf-8")]
    target = check.work / "tests.xml"
    options = ["-m", "gpu", "-q", "-p", "no:cacheprovider", f"--junit-xml={target}"]
    limit_s = min(PART_S, check.count_seconds_left())
    try:
        run_process(["-m", "pytest", *options, *files], PROJECT_DIR, limit_s, check.config.debug)
    except UserError:
        if not target.exists():
            raise
    counts = read_test_results(target)
    if counts["failures"]:
        raise UserError(f"{len(counts['failures'])} of {counts['tests']}: {counts['failures']}")
    return counts


def read_test_results(path: Path) -> Result:
    """Return numbers of passed and skipped tests, and a line for each failed one."""
    cases = list(ElementTree.parse(path).iter("testcase"))
    failures = []
    for case in cases:
        for kind in ("failure", "error"):
            if (found := case.find(kind)) is not None:
                line = (found.get("message") or kind).splitlines()[0]
                failures.append(f"{case.get('name')}: {line}")
    n_skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "tests": len(cases),
        "passed": len(cases) - n_skipped - len(failures),
        "skipped": n_skipped,
        "failures": failures,
    }


def train_to_the_report(check: Check) -> Result:
    """Run main.py on all phantoms, from the start of its process to the report."""
    config, name = check.config, "run"
    n_epochs = choose_epochs(check)
    command = [str(PROJECT_DIR / "main.py"), "--data", str(check.work / "data"), "--name", name]
    command += ["--model", config.model, "--image-size", str(config.image_size), "--no-pretrained"]
    command += ["--epochs", str(n_epochs), "--patience", "0", "--seed", str(config.seed)]
    command += ["--device", config.device, "--threads", str(config.threads)]
    started_s = time.perf_counter()
    outcome = {} if n_epochs == EPOCHS else {"note": f"{EPOCHS} epochs would take too long"}
    try:
        run_process(command, check.work, check.count_seconds_left(reserve_s=0), config.debug)
    except UserError as error:
        outcome = {"status": "failed", "reason": str(error)}
        if not (check.work / "session" / name / "history.csv").exists():
            raise
    time_s = time.perf_counter() - started_s
    history = pd.read_csv(check.work / "session" / name / "history.csv")
    metrics = check.work / "results" / name / "metrics.json"
    accuracy = json.loads(metrics.read_text("utf-8"))["accuracy"] if metrics.exists() else None
    return {
        "epochs": len(history),
        "start_to_report_s": time_s,
        "images_per_s": history["images_per_s"].round(1).tolist(),
        "best_val_accuracy": float(history["val_accuracy"].max()),
        "accuracy": accuracy,
        **outcome,
    }


def choose_epochs(check: Check) -> int:
    """Return how many epochs fit into the time that is left, at most EPOCHS."""
    name = check.parts["machine"].get("precision")
    speed = check.parts.get(f"speed in {name}", {})
    sizes = [speed.get(f"batch {size}", {}) for size in choose_batch_sizes(check.config)]
    images_per_s = sizes[0].get("pipeline_images_per_s")
    if images_per_s is None:
        return EPOCHS
    epoch_s = check.config.slices / images_per_s  # 70 % training, the rest is validation
    left_s = check.count_seconds_left(reserve_s=FINISH_S)
    return max(1, min(EPOCHS, int(left_s / epoch_s)))


PARTS: dict[str, Callable[[Check], Result]] = {
    "machine": lambda check: check.run("machine"),
    "phantoms": generate_phantoms,
    "speed in fp32": lambda check: check.run("speed", "fp32"),
    "speed in bf16": lambda check: check.run("speed", "bf16"),
    "speed in fp16": lambda check: check.run("speed", "fp16"),
    "slices on device, host, disk": lambda check: check.run("tiers"),
    "deterministic resume, twice": resume_twice,
    "out of memory": lambda check: check.run("memory"),
    "second device": lambda check: check.run("second device"),
    "two processes": train_in_two_processes,
    "tests marked gpu": run_tests,
    "torch.compile": lambda check: check.run("compiler"),
    "run to the report": train_to_the_report,
}


# ---- the table


def print_table(report: dict[str, Any]) -> None:
    """Print status, duration and figures of each part."""
    log.info("%-30s %-8s %6s", "part", "status", "s")
    for key, part in report["parts"].items():
        log.info("%-30s %-8s %6.0f", key, part["status"], part["time_s"])
        for line in describe_part(part):
            log.info("%s", textwrap.fill(line, 98, initial_indent="  ", subsequent_indent="    "))


def describe_part(part: Result) -> list[str]:
    """Return the figures of a part: a line for each group of figures, and one for the rest."""
    figures = {key: each for key, each in part.items() if key not in ("status", "time_s")}
    groups = {key: each for key, each in figures.items() if isinstance(each, dict)}
    rest = {key: each for key, each in figures.items() if key not in groups}
    lines = [f"{format_key(key)}: {format_value(each)}" for key, each in groups.items()]
    return lines + ([format_value(rest)] if rest else [])


def format_key(key: str) -> str:
    """Return the name of a figure in words."""
    return key.replace("_per_s", "/s").replace("_", " ")


def format_value(value: Any) -> str:
    """Return figures in one line; of many numbers the median."""
    if isinstance(value, dict):
        return ", ".join(f"{format_key(key)} {format_value(each)}" for key, each in value.items())
    if isinstance(value, list):
        if len(value) > 2 and all(isinstance(each, int | float) for each in value):
            return f"{format_value(float(statistics.median(value)))} (median of {len(value)})"
        return "; ".join(map(format_value, value)) or "none"
    return format_figure(value) if isinstance(value, float) else str(value)
