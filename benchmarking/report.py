"""Report of a benchmark: medians, ranges, rounds and the conditions of the measurement."""

import statistics
import sys
from typing import Any

import helper
from benchmarking import process_start
from benchmarking.task import Task
from common.machine import count_cores, read_cpu_model
from helper import log

SCHEMA = 3  # 2: without the tuned baseline and timm; 1: other keys for step and baseline
# Label and unit of each figure.
FIGURES = {
    "synthetic_step_images_per_s": ("synthetic step: one fixed batch in memory", "images/s"),
    "pipeline_images_per_s": ("pipeline: whole epochs of training", "images/s"),
    "dataloader_baseline_images_per_s": ("DataLoader baseline: workers, fp32", "images/s"),
    "dataloader_tuned_images_per_s": ("DataLoader baseline, tuned as the pipeline", "images/s"),
    "timm_images_per_s": ("train.py of timm", "images/s"),
    "pipeline_over_synthetic_step": ("pipeline / synthetic step", ""),
    "pipeline_over_dataloader_baseline": ("pipeline / DataLoader baseline", ""),
    "pipeline_over_dataloader_tuned": ("pipeline / DataLoader baseline, tuned", ""),
    "pipeline_over_timm": ("pipeline / train.py of timm", ""),
    "recalibrate_batch_norm_s": ("batch-norm recalibration after an epoch", "s"),
    "inference_images_per_s": ("inference, fp32", "images/s"),
    "files_images_per_s": ("inference from files, decoded first", "images/s"),
    "files_over_inference": ("inference from files / inference", ""),
    "read_slices_s": ("reading and hashing every slice", "s"),
    "find_duplicates_s": ("finding duplicates and groups", "s"),
    "build_cache_s": ("decoding every slice into the cache", "s"),
    "import_torch_s": ("a process that imports torch", "s"),
    "first_step_s": ("process start to first step, cache warm", "s"),
    "first_step_beyond_torch_s": ("of this, without importing torch", "s"),
    "peak_memory_mib": ("peak memory of a training process", "MiB"),
    "peak_device_memory_mib": ("its peak memory on the device", "MiB"),
}
RATIOS = {
    "pipeline_over_synthetic_step": ("pipeline_images_per_s", "synthetic_step_images_per_s"),
    "pipeline_over_dataloader_baseline": (
        *("pipeline_images_per_s", "dataloader_baseline_images_per_s"),
    ),
    "pipeline_over_dataloader_tuned": ("pipeline_images_per_s", "dataloader_tuned_images_per_s"),
    "pipeline_over_timm": ("pipeline_images_per_s", "timm_images_per_s"),
    "files_over_inference": ("files_images_per_s", "inference_images_per_s"),
}
UNDEFINED = {
    **dict.fromkeys(
        ("timm_images_per_s", "pipeline_over_timm"), "measured with --timm only (--help)"
    ),
    "peak_memory_mib": "this system does not report the peak memory of a process",
    "peak_device_memory_mib": "measured on CUDA only",
}


def build_report(task: Task, measured: dict[str, list[float]]) -> dict[str, Any]:
    """Build the content of `--json` from the values of each figure, one per round."""
    rounds = dict(measured)
    for key, (numerator, denominator) in RATIOS.items():
        if denominator in measured:
            pairs = zip(measured[numerator], measured[denominator], strict=True)
            rounds[key] = [above / below for above, below in pairs]
    rounds = {key: rounds[key] for key in FIGURES if key in rounds}
    return {
        "schema": SCHEMA,
        **{key: statistics.median(rounds[key]) if key in rounds else None for key in FIGURES},
        "spread": {key: [min(values), max(values)] for key, values in rounds.items()},
        "rounds": rounds,
        "steps": {
            "synthetic_step": task.n_steps,
            "pipeline": task.n_steps,
            "dataloader": task.n_short_steps,
            **({} if task.config.timm is None else {"timm": task.n_short_steps}),
            "inference": task.n_short_steps,
            "new_process": process_start.STEPS,
        },
        "notes": build_notes(task, set(FIGURES) - set(rounds)),
        "environment": describe_conditions(task),
    }


def build_notes(task: Task, undefined: set[str]) -> list[str]:
    """Return notes on the slices, and the reason for each undefined figure."""
    config, notes = task.config, []
    if config.data is None:
        notes.append("the slices are generated phantoms of 512 x 512 px")
    if len(task.distinct) < config.n_slices:
        reason = "only whole batches are used, so that each slice counts equally"
        notes.append(f"{len(task.distinct)} slices instead of {config.n_slices}: {reason}")
    if len(task.rows) > len(task.distinct):
        notes.append(f"an epoch of {task.n_steps} steps uses slices more than once")
    return notes + [f"{key}: {UNDEFINED[key]}" for key in FIGURES if key in undefined]


def describe_conditions(task: Task) -> dict[str, Any]:
    """Return the machine, the versions and the options that the figures depend on."""
    config = task.config
    options = ("model", "compile", "batch_size", "image_size", "repeats", "seed")
    return {
        **helper.describe_environment(task.device, sys.argv),
        **{key: getattr(config, key) for key in options},
        "cpu": read_cpu_model(),
        "cores": count_cores(),
        "precision": task.precision,
        "data": "phantoms" if config.data is None else config.data.as_posix(),
        "n_slices": len(task.distinct),
    }


def print_table(report: dict[str, Any]) -> None:
    """Print every figure with its range over the rounds and its unit, then the conditions."""
    log.info("%-42s %10s  %-22s %s", "", "median", "[min, max]", "unit")
    for key, (label, unit) in FIGURES.items():
        if report[key] is None:
            log.info("%-42s %10s", label, "-")
            continue
        spread = "[{}, {}]".format(*map(format_figure, report["spread"][key]))
        log.info("%-42s %10s  %-22s %s", label, format_figure(report[key]), spread, unit)
    for note in report["notes"]:
        log.info("note: %s", note)
    steps = ", ".join(f"{name} {count}" for name, count in report["steps"].items())
    log.info("steps per round: %s", steps)
    log.info(
        "%(n_slices)d slices, %(model)s at %(image_size)d px, batches of %(batch_size)d, "
        "%(precision)s, on %(device)s "
        "(%(cpu)s, %(cores)d cores, %(threads)d threads); commit %(commit)s",
        report["environment"],
    )


def format_figure(value: float) -> str:
    """Format with three significant digits, or as an integer from 1,000 on."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.3g}"
