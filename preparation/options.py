"""Options of prepare.py and their parser; imports no heavy package, so that `--help` is quick."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.cli import add_options, argument, build_parser, fill_dataclass, name_flag, option
from common.shared_options import axis_option, debug_option, mat_fields_option

if TYPE_CHECKING:
    from imaging.volumes import VolumeOptions

_CLASS_NAME = r"[^=]+=[^=]+"


@dataclass(frozen=True)
class LayoutConfig:
    """Which folders are classes and patients."""

    class_level: int | None = option(
        None,
        "the class is folder N of the path inside the source, 1 the outermost",
        low=1,
        high=100,
        metavar="N",
    )
    classes: tuple[str, ...] = option(
        (), "use the folders of these names alone, at any level", metavar="A,B"
    )
    class_map: tuple[str, ...] = option(
        (),
        "rename a class, or merge it into another; may be repeated",
        metavar="OLD=NEW",
        pattern=_CLASS_NAME,
    )
    labels: Path | None = option(
        None, "CSV or TSV with a column of files (or folders) and one of classes", metavar="FILE"
    )
    exclude: tuple[str, ...] = option(
        (),
        "leave out files and folders of this name or path, with * and ?; may be repeated",
        metavar="PATTERN",
    )
    patient_level: int | None = option(
        None, "the patient is folder N of the path", low=1, high=100, metavar="N"
    )
    patient_from: str | None = option(
        None,
        "the patient is what this regular expression (its first group) finds in the path",
        metavar="REGEX",
    )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of `--classes A,B`."""
        return tuple(name for text in self.classes for name in text.split(",") if name)


@dataclass(frozen=True)
class PrepareConfig(LayoutConfig):
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
        None, "table of known patients with the columns path,patient", metavar="FILE"
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
    evaluation_only: bool = option(
        False, "prepare data to evaluate on, not to train: one class and few images suffice"
    )
    keep_split: bool = option(
        False,
        "keep the published split that folders such as Training and Testing tell (default: split "
        "anew by groups); says how far it leaks",
    )
    phantom: int | None = option(
        None, "generate N phantoms instead of reading a source", low=6, high=1_000_000, metavar="N"
    )
    allow_empty: bool = option(
        False, "go on although a folder gave no picture, or a class none that can be read"
    )
    follow_links: bool = option(False, "follow links that leave the source folder")
    axis: str = axis_option()
    mat_fields: str | None = mat_fields_option()
    seed: int = option(0, "seed of the phantoms and of the split", low=0, metavar="N")
    debug: bool = debug_option()

    @property
    def volume_options(self) -> "VolumeOptions":
        """How slices of NIfTI and MATLAB files are read."""
        from imaging.volumes import build_options

        return build_options(self.axis, self.mat_fields)


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
        "  python prepare.py study --labels labels.csv --exclude '*_t1.nii.gz'\n"
        "  python prepare.py other_hospital --data elsewhere --against data\n"
        "  python prepare.py other_hospital --data elsewhere --evaluation-only\n"
        "  python prepare.py --phantom 600",
    )
    add_options(parser, PrepareConfig)
    add_options(parser, LayoutConfig)
    config = fill_dataclass(PrepareConfig, vars(parser.parse_args(argv)))
    if (config.source is None) == (config.phantom is None):
        parser.error("give either a SOURCE (archive or folder) or --phantom N")
    if config.phantom is not None and (config.patients is not None or config.ignore_patients):
        parser.error("--patients and --ignore-patients need a SOURCE: phantoms have known patients")
    if config.phantom is not None and config.against is not None:
        parser.error("--against needs a SOURCE: phantoms are copies of nothing")
    if config.phantom is not None and config.evaluation_only:
        parser.error("--evaluation-only needs a SOURCE: phantoms are generated to train on")
    if config.phantom is not None and config.keep_split:
        parser.error("--keep-split needs a SOURCE: phantoms have no published split")
    if config.evaluation_only and config.keep_split:
        parser.error("--evaluation-only and --keep-split contradict each other; give one of them")
    ways = ("class_level", "classes", "labels")
    if len(given := [name for name in ways if getattr(config, name)]) > 1:
        parser.error(f"{name_flag(given[0])} and {name_flag(given[1])} contradict; give one")
    if config.patient_level and config.patient_from:
        parser.error("--patient-level and --patient-from contradict; give one")
    if config.patient_from is not None:
        try:
            re.compile(config.patient_from)
        except re.error as error:
            parser.error(f"--patient-from {config.patient_from}: no regular expression ({error})")
    if config.patients is not None and config.ignore_patients:
        parser.error("--patients and --ignore-patients contradict each other; give one of them")
    return config
