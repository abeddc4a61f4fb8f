"""Write a checkpoint for other programs: `python export.py session/RUN/best.pt`."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import files
import helper
import use_args
from helper import UserError, log

if TYPE_CHECKING:  # the real imports wait until the command line is known to be right
    from onnxruntime import InferenceSession

    from classifier import SliceClassifier
    from imaging.grey import Pixels
    from onnx_check import RunSlices

TIMED_SLICES = 32
RANGE_SLICES = 128  # of training, for the ranges of int8
JUDGED_SLICES = 1024
LEAST_JUDGED_SLICES = 50  # of fewer 2 % is no slice
LARGEST_LOSS = 0.02  # of the accuracy on val, and of the coverage of the sets, by int8


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    config = use_args.parse_export(argv)
    return helper.run_verb(export, config, config.debug)


def export(config: use_args.ExportConfig) -> None:
    """The checkpoint as an ONNX file, which is there once it gives this program's answers.

    Raises:
        UserError: A package or the checkpoint is not there, the file is already, the network
            cannot be written, or onnxruntime answers otherwise.
    """
    if config.out.is_dir():
        raise UserError(f"{config.out} is a folder; name a file in it")
    if config.out.exists() and not config.overwrite:
        raise UserError(f"{config.out} exists; name another --out, or give --overwrite")
    import onnx_check
    import onnx_file
    from classifier import load_classifier

    onnx_file.check_packages()
    classifier = load_classifier([config.checkpoint], "cpu", config.threads)
    for line in classifier.list_warnings():
        log.info("note: %s", line)
    member, threads = classifier.members[0], helper.set_threads(config.threads)
    slices = onnx_check.find_slices(member.kept, config.data)
    pictures, origin = choose_pictures(slices)
    metadata = onnx_file.describe(member)
    with files.atomic_path(config.out) as temporary:
        onnx_file.write_onnx(temporary, onnx_file.make_portable(member), metadata)
        sessions = {"fp32": onnx_file.open_onnx(temporary, threads)}
        worst = onnx_check.compare(classifier, sessions["fp32"], onnx_check.vary(pictures))
        log.info(
            "fp32 checked on %d %s, turned, mirrored and cropped: the same labels%s, "
            "probabilities differ by %.1e at most",
            *(len(pictures), origin, " and sets" if member.kept.get("calibration") else "", worst),
        )
        if config.precision == "int8":
            metadata |= shrink(temporary, sessions["fp32"], slices, metadata["model"], threads)
            onnx_file.set_metadata(temporary, metadata)
            sessions["int8"] = onnx_file.open_onnx(temporary, threads)
        report_speeds(classifier, sessions, pictures[:TIMED_SLICES], threads)
    log.info("%s", helper.NOTICE)
    size_mb = config.out.stat().st_size / 1e6
    log.info("%s: %s, %.1f MB, opset %d", config.out, config.precision, size_mb, onnx_file.OPSET)


def choose_pictures(slices: "RunSlices") -> "tuple[list[Pixels], str]":
    """Val slices to check a file on, or phantoms where there are none, and what they are."""
    import onnx_check

    pictures, _ = slices.pick("val", onnx_check.CHECKED_SLICES)
    if pictures:
        return pictures, f"val slices of {slices.data_dir}"
    log.info("note: no val slice of the run in %s: checked on phantoms instead", slices.data_dir)
    return onnx_check.make_phantoms(), "phantoms"


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

    import onnx_check
    import onnx_file
    import quantise

    known, _ = slices.pick("train", RANGE_SLICES)
    pictures, labels = slices.pick("val", JUDGED_SLICES)
    if not known or len(labels) < LEAST_JUDGED_SLICES:
        raise UserError(
            f"--precision int8: {slices.data_dir} holds {len(labels)} val slices of the run, by "
            f"which it is judged ({LEAST_JUDGED_SLICES} at least); name their folder by --data, or "
            "leave it out"
        )
    batches = (np.stack(batch)[:, None] for _, batch in onnx_check.divide(known))
    quantise.quantise(path, batches, model)
    before = onnx_check.score(session, pictures, labels)
    after = onnx_check.score(onnx_file.open_onnx(path, threads), pictures, labels)
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

    import onnx_check
    import onnx_file

    def judge(batch: "list[Pixels]") -> None:
        classifier.judge([classifier.preprocess(pixels) for pixels in batch])

    ways: list[Callable[[list[Pixels]], Any]] = [judge]
    ways += [functools.partial(onnx_file.ask, session) for session in sessions.values()]
    names = ["this program", *(f"onnxruntime {name}" for name in sessions)]
    speeds = onnx_check.time_in_turns(ways, pictures)
    shown = ", ".join(f"{name} {speed:.1f}" for name, speed in zip(names, speeds, strict=True))
    log.info("pictures/s, threads: %d: %s", threads, shown)


if __name__ == "__main__":
    sys.exit(main())
