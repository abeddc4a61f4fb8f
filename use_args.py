"""Options of the verbs that use a checkpoint on new pictures, made as those of args.py are."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from args import debug_option, device_option, threads_option
from options import add_options, argument, build_parser, fill_dataclass, option


@dataclass(frozen=True)
class PredictConfig:
    """What predict.py judges, and where its table goes."""

    paths: tuple[Path, ...] = argument(
        "session/RUN/best.pt, more of them for an ensemble, then files and folders of JPEG, PNG, "
        "TIFF, BMP or DICOM",
        metavar="PATH",
        several=True,
    )
    out: Path = option(
        Path("predictions.csv"), "the table: CSV, or JSON lines by .jsonl", metavar="FILE"
    )
    overwrite: bool = option(False, "replace a table that is there")
    heatmaps: Path | None = option(
        None,
        "also draw each picture with its heat map there; takes seconds a picture on a CPU",
        metavar="DIR",
    )
    device: str = device_option()
    threads: int = threads_option()
    debug: bool = debug_option()

    @property
    def checkpoints(self) -> tuple[Path, ...]:
        """The .pt files that come first."""
        return tuple(itertools.takewhile(lambda path: path.suffix == ".pt", self.paths))

    @property
    def pictures(self) -> tuple[Path, ...]:
        """The files and folders behind them."""
        return self.paths[len(self.checkpoints) :]


def parse_predict(argv: Sequence[str] | None = None) -> PredictConfig:
    """The configuration of predict.py; exits as `parse_train` does."""
    parser = build_parser(
        "predict.py",
        "CHECKPOINT [MORE.pt …] PATH… [options]",
        "Judge pictures and DICOM series: a row for each with calibrated probabilities, the "
        "prediction set, whether a radiologist should look (refer) and whether it is unlike what "
        "the network learnt from (unlike). Several checkpoints are averaged.",
        "examples:\n"
        "  python predict.py session/RUN/best.pt slices/\n"
        "  python predict.py session/RUN/best.pt study/ --out study.jsonl --heatmaps maps/",
    )
    add_options(parser, PredictConfig)
    config = fill_dataclass(PredictConfig, vars(parser.parse_args(argv)))
    if not config.checkpoints:
        parser.error(f"{config.paths[0]} is no checkpoint; name session/RUN/best.pt first")
    if not config.pictures:
        parser.error("name pictures or folders to judge, behind the checkpoint")
    return config


@dataclass(frozen=True)
class AppConfig:
    """What the page of app.py judges with, and where it is offered."""

    checkpoints: tuple[Path, ...] = argument(
        "session/RUN/best.pt; several are averaged", metavar="CHECKPOINT", several=True
    )
    host: str = option("127.0.0.1", "address to offer the page at", metavar="ADDRESS")
    port: int = option(7860, "port of the page", low=1, high=65535, metavar="N")
    data: Path | None = option(
        None, "folder of the training slices (default: the run's own)", metavar="DIR"
    )
    device: str = device_option()
    threads: int = threads_option()
    debug: bool = debug_option()


def parse_app(argv: Sequence[str] | None = None) -> AppConfig:
    """The configuration of app.py; exits as `parse_train` does."""
    parser = build_parser(
        "app.py",
        "CHECKPOINT [MORE.pt …] [options]",
        "Offer a local web page on which slices are dropped: probabilities, prediction set, heat "
        "map, nearest training slices. Slices go from the browser to this program and no further; "
        "with --host they cross the network to it unencrypted.",
        "examples:\n"
        "  python app.py session/RUN/best.pt\n"
        "  python app.py session/RUN/best.pt --port 8000",
    )
    add_options(parser, AppConfig)
    return fill_dataclass(AppConfig, vars(parser.parse_args(argv)))


@dataclass(frozen=True)
class ExportConfig:
    """What export.py writes, and what it is checked on."""

    checkpoint: Path = argument("session/RUN/best.pt", metavar="CHECKPOINT")
    out: Path = option(Path("model.onnx"), "the file to write", metavar="FILE")
    overwrite: bool = option(False, "replace a file that is there")
    precision: str = option(
        "fp32",
        "arithmetic of the network; int8 is faster on CPUs that have instructions for it, and is "
        "judged on val first",
        choices=("fp32", "int8"),
    )
    data: Path | None = option(
        None,
        "folder that prepare.py wrote, for the val slices of the check (default: the run's own; "
        "phantoms where it is not there)",
        metavar="DIR",
    )
    threads: int = threads_option(" of check and timing")
    debug: bool = debug_option()


def parse_export(argv: Sequence[str] | None = None) -> ExportConfig:
    """The configuration of export.py; exits as `parse_train` does."""
    parser = build_parser(
        "export.py",
        "CHECKPOINT [options]",
        "Write a checkpoint as one ONNX file that needs nothing of this program: grey pictures of "
        "any size and position in, calibrated probabilities and prediction sets out. The file gets "
        "its name once onnxruntime gives the answers of this program.",
        "examples:\n"
        "  python export.py session/RUN/best.pt\n"
        "  python export.py session/RUN/best.pt --out brain.onnx --overwrite",
    )
    add_options(parser, ExportConfig)
    return fill_dataclass(ExportConfig, vars(parser.parse_args(argv)))
