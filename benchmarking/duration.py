"""Length of the epochs of a benchmark, so that it ends within eight minutes."""

import dataclasses
from pathlib import Path

import helper
from benchmarking.options import BenchmarkConfig
from benchmarking.task import SHORT_STEPS, choose_slices, open_task
from benchmarking.training_speed import build_synthetic_step
from helper import log

TRAINING_S = 330.0  # of all rounds of training; the other stages take about two minutes
FEWEST_STEPS = 2
# Duration of a measurement of training, in synthetic steps per step
EPOCH_COST = 2.5  # synthetic step, pipeline, batch-norm recalibration
SHORT_COST = 3.0  # both DataLoader baselines
TIMM_COST = 2.5  # two epochs; its start is not included


def fit_to_machine(config: BenchmarkConfig, data_dir: Path, work: Path) -> BenchmarkConfig:
    """Return options with a number of slices that a benchmark of eight minutes allows.

    Options with `--slices` are returned unchanged, as are those for CUDA, where steps are short.
    """
    if config.slices is not None or helper.resolve_device(config.device).type == "cuda":
        return config
    probe = work / "probe"
    sample = dataclasses.replace(config, slices=FEWEST_STEPS * config.batch_size)
    choose_slices(data_dir, probe, sample)
    measure = build_synthetic_step(open_task(sample, probe))
    measure()  # warm-up
    step_s = config.batch_size / measure()["synthetic_step_images_per_s"]
    n_steps = count_steps(config, step_s)
    log.info("a training step takes %.2f s: epochs of %d steps", step_s, n_steps)
    return dataclasses.replace(config, slices=n_steps * config.batch_size)


def count_steps(config: BenchmarkConfig, step_s: float) -> int:
    """Return how many steps of an epoch fit, for steps that take `step_s`."""
    fits = TRAINING_S / (config.repeats + 1) / step_s
    short_cost = SHORT_COST + (0.0 if config.timm is None else TIMM_COST)
    most = max(FEWEST_STEPS, config.n_slices // config.batch_size)
    for n_steps in range(most, FEWEST_STEPS, -1):
        if EPOCH_COST * n_steps + short_cost * min(n_steps, SHORT_STEPS) <= fits:
            return n_steps
    return FEWEST_STEPS
