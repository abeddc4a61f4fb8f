"""Write a checkpoint as an ONNX file: `python export.py session/RUN/best.pt`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import helper
from common import atomic_files
from common.cli import add_options, argument, build_parser, fill_dataclass, option
from common.shared_options import calibration_option, debug_option, threads_option
from helper import UserError, log

TIMED_SLICES = 32


@dataclass(frozen=True)
class ExportConfig:
    """Input, output and precision of export.py."""

    checkpoint: Path = argument(
        "session/RUN/best.pt, or session/RUN; one with --folds is one ensemble",
        metavar="CHECKPOINT_OR_RUN",
    )
    out: Path = option(Path("model.onnx"), "the file to write", metavar="FILE")
    overwrite: bool = option(False, "replace an existing file")
    calibration: Path | None = calibration_option()
    precision: str = option(
        "fp32",
        "arithmetic of the network; int8 is faster on CPUs with instructions for it, and its lost "
        "accuracy is measured on val",
        choices=("fp32", "int8"),
    )
    data: Path | None = option(
        None,
        "folder that prepare.py wrote, for the val slices of the check (default: the run's own; "
        "phantoms if it does not exist)",
        metavar="DIR",
    )
    threads: int = threads_option(" of check and timing")
    debug: bool = debug_option()


def parse_args(argv: Sequence[str] | None = None) -> ExportConfig:
    """Parse the command line of export.py; exit like `args.parse_train` on errors."""
    parser = build_parser(
        "export.py",
        "CHECKPOINT_OR_RUN [options]",
        "Write a checkpoint, or the ensemble of all folds of a run, as one ONNX file that does not "
        "need this program. It takes grey images of any size and orientation and returns "
        "calibrated probabilities and prediction sets. It is kept only if onnxruntime gives the "
        "same predictions as this program.",
        "examples:\n"
        "  python export.py session/RUN/best.pt\n"
        "  python export.py session/RUN\n"
        "  python export.py session/RUN/best.pt --out brain.onnx --overwrite",
    )
    add_options(parser, ExportConfig)
    return fill_dataclass(ExportConfig, vars(parser.parse_args(argv)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    config = parse_args(argv)
    return helper.run_command(export, config, config.debug)


def export(config: ExportConfig) -> None:
    """Write the checkpoint as an ONNX file after comparing it with this program.

    Raises:
        UserError: A package or the checkpoint is missing, the file exists, the network cannot be
            exported, or onnxruntime gives different predictions.
    """
    if config.out.is_dir():
        raise UserError(f"{config.out} is a folder; name a file in it")
    if config.out.exists() and not config.overwrite:
        raise UserError(f"{config.out} exists; name another --out, or give --overwrite")
    from inference.predictor import load_predictor
    from onnx_export import exporter, int8, parity, validation

    exporter.check_packages()
    predictor = load_predictor([config.checkpoint], "cpu", config.threads, config.calibration)
    if config.precision == "int8" and len(predictor.members) > 1:
        raise UserError(
            "--precision int8 takes one network; leave it out, or name the best.pt of one fold"
        )
    for line in predictor.list_warnings():
        log.info("note: %s", line)
    member, threads = predictor.members[0], helper.set_threads(config.threads)
    slices = validation.find_slices(member.checkpoint, config.data)
    images, origin = slices.read_checked()
    metadata = exporter.build_metadata(predictor)
    with atomic_files.atomic_path(config.out) as temporary:
        exporter.write_onnx(temporary, exporter.build_graph(predictor), metadata)
        sessions = {"fp32": exporter.open_onnx(temporary, threads)}
        difference = parity.compare(predictor, sessions["fp32"], parity.vary(images))
        sets = " and prediction sets" if predictor.fitted.has_sets else ""
        log.info(
            "fp32 checked on %d %s, rotated, mirrored and cropped: the same labels%s, "
            "probabilities differ by %.1e at most",
            *(len(images), origin, sets, difference),
        )
        if config.precision == "int8":
            sessions["int8"] = int8.convert(temporary, slices, metadata, threads)
        speeds = parity.measure_speeds(predictor, sessions, images[:TIMED_SLICES])
    shown = ", ".join(f"{name} {speed:.1f}" for name, speed in speeds.items())
    log.info("images/s, threads: %d: %s", threads, shown)
    log.info("%s", helper.NOTICE)
    size_mb = config.out.stat().st_size / 1e6
    log.info("%s: %s, %.1f MB, opset %d", config.out, config.precision, size_mb, exporter.OPSET)


if __name__ == "__main__":
    sys.exit(main())
