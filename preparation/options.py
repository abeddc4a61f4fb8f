"""Options of prepare.py and their parser; imports no heavy package, so that `--help` is quick."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from args import debug_option
from common.cli import add_options, argument, build_parser, fill_dataclass, option


@dataclass(frozen=True)
class PrepareConfig:
    """Source, destination and split of prepare.py."""

    source: Path | None = argument(
        "the downloaded .zip, .tar or .tar.gz archive, or a folder of class folders",
        metavar="SOURCE",
        optional=True,
    )
    data: Path | None = option(
        None, "folder to write (default: data; data/phantom for phantoms)", metavar="DIR"
    )
    patients: Path | None = option(
        None, "CSV of known patients with the columns path,patient", metavar="FILE"
    )
    ignore_patients: bool = option(
        False,
        "group by pictures only, also where patients are known: to measure how much accuracy such "
        "a split gains",
    )
    against: Path | None = option(
        None,
        "prepared folder to compare with: report copies of its slices, inherit their patients",
        metavar="OTHER",
    )
    phantom: int | None = option(
        None, "generate N phantoms instead of reading a source", low=6, high=1_000_000, metavar="N"
    )
    seed: int = option(0, "seed of the phantoms and of the split", low=0, metavar="N")
    debug: bool = debug_option()


def parse_prepare(argv: Sequence[str] | None = None) -> PrepareConfig:
    """Parse the command line of prepare.py; exit like `args.parse_train`."""
    parser = build_parser(
        "prepare.py",
        "(SOURCE | --phantom N) [options]",
        "Copy slices to data/Images/<Class>/, find duplicates, split the data and list it in "
        "data/CSV/images.csv.",
        "examples:\n"
        "  python prepare.py brain_cancer_mri.zip\n"
        "  python prepare.py folder_of_class_folders --patients patients.csv\n"
        "  python prepare.py other_hospital --data elsewhere --against data\n"
        "  python prepare.py --phantom 600",
    )
    add_options(parser, PrepareConfig)
    config = fill_dataclass(PrepareConfig, vars(parser.parse_args(argv)))
    if (config.source is None) == (config.phantom is None):
        parser.error("give either a SOURCE (archive or folder) or --phantom N")
    if config.phantom is not None and (config.patients is not None or config.ignore_patients):
        parser.error("--patients and --ignore-patients need a SOURCE: phantoms have known patients")
    if config.phantom is not None and config.against is not None:
        parser.error("--against needs a SOURCE: phantoms are copies of nothing")
    if config.patients is not None and config.ignore_patients:
        parser.error("--patients and --ignore-patients contradict each other; give one of them")
    return config
