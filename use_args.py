"""Options of the verbs that use a checkpoint on new pictures, made as those of args.py are."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from args import DEVICE
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
    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps", metavar="D", pattern=DEVICE)
    threads: int = option(0, "CPU threads; 0: as many as there are cores", low=0, metavar="N")
    debug: bool = option(False, "show the traceback of an error")

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
