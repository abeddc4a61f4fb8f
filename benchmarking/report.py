"""The figures of a benchmark: medians, spreads, rounds, and the machine they are of."""

import platform
import sys
from pathlib import Path
from typing import Any

import helper
from benchmarking import process_start
from benchmarking.rounds import divide_rounds, find_median, find_spread
from benchmarking.task import Task, count_cores
from helper import log

SCHEMA = 1
# Key of each figure: what it is, in which unit.
FIGURES = {
    "limit_images_per_s": ("limit: one fixed batch in memory", "images/s"),
    "pipeline_images_per_s": ("pipeline: whole epochs of training", "images/s"),
    "usual_images_per_s": ("usual: ImageFolder, workers, fp32", "images/s"),
    "pipeline_over_limit": ("pipeline / limit", ""),
    "pipeline_over_usual": ("pipeline / usual", ""),
    "statistics_s": ("batch norm's statistics after an epoch", "s"),
    "inference_images_per_s": ("inference, fp32", "images/s"),
    "files_images_per_s": ("the same from files, decoded first", "images/s"),
    "files_over_inference": ("files / inference", ""),
    "read_slices_s": ("reading and hashing every slice", "s"),
    "find_copies_s": ("finding copies and groups", "s"),
    "build_cache_s": ("decoding every slice into the cache", "s"),
    "import_torch_s": ("a process that imports torch", "s"),
    "first_step_s": ("process start to first step, cache warm", "s"),
    "first_step_beyond_torch_s": ("of it beyond importing torch", "s"),
    "peak_memory_mib": ("peak memory of a training process", "MiB"),
    "peak_device_memory_mib": ("peak memory of it on the device", "MiB"),
}
RATIOS = {
    "pipeline_over_limit": ("pipeline_images_per_s", "limit_images_per_s"),
    "pipeline_over_usual": ("pipeline_images_per_s", "usual_images_per_s"),
    "files_over_inference": ("files_images_per_s", "inference_images_per_s"),
}
UNDEFINED = {
    "peak_memory_mib": "this system does not tell a process how much memory it has held",
    "peak_device_memory_mib": "measured on CUDA alone",
}


def build_report(task: Task, measured: dict[str, list[float]]) -> dict[str, Any]:
    """Everything that `--json` writes: medians by key, `spread`, `rounds`, `steps`, `environment`.

    Args:
        task: What was measured.
        measured: The figures of every round by key; ratios are taken here, round by round.
    """
    ratios = {
        key: divide_rounds(measured[above], measured[below])
        for key, (above, below) in RATIOS.items()
    }
    rounds = {key: (measured | ratios).get(key) for key in FIGURES}
    known = {key: values for key, values in rounds.items() if values}
    return {
        "schema": SCHEMA,
        **{key: find_median(values) if values else None for key, values in rounds.items()},
        "spread": {key: find_spread(values) for key, values in known.items()},
        "rounds": known,
        "steps": {
            "limit": task.n_steps,
            "pipeline": task.n_steps,
            "usual": task.n_short_steps,
            "inference": task.n_short_steps,
            "new process": process_start.STEPS,
        },
        "notes": build_notes(task, set(rounds) - set(known)),
        "environment": describe_conditions(task),
    }


def build_notes(task: Task, undefined: set[str]) -> list[str]:
    """What a reader of the figures must know."""
    config, notes = task.config, []
    if config.data is None:
        notes.append("the slices are generated phantoms of 512 x 512 px")
    if len(task.distinct) < config.slices:
        whole = "whole batches alone, so that each slice counts equally"
        notes.append(f"{len(task.distinct)} slices instead of {config.slices}: {whole}")
    if len(task.rows) > len(task.distinct):
        notes.append(f"an epoch of {task.n_steps} steps takes slices more than once")
    return notes + [f"{key}: {UNDEFINED[key]}" for key in FIGURES if key in undefined]


def describe_conditions(task: Task) -> dict[str, Any]:
    """The machine, the versions, and all that the figures depend on."""
    config = task.config
    return {
        **helper.describe_environment(task.device, sys.argv),
        "cpu": read_cpu_model(),
        "cores": count_cores(),
        "model": config.model,
        "precision": task.precision,
        "compile": config.compile,
        "batch_size": config.batch_size,
        "image_size": config.image_size,
        "data": "phantoms" if config.data is None else config.data.as_posix(),
        "n_slices": len(task.distinct),
        "repeats": config.repeats,
        "seed": config.seed,
    }


def read_cpu_model() -> str:
    """What the processor calls itself."""
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        for line in listed.read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def print_table(report: dict[str, Any]) -> None:
    """Every figure with its unit and its least and greatest round, then the conditions."""
    log.info("%-42s %10s  %-22s %s", "", "median", "[least, greatest]", "unit")
    for key, (what, unit) in FIGURES.items():
        if report[key] is None:
            log.info("%-42s %10s", what, "-")
            continue
        spread = "[{}, {}]".format(*map(show, report["spread"][key]))
        log.info("%-42s %10s  %-22s %s", what, show(report[key]), spread, unit)
    for note in report["notes"]:
        log.info("note: %s", note)
    steps = ", ".join(f"{name} {count}" for name, count in report["steps"].items())
    log.info("steps of a round: %s", steps)
    log.info(
        "%s at %d px, batches of %d, %s, on %s (%s, %d cores, %d threads); commit %s",
        *(report["environment"][key] for key in ("model", "image_size", "batch_size")),
        *(report["environment"][key] for key in ("precision", "device", "cpu", "cores")),
        *(report["environment"][key] for key in ("threads", "commit")),
    )


def show(value: float) -> str:
    """Three figures at least."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.3g}"
