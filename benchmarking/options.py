"""Options of benchmark.py and their parser; imports no heavy package, so that `--help` is quick."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from args import MODEL_HELP, PRECISIONS
from common.cli import add_options, build_parser, fill_dataclass, name_flag, option, simplify
from common.shared_options import debug_option, device_option, threads_option

FEWEST_SLICES, MOST_SLICES = 12, 640


@dataclass(frozen=True)
class BenchmarkConfig:
    """Data, network and measurement."""

    json: Path | None = option(None, "write all measurements to this file", metavar="FILE")
    data: Path | None = option(
        None, "folder that prepare.py wrote (default: new phantoms)", metavar="DIR"
    )
    slices: int | None = option(
        None,
        "slices per epoch (default: as many as a benchmark of eight minutes allows on this "
        f"machine, at most {MOST_SLICES})",
        low=FEWEST_SLICES,
        metavar="N",
    )
    model: str = option("resnet18", MODEL_HELP, metavar="NAME")
    image_size: int = option(224, "side of the square input, px", low=16, high=2048, metavar="PX")
    batch_size: int = option(32, "slices per step", low=4, metavar="N")
    repeats: int = option(3, "rounds measured, after one warm-up round", low=1, metavar="N")
    seed: int = option(0, "seed of phantoms, sampling, weights and order", low=0, metavar="N")
    device: str = device_option()
    threads: int = threads_option()
    precision: str = option("auto", "training precision; one baseline is fp32", choices=PRECISIONS)
    compile: str = option("off", "torch.compile; never for the baseline", choices=("on", "off"))
    timm: Path | None = option(
        None,
        "measure timm's train.py too, in the folder that `python -m benchmarking.timm_setup DIR` "
        "filled",
        metavar="DIR",
    )
    debug: bool = debug_option()

    @property
    def n_slices(self) -> int:
        """Slices per epoch, or the most that are chosen if `slices` is not given."""
        return self.slices or max(MOST_SLICES, self.batch_size)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for the processes that the benchmark starts."""
        return simplify(dataclasses.asdict(self))


@dataclass(frozen=True)
class GpuCheckConfig:
    """Options of `benchmark.py --gpu-check`; the others of benchmark.py do not apply."""

    json: Path | None = option(None, "file to write (default: gpu-check.json)")
    slices: int = option(6056, "phantoms to generate", low=12)
    model: str = option("resnet18", MODEL_HELP)
    image_size: int = option(224, "side of the square input, px", low=16, high=2048)
    seed: int = option(0, "seed of phantoms, sampling, weights and order", low=0)
    device: str = device_option()
    threads: int = threads_option()
    debug: bool = debug_option()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for the processes that the check starts."""
        return simplify(dataclasses.asdict(self))


def parse_benchmark(argv: Sequence[str] | None = None) -> BenchmarkConfig | GpuCheckConfig:
    """Parse the command line of benchmark.py; exit like `parse_train`."""
    parser = build_parser(
        "benchmark.py",
        "[options]",
        "Measure training throughput beside its upper bound, a synthetic step without data "
        "loading, and beside a DataLoader baseline (ImageFolder, workers, transforms per image).",
        "examples:\n"
        "  python benchmark.py --json results/benchmarks/speed.json\n"
        "  python benchmark.py --model net --data data --slices 3000\n"
        "  python benchmark.py --gpu-check",
    )
    add_options(parser, BenchmarkConfig)
    parser.add_argument(
        "--gpu-check",
        action="store_true",
        help="instead, check the whole program on this GPU in ten minutes (tests, precisions, "
        "compiler, resume, memory, a run of 30 epochs on 6056 phantoms) and write gpu-check.json; "
        "nothing leaves this machine",
    )
    given = vars(parser.parse_args(argv))
    if "gpu_check" in given:
        known = {field.name for field in dataclasses.fields(GpuCheckConfig)} | {"gpu_check"}
        if extra := sorted(set(given) - known):
            parser.error(f"--gpu-check chooses this itself; leave out {name_flag(extra[0])}")
        return fill_dataclass(GpuCheckConfig, given)
    config = fill_dataclass(BenchmarkConfig, given)
    if config.n_slices < config.batch_size:
        parser.error(f"--slices {config.slices}: less than one batch of {config.batch_size}")
    return config
