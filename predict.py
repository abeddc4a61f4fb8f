"""Predict images: `python predict.py session/RUN/best.pt PATH…`."""

import contextlib
import itertools
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import helper
from common import atomic_files, fonts
from common.cli import add_options, argument, build_parser, fill_dataclass, option
from common.portable_names import quote
from common.shared_options import (
    axis_option,
    calibration_option,
    debug_option,
    device_option,
    mat_fields_option,
    threads_option,
    threshold_option,
)
from helper import UserError, log

if TYPE_CHECKING:
    from imaging.volumes import VolumeOptions
    from inference.image_stream import PassedOver
    from inference.predictor import SlicePredictor


@dataclass(frozen=True)
class PredictConfig:
    """Input, output and device of predict.py."""

    paths: tuple[Path, ...] = argument(
        "session/RUN/best.pt or session/RUN, or several for an ensemble, then images, DICOM files, "
        "folders and .zip, .tar or .tar.gz archives of them",
        metavar="PATH",
        several=True,
    )
    out: Path = option(
        Path("predictions.csv"), "the table: CSV, or JSON lines for .jsonl", metavar="FILE"
    )
    overwrite: bool = option(False, "replace an existing table")
    heatmaps: Path | None = option(
        None,
        "also save each image with its heat map there; takes seconds an image on a CPU",
        metavar="DIR",
    )
    threshold: tuple[str, ...] = threshold_option()
    axis: str = axis_option()
    mat_fields: str | None = mat_fields_option()
    calibration: Path | None = calibration_option()
    device: str = device_option()
    threads: int = threads_option()
    debug: bool = debug_option()

    @property
    def checkpoints(self) -> tuple[Path, ...]:
        """The leading checkpoints and folders of runs."""
        return tuple(itertools.takewhile(_is_checkpoint, self.paths))

    @property
    def images(self) -> tuple[Path, ...]:
        """The files, folders and archives after them."""
        return self.paths[len(self.checkpoints) :]


def _is_checkpoint(path: Path) -> bool:
    """Return whether a path is a checkpoint, by its suffix or content, or the folder of a run."""
    if path.suffix == ".pt" or all(
        (path / name).is_file() for name in ("config.json", "split.csv")
    ):
        return True
    with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return any(name.endswith("/data.pkl") for name in archive.namelist())  # of torch.save
    return False


def parse_args(argv: Sequence[str] | None = None) -> PredictConfig:
    """Parse the command line of predict.py; exit like `args.parse_train` on errors."""
    parser = build_parser(
        "predict.py",
        "CHECKPOINT_OR_RUN [MORE …] PATH… [options]",
        "Predict images, DICOM series and patients: a row for each with calibrated probabilities, "
        "prediction set, needs_review (a human should check it) and out_of_distribution (the image "
        "differs from the training images). Several checkpoints are averaged; session/RUN of a run "
        "with --folds is one ensemble.",
        "examples:\n"
        "  python predict.py session/RUN/best.pt slices/\n"
        "  python predict.py session/RUN slices/\n"
        "  python predict.py session/RUN patients.zip --threshold Glioma=0.2\n"
        "  python predict.py session/RUN/best.pt study/ --out study.jsonl --heatmaps maps/",
    )
    add_options(parser, PredictConfig)
    config = fill_dataclass(PredictConfig, vars(parser.parse_args(argv)))
    if not config.checkpoints:
        parser.error(
            f"{config.paths[0]} is not a checkpoint or run; name session/RUN/best.pt or "
            "session/RUN first"
        )
    if not config.images:
        parser.error("name images or folders after the checkpoint")
    return config


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    config = parse_args(argv)
    return helper.run_command(predict, config, config.debug)


def predict(config: PredictConfig) -> None:
    """Write the table while images are predicted, then log a summary.

    Raises:
        UserError: A checkpoint or path is missing, the table exists, or no image could be read.
    """
    from imaging.volumes import build_options
    from inference import archives, image_stream, output_table
    from inference.predictor import load_predictor

    volumes = build_options(config.axis, config.mat_fields)
    output_table.check_output(config.out, config.overwrite)
    image_stream.check_paths(config.images, config.heatmaps)
    with archives.unpack(config.images, beside=config.out) as unpacked:
        for note in unpacked.notes:
            log.info("note: %s", note)
        passed_over = image_stream.PassedOver()
        files = image_stream.find_files(unpacked.paths, config.heatmaps, passed_over)
        files = itertools.chain([next(files)], files)  # without any file no table is written
        predictor = load_predictor(
            *(config.checkpoints, config.device, config.threads, config.calibration),
            thresholds=config.threshold,
        )
        predict_files(config, predictor, files, volumes, unpacked.names, passed_over)
    log.info("%s", helper.NOTICE)
    log.info("open %s", quote(config.out))


def predict_files(
    config: PredictConfig,
    predictor: "SlicePredictor",
    files: Iterable[Path],
    volumes: "VolumeOptions",
    names: Mapping[Path, Path],
    passed_over: "PassedOver",
) -> None:
    """Write the table and its notes.

    Args:
        config: Output and folder of heat maps.
        predictor: The networks.
        files: Image files.
        volumes: How NIfTI and MATLAB files are read.
        names: Paths to show for files that were unpacked from archives.
        passed_over: Files that are not read; complete when all others are.

    Raises:
        UserError: No image could be read.
    """
    from tqdm import tqdm

    from inference import output_table, pipeline

    picture_notes = fonts.describe_names(predictor.classes) if config.heatmaps else []
    for line in [*predictor.list_warnings(), *picture_notes]:
        log.info("note: %s", line)
    notes = output_table.describe_table(predictor, picture_notes)
    atomic_files.write_text(output_table.about_path(config.out), notes)
    builder = pipeline.RowBuilder(predictor, config.images)
    with (
        output_table.open_table(config.out, predictor.classes) as table,
        tqdm(desc="predicting", unit="slice", disable=None) as bar,
    ):
        for batch in pipeline.predict_batches(predictor, files, names, volumes):
            for picture, prediction in batch:
                if prediction is not None and config.heatmaps:
                    pipeline.save_heatmap(config.heatmaps, predictor, picture, prediction)
            table.write(builder.add(batch))
            bar.update(len(batch))
        table.write(builder.close())
    counts = builder.counts
    if counts.errors == counts.rows:
        raise UserError(
            f"none of {counts.rows} images could be read ({counts.first_error}); see {config.out}"
        )
    log.info("%d images: %s", counts.rows, counts.describe())
    image_notes = [*counts.list_notes(), *passed_over.describe()]
    if image_notes:
        log.info("note: %s", "; ".join(image_notes))
        about = output_table.describe_table(predictor, [*picture_notes, *image_notes])
        atomic_files.write_text(output_table.about_path(config.out), about)


if __name__ == "__main__":
    sys.exit(main())
