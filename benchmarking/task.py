"""What is measured on what: the slices of an epoch, the network, the device."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import dataset
import helper
import model
from args import BenchmarkConfig
from helper import UserError
from loading.image_source import Slices
from modeling import precision
from phantoms.generator import plan_phantoms
from preparation.ingest import render_phantoms
from preparation.manifest import build_manifest, measure_images, write_manifest

# A GPU is through a small epoch before its clock has settled: as many steps there as the published
# slices give in batches of 32.
CUDA_STEPS = 200
# The usual pipeline and fp32 inference are slow on a CPU: whole batches of this number of steps.
SHORT_STEPS = 8


@dataclass(frozen=True)
class Task:
    """What all measurements have in common.

    Attributes:
        config: The options.
        work: Folder of the manifest of the chosen slices and of their pixel cache.
        distinct: The manifest of the chosen slices; its paths are absolute.
        rows: The slices of an epoch, whole batches; some come again where a GPU needs more steps
            than there are slices.
        classes: Their names, in the order of the outputs.
        device: Where it runs.
        precision: bf16 or fp32, of training.
        threads: Of the CPU.
    """

    config: BenchmarkConfig
    work: Path
    distinct: pd.DataFrame
    rows: pd.DataFrame
    classes: list[str]
    device: torch.device
    precision: str
    threads: int

    @property
    def n_steps(self) -> int:
        """Steps of an epoch."""
        return len(self.rows) // self.config.batch_size

    @property
    def n_short_steps(self) -> int:
        """Steps of what would take too long over a whole epoch."""
        return self.n_steps if self.device.type == "cuda" else min(self.n_steps, SHORT_STEPS)

    def build_network(self) -> model.Classifier:
        """The program's network on the device, untrained: speed does not ask what weights are."""
        config = self.config
        helper.seed_everything(config.seed, "weights")
        network = model.build_model(config.model, len(self.classes), config.image_size)
        return network.to(self.device)

    def take_slices(self, n_steps: int, folder: Path | None = None) -> Slices:
        """The slices of the first steps on the device, from the pixel cache of a folder.

        Args:
            n_steps: Whole batches.
            folder: None: `work`. In an empty one they are decoded.
        """
        slices = dataset.take_slices(
            self.rows.head(n_steps * self.config.batch_size).assign(split="train"),
            "train",
            folder or self.work,
            self.classes,
            self.config.image_size,
        )
        return slices.to(self.device)


def open_task(config: BenchmarkConfig, work: Path) -> Task:
    """The task of a folder that `choose_slices` has filled.

    Raises:
        UserError: This machine has no such device.
    """
    threads = helper.set_threads(config.threads)
    device = helper.resolve_device(config.device)
    distinct = dataset.load_table(work)
    fewest = CUDA_STEPS * config.batch_size if device.type == "cuda" else 0
    times = max(1, math.ceil(fewest / len(distinct)))
    return Task(
        config=config,
        work=work,
        distinct=distinct,
        rows=pd.concat([distinct] * times, ignore_index=True),
        classes=dataset.list_classes(distinct),
        device=device,
        precision=precision.resolve_precision(config.precision, device, config.model),
        threads=threads,
    )


def choose_slices(data_dir: Path, work: Path, config: BenchmarkConfig) -> None:
    """Draw whole batches of slices from a prepared folder into a manifest of their own.

    They are of every split: nothing that is learnt from them is kept. Their paths are absolute, so
    that the folder they lie in is left as it is.

    Raises:
        UserError: There is no manifest, or not one batch of readable slices.
    """
    table = dataset.load_table(data_dir)
    n_chosen = min(config.slices, len(table)) // config.batch_size * config.batch_size
    if not n_chosen:
        raise UserError(
            f"{data_dir}: {len(table)} readable slices are less than a batch of "
            f"{config.batch_size}; give a smaller --batch-size"
        )
    generator = np.random.default_rng(helper.derive_seed(config.seed, "benchmark"))
    chosen = table.sample(n_chosen, random_state=generator)
    paths = [(data_dir / path).absolute().as_posix() for path in chosen["path"]]
    write_manifest(chosen.assign(path=paths), work)


def make_phantoms(n_phantoms: int, data_dir: Path, seed: int) -> None:
    """Fill a folder with phantoms and their manifest."""
    plans = {f"Images/{plan.label}/{plan.name}": plan for plan in plan_phantoms(n_phantoms, seed)}
    ids = {name: (f"s{plan.slice:06d}", f"g{plan.patient:06d}") for name, plan in plans.items()}
    facts = measure_images(render_phantoms(plans, data_dir), len(plans), "phantoms")
    write_manifest(build_manifest(data_dir, seed, facts, true_ids=ids), data_dir)


def count_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
