"""Command `python benchmark.py`: measure speed and memory of the program, or check it on a GPU."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import helper
from benchmarking import options
from common import atomic_files, signals
from helper import UserError, log

if TYPE_CHECKING:
    from benchmarking.task import Task

GPU_CHECK = Path("gpu-check.json")

# torch is imported inside the functions, so that `--help` and option errors are quick.


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    config = options.parse_benchmark(argv)
    with signals.raise_on_sigterm():
        if isinstance(config, options.GpuCheckConfig):
            return helper.run_command(check_gpu, config, config.debug)
        return helper.run_command(benchmark, config, config.debug)


def benchmark(config: options.BenchmarkConfig) -> None:
    """Measure in a temporary folder, print the figures and write them to `--json`.

    Raises:
        UserError: The model, device or data folder is invalid, or `--json` cannot be written.
    """
    import model
    from benchmarking import report, timm_training
    from benchmarking.duration import fit_to_machine
    from benchmarking.task import choose_slices, make_phantoms, open_task
    from modeling import precision

    model.check_model(config.model, config.image_size, pretrained=False)
    helper.resolve_device(config.device)
    if config.timm is not None:
        timm_training.check_timm(config.timm, config)
    check_target(config.json)
    precision.keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        work = Path(folder)
        data_dir = config.data or work / "phantoms"
        if config.data is None:
            log.info("generating %d phantoms", config.n_slices)
            make_phantoms(config.n_slices, data_dir, config.seed)
        config = fit_to_machine(config, data_dir, work)
        choose_slices(data_dir, work, config)
        task = open_task(config, work)
        figures = report.build_report(task, measure(task))
    report.print_table(figures)
    if config.json:
        atomic_files.write_json(config.json, figures)
        log.info("written to %s", config.json)


def check_gpu(config: options.GpuCheckConfig) -> None:
    """Check the program on a GPU, print the results and write them to `--json`.

    Raises:
        UserError: There is no CUDA device, the file cannot be written, or a part failed.
    """
    import model
    from benchmarking import gpu_check

    model.check_model(config.model, config.image_size, pretrained=False)
    gpu_check.check_device(config.device)
    target = config.json or GPU_CHECK
    if config.json is None and target.exists():
        raise UserError(f"{target} exists; move it away, or give another file: --json FILE")
    check_target(target)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        report = gpu_check.run_check(config, Path(folder))
    gpu_check.print_table(report)
    atomic_files.write_json(target, report)
    log.info("written to %s; please open an issue of the project and attach this file", target)
    failed = [key for key, part in report["parts"].items() if part["status"] == "failed"]
    if failed:
        raise UserError(
            f"failed: {', '.join(failed)}; {target} has the reasons, please send it too"
        )


def measure(task: "Task") -> dict[str, list[float]]:
    """Measure every figure in every round: first training, then the other stages."""
    from benchmarking import process_start, stages, timm_training, training_speed
    from benchmarking.dataloader_baseline import build_dataloader_baseline
    from benchmarking.rounds import measure_interleaved

    training = {
        "synthetic step": training_speed.build_synthetic_step(task),
        "pipeline": training_speed.build_pipeline(task),
        "DataLoader baseline": build_dataloader_baseline(task, tuned=False),
        "DataLoader baseline, tuned": build_dataloader_baseline(task, tuned=True),
    }
    if task.config.timm is not None:
        training["train.py of timm"] = timm_training.build_timm(task, task.config.timm)
    measured = measure_interleaved(training, task.config.repeats)
    del training  # end the workers and free the networks
    others = {
        "inference": stages.build_inference(task),
        "reading": stages.build_reading(task),
        "duplicates": stages.build_duplicate_search(task),
        "cache": stages.build_cache(task),
        "new process": process_start.build_start(task),
    }
    return measured | measure_interleaved(others, task.config.repeats)


def check_target(path: Path | None) -> None:
    """Check before the measurements that `--json` can be written.

    Raises:
        UserError: It cannot.
    """
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"--json {path}: a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"--json {path}: not writable there ({error.strerror})") from error


if __name__ == "__main__":
    sys.exit(main())
