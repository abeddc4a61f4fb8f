"""Judge pictures: `python predict.py session/RUN/best.pt PATH…`."""

import contextlib
import hashlib
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import helper
from args import debug_option, device_option, threads_option
from common import atomic_files
from common.cli import add_options, argument, build_parser, fill_dataclass, option
from helper import UserError, log

if TYPE_CHECKING:  # the real imports wait until the command line is known to be right
    from inference.image_stream import Picture
    from inference.output_table import Counts, Row
    from inference.predictor import PreprocessedSlice, SliceClassifier, Verdict

BATCH_SIZE = 32
UNFINISHED = ".part"
MOST_NAME_BYTES = 255


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


def parse_args(argv: Sequence[str] | None = None) -> PredictConfig:
    """The configuration of predict.py; exits as `args.parse_train` does."""
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    config = parse_args(argv)
    return helper.run_verb(predict, config, config.debug)


def predict(config: PredictConfig) -> None:
    """A row for every picture of files and folders, as it comes, and a summary.

    Raises:
        UserError: A checkpoint or path is not there, the table is already, or nothing was read.
    """
    from tqdm import tqdm

    from inference import image_stream, output_table
    from inference.predictor import load_classifier

    check_out(config.out, config.overwrite)
    found = begin(image_stream.find_files(config.pictures, leave_out=config.heatmaps))
    classifier = load_classifier(config.checkpoints, config.device, config.threads)
    for line in classifier.list_warnings():
        log.info("note: %s", line)
    atomic_files.write_text(name_words(config.out), describe_table(classifier))
    tally = output_table.SeriesTally(classifier.classes)
    counts = output_table.Counts()
    batches = image_stream.read_batches(
        found, classifier.preprocess, BATCH_SIZE, overlap=classifier.device.type != "cpu"
    )
    with (
        _open_table(config.out) as stream,
        tqdm(desc="judging", unit="slice", disable=None) as bar,
    ):
        table = output_table.TableWriter(
            stream, classifier.classes, as_json=config.out.suffix == ".jsonl"
        )
        for batch in batches:
            rows: list[Row] = []
            for picture, verdict in output_table.judge_batch(classifier, batch):
                rows += tally.add(picture, verdict)
                if verdict is not None and config.heatmaps:
                    save_heatmap(config.heatmaps, classifier, picture, verdict)
                row = output_table.describe_picture(
                    picture.name, verdict, picture.error, classifier.classes
                )
                rows.append(row)
                counts.add(row)
            table.write(rows)
            bar.update(len(batch))
        table.write(tally.close())
    summarise(counts, config.out)


def begin(found: Iterator[Path]) -> Iterator[Path]:
    """The same files, the first of which is found now: where there is none no table is begun."""
    return itertools.chain([next(found)], found)


def check_out(path: Path, overwrite: bool) -> None:
    """Make sure that no table is lost, neither a whole one nor the rows of a run that was stopped.

    Raises:
        UserError: One is there and may not be replaced, or the name is a folder's.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it")
    for there in (path, _name_growing(path)):
        if there.exists() and not overwrite:
            raise UserError(f"{there} exists; name another --out, or give --overwrite")


def name_words(path: Path) -> Path:
    """Where the words stand that a table has no place for: `all.csv.about.txt` for `all.csv`."""
    return path.with_name(f"{path.name}.about.txt")


def describe_table(classifier: "SliceClassifier") -> str:
    """Whose answers a table holds, and what its readers must know first."""
    runs = ", ".join(f"{member.kept['run']} ({member.path})" for member in classifier.members)
    lines = [
        helper.NOTICE,
        *classifier.list_warnings(),
        f"Answers of {runs}: {', '.join(classifier.classes)}.",
        "refer: a human should look. unlike: the picture is unlike those of training; do not "
        "believe what is said of it. Empty: not fitted, or (error) not readable.",
        "",
    ]
    return "\n".join(lines)


def _name_growing(path: Path) -> Path:
    return path.with_name(path.name + UNFINISHED)


@contextlib.contextmanager
def _open_table(path: Path) -> Iterator[TextIO]:
    """A table that can be read while it grows, under another name until it is whole."""
    growing = _name_growing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # names that are no text in UTF-8 are written with their bytes spelt out
    with growing.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        try:
            yield stream
        except BaseException:
            log.info("rows so far: %s", growing)
            raise
        stream.flush()
        os.fsync(stream.fileno())
    growing.replace(path)


def save_heatmap(
    folder: Path,
    classifier: "SliceClassifier",
    picture: "Picture[PreprocessedSlice]",
    verdict: "Verdict",
) -> None:
    """A picture beside itself under the heat map of the class that it was given."""
    from explanation.overlay import draw_overlay

    preprocessed = picture.made
    assert preprocessed is not None
    heatmap = classifier.explain(preprocessed, verdict.predicted)
    lines = [
        *classifier.describe_verdict(verdict),
        *classifier.list_warnings(),
        helper.NOTICE,
    ]
    parts = [part.replace("..", "__") for part in picture.path.parts if part != picture.path.anchor]
    frame = f"#{picture.frame}" if picture.frame else ""
    path = folder.joinpath(*parts[:-1], shorten(f"{parts[-1]}{frame}.png"))
    with atomic_files.atomic_path(path) as temporary:
        draw_overlay(preprocessed.picture, heatmap, lines).save(temporary)


def shorten(name: str) -> str:
    """A file's name that is as long as a file system takes; what is cut off is told by a hash."""
    content = os.fsencode(name)
    if len(content) <= MOST_NAME_BYTES:
        return name
    digest = hashlib.sha256(content).hexdigest()[:8]
    start = content[: MOST_NAME_BYTES - 16].decode(errors="ignore")
    return f"{start}-{digest}.png"


def summarise(counts: "Counts", out: Path) -> None:
    """How many pictures, how many of them need a look, and where the table is.

    Raises:
        UserError: None could be read.
    """
    if counts.errors == counts.rows:
        raise UserError(f"none of {counts.rows} pictures could be read; see {out}")
    log.info("%d pictures: %s", counts.rows, counts.describe())
    log.info("%s", helper.NOTICE)
    log.info("open %s", out)


if __name__ == "__main__":
    sys.exit(main())
