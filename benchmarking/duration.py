"""Length of the epochs of a benchmark, so that it ends within eight minutes."""

import dataclasses
import math
from pathlib import Path

import helper
from benchmarking.options import FEWEST_SLICES, BenchmarkConfig
from benchmarking.task import SHORT_STEPS, choose_slices, open_task
from benchmarking.training_speed import build_synthetic_step
from helper import log

BUDGET_S = 420.0  # of the eight minutes; the rest is for phantoms and the first step
FEWEST_STEPS = 2
# Duration of the measurements of a round, in synthetic steps per step
EPOCH_COST = 2.5  # synthetic step, pipeline, batch-norm recalibration
SHORT_COST = 3.0  # both DataLoader baselines, inference
TIMM_COST = 2.5  # two epochs
PROCESS_STEPS = 6  # of the new process
PROCESS_S, TIMM_S, OTHERS_S = 12.0, 8.0, 4.0  # starts of processes, stages without a network


def fit_to_machine(config: BenchmarkConfig, data_dir: Path, work: Path) -> BenchmarkConfig:
    """Return options with a number of slices that a benchmark of eight minutes allows.

    Options with `--slices` are returned unchanged, as are those for CUDA, where steps are short.
    """
    if config.slices is not None or helper.resolve_device(config.device).type == "cuda":
        return config
    probe = work / "probe"
    fewest = max(FEWEST_STEPS, math.ceil(FEWEST_SLICES / config.batch_size))
    sample = dataclasses.replace(config, slices=fewest * config.batch_size)
    choose_slices(data_dir, probe, sample)
    measure = build_synthetic_step(open_task(sample, probe))
    measure()  # warm-up
    step_s = config.batch_size / measure()["synthetic_step_images_per_s"]
    n_steps = count_steps(config, step_s, fewest)
    log.info("a training step takes %.2f s: epochs of %d steps", step_s, n_steps)
    if (duration_s := estimate_duration(config, step_s, n_steps)) > BUDGET_S:
        log.info(
            "this takes about %.0f minutes; fewer --repeats or a smaller --batch-size shorten it",
            math.ceil(duration_s / 60),
        )
    return dataclasses.replace(config, slices=n_steps * config.batch_size)


def count_steps(config: BenchmarkConfig, step_s: float, fewest: int = FEWEST_STEPS) -> int:
    """Return how many steps of an epoch fit, for steps that take `step_s`; at least `fewest`."""
    for n_steps in range(config.n_slices // config.batch_size, fewest, -1):
        if estimate_duration(config, step_s, n_steps) <= BUDGET_S:
            return n_steps
    return fewest


def estimate_duration(config: BenchmarkConfig, step_s: float, n_steps: int) -> float:
    """Return how long all rounds take, in s."""
    timm_cost, timm_s = (0.0, 0.0) if config.timm is None else (TIMM_COST, TIMM_S)
    short_steps = min(n_steps, SHORT_STEPS)
    steps = EPOCH_COST * n_steps + (SHORT_COST + timm_cost) * short_steps + PROCESS_STEPS
    return (config.repeats + 1) * (steps * step_s + PROCESS_S + OTHERS_S + timm_s)
