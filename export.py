"""Write a checkpoint for other programs: `python export.py session/RUN/best.pt`."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import helper
from args import debug_option, threads_option
from common import atomic_files
from common.cli import add_options, argument, build_parser, fill_dataclass, option
from helper import UserError, log

if TYPE_CHECKING:  # the real imports wait until the command line is known to be right
    from onnxruntime import InferenceSession

    from imaging.grayscale import Pixels
    from inference.predictor import SliceClassifier
    from onnx_export.parity import RunSlices

TIMED_SLICES = 32
RANGE_SLICES = 128  # of training, for the ranges of int8
JUDGED_SLICES = 1024
LEAST_JUDGED_SLICES = 50  # of fewer 2 % is no slice
LARGEST_LOSS = 0.02  # of the accuracy on val, and of the coverage of the sets, by int8


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


def parse_args(argv: Sequence[str] | None = None) -> ExportConfig:
    """The configuration of export.py; exits as `args.parse_train` does."""
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    config = parse_args(argv)
    return helper.run_verb(export, config, config.debug)


def export(config: ExportConfig) -> None:
    """The checkpoint as an ONNX file, which is there once it gives this program's answers.

    Raises:
        UserError: A package or the checkpoint is not there, the file is already, the network
            cannot be written, or onnxruntime answers otherwise.
    """
    if config.out.is_dir():
        raise UserError(f"{config.out} is a folder; name a file in it")
    if config.out.exists() and not config.overwrite:
        raise UserError(f"{config.out} exists; name another --out, or give --overwrite")
    from inference.predictor import load_classifier
    from onnx_export import exporter, parity

    exporter.check_packages()
    classifier = load_classifier([config.checkpoint], "cpu", config.threads)
    for line in classifier.list_warnings():
        log.info("note: %s", line)
    member, threads = classifier.members[0], helper.set_threads(config.threads)
    slices = parity.find_slices(member.kept, config.data)
    pictures, origin = choose_pictures(slices)
    metadata = exporter.describe(member)
    with atomic_files.atomic_path(config.out) as temporary:
        exporter.write_onnx(temporary, exporter.make_portable(member), metadata)
        sessions = {"fp32": exporter.open_onnx(temporary, threads)}
        worst = parity.compare(classifier, sessions["fp32"], parity.vary(pictures))
        log.info(
            "fp32 checked on %d %s, turned, mirrored and cropped: the same labels%s, "
            "probabilities differ by %.1e at most",
            *(len(pictures), origin, " and sets" if member.kept.get("calibration") else "", worst),
        )
        if config.precision == "int8":
            metadata |= shrink(temporary, sessions["fp32"], slices, metadata["model"], threads)
            exporter.set_metadata(temporary, metadata)
            sessions["int8"] = exporter.open_onnx(temporary, threads)
        report_speeds(classifier, sessions, pictures[:TIMED_SLICES], threads)
    log.info("%s", helper.NOTICE)
    size_mb = config.out.stat().st_size / 1e6
    log.info("%s: %s, %.1f MB, opset %d", config.out, config.precision, size_mb, exporter.OPSET)


def choose_pictures(slices: "RunSlices") -> "tuple[list[Pixels], str]":
    """Val slices to check a file on, or phantoms where there are none, and what they are."""
    from onnx_export import parity

    pictures, _ = slices.pick("val", parity.CHECKED_SLICES)
    if pictures:
        return pictures, f"val slices of {slices.data_dir}"
    log.info("note: no val slice of the run in %s: checked on phantoms instead", slices.data_dir)
    return parity.make_phantoms(), "phantoms"


def shrink(
    path: Path, session: "InferenceSession", slices: "RunSlices", model: str, threads: int
) -> dict[str, str]:
    """Let a file compute in 8 bits, and measure on val what that costs.

    Args:
        path: The file, which is written anew.
        session: The file as it was.
        slices: Of training, for the ranges; of val, to judge.
        model: Its name.
        threads: For onnxruntime.

    Returns:
        What the metadata say of it.

    Raises:
        UserError: The slices are not there, onnxruntime cannot do it, or too much is lost.
    """
    import numpy as np

    from onnx_export import exporter, int8, parity

    known, _ = slices.pick("train", RANGE_SLICES)
    pictures, labels = slices.pick("val", JUDGED_SLICES)
    if not known or len(labels) < LEAST_JUDGED_SLICES:
        raise UserError(
            f"--precision int8: {slices.data_dir} holds {len(labels)} val slices of the run, by "
            f"which it is judged ({LEAST_JUDGED_SLICES} at least); name their folder by --data, or "
            "leave it out"
        )
    batches = (np.stack(batch)[:, None] for _, batch in parity.divide(known))
    int8.quantise(path, batches, model)
    before = parity.score(session, pictures, labels)
    after = parity.score(exporter.open_onnx(path, threads), pictures, labels)
    line = (
        f"int8 on {len(labels)} val slices: {after.describe()}; fp32: {before.describe()}; "
        f"the same label on {(before.predicted == after.predicted).mean():.1%}"
    )
    lost = before.accuracy - after.accuracy, (before.coverage or 0) - (after.coverage or 0)
    if max(lost) > LARGEST_LOSS:
        raise UserError(f"{line}; that is too much lost: leave out --precision int8")
    log.info("%s", line)
    scores = {"int8": after, "fp32": before}
    measured = {
        figure: {name: getattr(score, figure) for name, score in scores.items()}
        for figure in ("accuracy", "coverage", "set_size")
    }
    return {"precision": "int8", "val": json.dumps({"n": len(labels), **measured})}


def report_speeds(
    classifier: "SliceClassifier",
    sessions: "dict[str, InferenceSession]",
    pictures: "list[Pixels]",
    threads: int,
) -> None:
    """Pictures a second of each file and of this program, from picture to probabilities."""
    import functools

    from onnx_export import exporter, parity

    def judge(batch: "list[Pixels]") -> None:
        classifier.judge([classifier.preprocess(pixels) for pixels in batch])

    ways: list[Callable[[list[Pixels]], Any]] = [judge]
    ways += [functools.partial(exporter.ask, session) for session in sessions.values()]
    names = ["this program", *(f"onnxruntime {name}" for name in sessions)]
    speeds = parity.time_in_turns(ways, pictures)
    shown = ", ".join(f"{name} {speed:.1f}" for name, speed in zip(names, speeds, strict=True))
    log.info("pictures/s, threads: %d: %s", threads, shown)


if __name__ == "__main__":
    sys.exit(main())
