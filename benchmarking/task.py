"""Settings shared by all measurements: slices of an epoch, network and device."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import dataset
import helper
import model
from benchmarking.options import BenchmarkConfig
from helper import UserError
from loading.image_source import SliceSource
from modeling import precision
from preparation.ingest import ingest_phantoms, plan_phantom_files
from preparation.manifest import write_manifest

CUDA_STEPS = 200  # minimum per epoch; a shorter epoch ends before the GPU clock settles
SHORT_STEPS = 8  # per epoch of the DataLoader baseline and fp32 inference on a CPU: they are slow


@dataclass(frozen=True)
class Task:
    """Settings shared by all measurements.

    Attributes:
        config: Options of benchmark.py.
        work: Folder of the manifest of the chosen slices and of their pixel cache.
        distinct: Manifest of the chosen slices with absolute paths.
        rows: Slices of an epoch in whole batches; on CUDA they may be repeated.
        classes: Class names in the order of the outputs.
        device: Device of all measurements.
        precision: Training precision, `bf16` or `fp32`.
    """

    config: BenchmarkConfig
    work: Path
    distinct: pd.DataFrame
    rows: pd.DataFrame
    classes: list[str]
    device: torch.device
    precision: str

    @property
    def n_steps(self) -> int:
        """Steps per epoch."""
        return len(self.rows) // self.config.batch_size

    @property
    def n_short_steps(self) -> int:
        """Steps of measurements that would take too long over a whole epoch."""
        return self.n_steps if self.device.type == "cuda" else min(self.n_steps, SHORT_STEPS)

    def build_network(self) -> model.Classifier:
        """Build the program's network with random weights on the device."""
        config = self.config
        helper.seed_everything(config.seed, "weights")
        network = model.build_model(config.model, len(self.classes), config.image_size)
        return network.to(self.device)

    def take_slices(self, n_steps: int, folder: Path | None = None) -> SliceSource:
        """Load the slices of the first steps to the device, with a pixel cache in `folder`."""
        slices = dataset.take_slices(
            self.rows.head(n_steps * self.config.batch_size).assign(split="train"),
            "train",
            folder or self.work,
            self.classes,
            self.config.image_size,
        )
        return slices.to(self.device)


def open_task(config: BenchmarkConfig, work: Path) -> Task:
    """Open the task in a folder that `choose_slices` has filled.

    Raises:
        UserError: The machine lacks `config.device`.
    """
    helper.set_threads(config.threads)
    device = helper.resolve_device(config.device)
    distinct = dataset.load_table(work)
    min_slices = CUDA_STEPS * config.batch_size if device.type == "cuda" else 0
    n_repeats = max(1, math.ceil(min_slices / len(distinct)))
    return Task(
        config=config,
        work=work,
        distinct=distinct,
        rows=pd.concat([distinct] * n_repeats, ignore_index=True),
        classes=dataset.list_classes(distinct),
        device=device,
        precision=precision.resolve_precision(config.precision, device, config.model),
    )


def choose_slices(data_dir: Path, work: Path, config: BenchmarkConfig) -> None:
    """Draw whole batches of slices from a prepared folder and write a manifest of them to `work`.

    All splits are used, because the trained weights are discarded. The manifest has absolute
    paths; the prepared folder does not change.

    Raises:
        UserError: There is no manifest, or fewer readable slices than one batch.
    """
    table = dataset.load_table(data_dir)
    n_chosen = min(config.n_slices, len(table)) // config.batch_size * config.batch_size
    if not n_chosen:
        raise UserError(
            f"{data_dir}: {len(table)} readable slices are fewer than a batch of "
            f"{config.batch_size}; give a smaller --batch-size"
        )
    generator = np.random.default_rng(helper.derive_seed(config.seed, "benchmark"))
    chosen = table.sample(n_chosen, random_state=generator)
    paths = [(data_dir / path).absolute().as_posix() for path in chosen["path"]]
    write_manifest(chosen.assign(path=paths), work)


def make_phantoms(n_phantoms: int, data_dir: Path, seed: int) -> None:
    """Generate phantoms and their manifest in a folder."""
    frame, _ = ingest_phantoms(plan_phantom_files(n_phantoms, seed), data_dir, seed)
    write_manifest(frame, data_dir)
