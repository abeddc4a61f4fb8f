"""Options of every verb: one frozen dataclass a group, from which the parsers are made.

A field states its default, help, choices and range once. Configurations are never changed after
parsing. Standard library only, so that `--help` answers before anything heavy is imported.
"""

import argparse
import dataclasses
import math
import re
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin

Config = TypeVar("Config")

DATA_DIR = Path("data")
PHANTOM_DIR = Path("data/phantom")
DEVICE = r"auto|cpu|mps|cuda(:\d+)?"
PLAIN_NAME = r"\w[\w .+-]*"


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    low: float | None = None,
    high: float | None = None,
    metavar: str | None = None,
    pattern: str | None = None,
) -> Any:
    """A dataclass field that is also a command-line option `--name-with-dashes`.

    Args:
        default: The value when the option is not given; a bool makes `--name / --no-name`.
        help: One line for `--help`, with the unit where there is one.
        choices: The only values allowed.
        low: Least value allowed, itself included.
        high: Greatest value allowed, itself included.
        metavar: What stands for the value in `--help`.
        pattern: The regular expression of the values allowed.
    """
    metadata = {"help": help, "choices": choices, "low": low, "high": high, "metavar": metavar}
    metadata["pattern"] = pattern
    return field(default=default, metadata=metadata)


def argument(help: str, *, metavar: str, many: bool = False, optional: bool = False) -> Any:
    """A dataclass field that is a positional argument; `optional` ones are None when not given."""
    metadata = {"help": help, "metavar": metavar, "positional": True}
    if optional:
        return field(default=None, metadata=metadata)
    return field(metadata=metadata)


# ---- main.py


@dataclass(frozen=True)
class DataOptions:
    """Which slices, and how they are divided."""

    data: Path = option(
        DATA_DIR, "folder that prepare.py wrote (Images/ and CSV/images.csv)", metavar="DIR"
    )
    phantom: bool = option(False, "train on the generated phantoms of data/phantom")
    split_by: str = option(
        "group",
        "what is kept on one side: whole groups, or single images (leaky; to measure the leak)",
        choices=("group", "image"),
    )
    split_seed: int | None = option(
        None, "divide anew with this seed (default: the manifest's own split)", low=0, metavar="N"
    )
    class_weights: str = option(
        "none", "weight the loss by inverse class frequency", choices=("none", "balanced")
    )


@dataclass(frozen=True)
class ModelOptions:
    """Which network, and what it starts from."""

    model: str = option(
        "resnet18", "torchvision classifier by name, or `net` for the custom CNN", metavar="NAME"
    )
    pretrained: bool = option(
        True, "start a torchvision backbone from ImageNet weights; `net` has none"
    )
    weights: Path | None = option(
        None, "start from this local state dict instead of a download", metavar="FILE"
    )
    image_size: int = option(224, "side of the square input, px", low=16, high=2048, metavar="PX")
    dropout: float = option(0.2, "dropout before the last layer of `net`", low=0.0, high=0.95)


@dataclass(frozen=True)
class TrainOptions:
    """How the network is fitted."""

    epochs: int = option(30, "passes over the training slices", low=1, metavar="N")
    batch_size: int = option(32, "slices a step", low=4, metavar="N")
    lr: float | None = option(
        None,
        "peak learning rate of AdamW (default: 0.003 from scratch, 0.001 from trained weights)",
        low=1e-8,
        high=10.0,
    )
    body_lr_factor: float = option(
        0.3, "rate of a pretrained body as a share of --lr", low=0.0, high=1.0
    )
    weight_decay: float = option(0.05, "decoupled weight decay of AdamW", low=0.0, high=10.0)
    warmup_epochs: float = option(1.0, "epochs of linear warm-up before the cosine", low=0.0)
    label_smoothing: float = option(
        0.05, "share of the target spread over all classes", low=0.0, high=0.5
    )
    clip_norm: float = option(1.0, "largest gradient norm; 0 clips nothing", low=0.0)
    ema_decay: float = option(
        0.998, "decay a step of the averaged weights; 0 averages nothing", low=0.0, high=0.99999
    )
    freeze_epochs: int = option(
        0, "first epochs in which a pretrained body stands still", low=0, metavar="N"
    )
    patience: int = option(
        10, "stop after N epochs without a better val macro-F1; 0: never", low=0, metavar="N"
    )


@dataclass(frozen=True)
class AugmentOptions:
    """Random changes of each training slice; a head in this data has no up."""

    flip: bool = option(True, "mirror half of the slices")
    quarter_turns: bool = option(True, "turn by 0, 90, 180 or 270 degrees")
    rotation: float = option(10.0, "further turn, up to this many degrees", low=0.0, high=180.0)
    shift: float = option(0.05, "shift, up to this share of the side", low=0.0, high=0.5)
    zoom: float = option(0.1, "zoom in or out, up to this share", low=0.0, high=0.5)
    gamma: float = option(0.2, "gamma, up to this share up or down", low=0.0, high=0.9)
    contrast: float = option(0.2, "contrast, up to this share up or down", low=0.0, high=0.9)
    mixup: float = option(0.0, "mixup: alpha of its Beta distribution; 0: off", low=0.0, high=10.0)
    cutmix: float = option(
        0.0, "cutmix: alpha of its Beta distribution; 0: off", low=0.0, high=10.0
    )


@dataclass(frozen=True)
class RunOptions:
    """Where the run lives and what it runs on."""

    name: str | None = option(
        None,
        "name of the run: session/RUN and results/RUN (default: model, date, time)",
        metavar="RUN",
        pattern=PLAIN_NAME,
    )
    seed: int = option(0, "seed of weights, order and augmentation", low=0, metavar="N")
    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps", metavar="D", pattern=DEVICE)
    threads: int = option(0, "CPU threads; 0: as many as there are cores", low=0, metavar="N")
    precision: str = option(
        "auto", "arithmetic of training; verdicts are fp32", choices=("auto", "fp32", "bf16")
    )
    tensorboard: bool = option(
        False, "log to session/RUN/tensorboard, where TensorBoard is installed"
    )
    debug: bool = option(False, "show the traceback of an error")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run."""

    data: DataOptions
    model: ModelOptions
    train: TrainOptions
    augment: AugmentOptions
    run: RunOptions

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as config.json and the checkpoint keep them."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        """What `to_dict` gave, as a configuration again."""
        return cls(**{key: _restore(group, values[key]) for key, group in TRAIN_GROUPS.items()})


TRAIN_GROUPS: dict[str, Any] = {
    "data": DataOptions,
    "model": ModelOptions,
    "train": TrainOptions,
    "augment": AugmentOptions,
    "run": RunOptions,
}


@dataclass(frozen=True)
class ResumeConfig:
    """`main.py --resume`: a run goes on with its own settings."""

    resume: Path
    device: str
    debug: bool


# ---- evaluate.py


@dataclass(frozen=True)
class EvaluateConfig:
    """evaluate.py: a checkpoint's numbers and plots."""

    checkpoint: Path = argument("the checkpoint, session/RUN/best.pt", metavar="CHECKPOINT")
    data: Path | None = option(
        None, "folder that prepare.py wrote (default: the run's own)", metavar="DIR"
    )
    split: str = option(
        "test",
        "which slices of the run's own assignment; all: every slice of the folder",
        choices=("test", "val", "train", "all"),
    )
    name: str | None = option(
        None,
        "folder under results/ (default: the run's name)",
        metavar="RUN",
        pattern=PLAIN_NAME,
    )
    batch_size: int = option(64, "slices a forward pass", low=1, metavar="N")
    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps", metavar="D", pattern=DEVICE)
    threads: int = option(0, "CPU threads; 0: as many as there are cores", low=0, metavar="N")
    debug: bool = option(False, "show the traceback of an error")


# ---- prepare.py


@dataclass(frozen=True)
class PrepareConfig:
    """prepare.py: from an archive to class folders and a manifest."""

    source: Path | None = argument(
        "the downloaded .zip, .tar or .tar.gz archive, or a folder of class folders",
        metavar="SOURCE",
        optional=True,
    )
    data: Path | None = option(
        None, "where to write (default: data; data/phantom for phantoms)", metavar="DIR"
    )
    groups: Path | None = option(
        None, "CSV with columns path,group: patients where they are known", metavar="FILE"
    )
    phantom: int | None = option(
        None, "generate N phantoms instead of reading a source", low=6, high=1_000_000, metavar="N"
    )
    seed: int = option(0, "seed of the phantoms and of the split", low=0, metavar="N")
    debug: bool = option(False, "show the traceback of an error")


# ---- from dataclasses to parsers


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and where to read on."""
        self.exit(2, f"error: {self.prog}: {message} (see python {self.prog} --help)\n")


def parse_train(argv: Sequence[str] | None = None) -> TrainConfig | ResumeConfig:
    """The configuration of main.py.

    Raises:
        SystemExit: 0 after `--help`, 2 when the command line is wrong.
    """
    parser = _build_parser(
        "main.py",
        "[options]",
        "Train a classifier on MRI slices, keep the best checkpoint in session/RUN, and evaluate "
        "it once on the test split into results/RUN.",
        "examples:\n"
        "  python main.py --model resnet18 --epochs 30\n"
        "  python main.py --model net --phantom --image-size 96 --epochs 12\n"
        "  python main.py --resume session/RUN",
    )
    for group in TRAIN_GROUPS.values():
        _add_options(parser, group)
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="session/RUN",
        help="go on with a run that was stopped, with its own settings "
        "(only --device and --debug may stand beside it)",
    )
    given = vars(parser.parse_args(argv))

    if "resume" in given:
        beside = sorted(set(given) - {"resume", "device", "debug"})
        if beside:
            parser.error(
                f"--resume goes on with the run's own settings; leave out {_flag(beside[0])}"
            )
        return ResumeConfig(given["resume"], given.get("device", "auto"), given.get("debug", False))

    if given.get("phantom") and "data" in given:
        parser.error("--phantom reads data/phantom; leave out --data, or leave out --phantom")
    if given.get("model") == "net" and given.get("pretrained"):
        parser.error("--pretrained: `net` has no ImageNet weights; leave it out")
    if "weights" in given and given.get("model") == "net":
        parser.error("--weights: `net` starts from scratch; name a torchvision --model")
    if "weights" in given and given.get("pretrained") is False:
        parser.error("--weights and --no-pretrained contradict each other; give one of them")
    if given.get("mixup") and given.get("cutmix"):
        parser.error("--mixup and --cutmix mix the same batch; give one of them")
    return TrainConfig(**{key: _make(group, given) for key, group in TRAIN_GROUPS.items()})


def parse_evaluate(argv: Sequence[str] | None = None) -> EvaluateConfig:
    """The configuration of evaluate.py; exits as `parse_train` does."""
    parser = _build_parser(
        "evaluate.py",
        "CHECKPOINT [options]",
        "Evaluate a checkpoint: metrics.json, predictions.csv and plots under results/RUN.",
        "examples:\n"
        "  python evaluate.py session/RUN/best.pt\n"
        "  python evaluate.py session/RUN/best.pt --data elsewhere --split all",
    )
    _add_options(parser, EvaluateConfig)
    return _make(EvaluateConfig, vars(parser.parse_args(argv)))


def parse_prepare(argv: Sequence[str] | None = None) -> PrepareConfig:
    """The configuration of prepare.py; exits as `parse_train` does."""
    parser = _build_parser(
        "prepare.py",
        "(SOURCE | --phantom N) [options]",
        "Bring slices into data/Images/<Class>/ and list them in data/CSV/images.csv.",
        "examples:\n"
        "  python prepare.py brain_cancer_mri.zip\n"
        "  python prepare.py folder_of_class_folders --groups patients.csv\n"
        "  python prepare.py --phantom 600",
    )
    _add_options(parser, PrepareConfig)
    config = _make(PrepareConfig, vars(parser.parse_args(argv)))
    if (config.source is None) == (config.phantom is None):
        parser.error("give a SOURCE (archive or folder), or --phantom N, one of the two")
    if config.phantom is not None and config.groups is not None:
        parser.error("--groups is for a SOURCE; phantoms know their patients")
    return config


def _build_parser(prog: str, arguments: str, description: str, epilog: str) -> OneLineParser:
    notice = "\n\nResearch use only: not a medical device. The classes hold no healthy brain."
    return OneLineParser(
        prog=prog,
        usage=f"python {prog} {arguments}",
        description=description,
        epilog=epilog + notice,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # the defaults live in the dataclasses alone
        allow_abbrev=False,
    )


def _add_options(parser: argparse.ArgumentParser, group: type) -> None:
    """Add every field of a dataclass, under the dataclass's first line as heading."""
    section = parser.add_argument_group((group.__doc__ or "").splitlines()[0].rstrip("."))
    for entry in dataclasses.fields(group):
        meta, kind = entry.metadata, _plain_type(entry.type)
        if meta.get("positional"):
            # argparse would convert its own mark for "not given" to the type: None instead
            absent: dict[str, Any] = {} if _is_required(entry) else {"nargs": "?", "default": None}
            section.add_argument(
                entry.name, type=kind, metavar=meta["metavar"], help=meta["help"], **absent
            )
        elif kind is bool:
            help_line = f"{meta['help']} (default: {'yes' if entry.default else 'no'})"
            action = argparse.BooleanOptionalAction if entry.default else "store_true"
            section.add_argument(_flag(entry.name), action=action, help=help_line)
        else:
            shown = "" if entry.default is None else f" (default: {entry.default})"
            section.add_argument(
                _flag(entry.name),
                type=_checked(kind, meta["low"], meta["high"], meta["pattern"]),
                choices=meta["choices"],
                metavar=None if meta["choices"] else meta["metavar"] or "X",
                help=meta["help"].replace("%", "%%") + shown,
            )


def _checked(
    kind: type, low: float | None, high: float | None, pattern: str | None
) -> Callable[[str], Any]:
    """A converter that also checks the range; its name is what argparse calls the value."""

    def convert(text: str) -> Any:
        value = kind(text)
        if pattern is not None and not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form that --help shows")
        if isinstance(value, float) and not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text} is no finite number")
        if low is not None and value < low:
            raise argparse.ArgumentTypeError(f"{text} is less than {low}, the least allowed")
        if high is not None and value > high:
            raise argparse.ArgumentTypeError(f"{text} is more than {high}, the most allowed")
        return value

    convert.__name__ = {int: "whole number", float: "number"}.get(kind, kind.__name__)
    return convert


def _make(group: Callable[..., Config], given: dict[str, Any]) -> Config:
    """The dataclass filled with what was given; the rest are its defaults."""
    names = {entry.name for entry in dataclasses.fields(group)}  # type: ignore[arg-type]
    return group(**{name: value for name, value in given.items() if name in names})


def _restore(group: Callable[..., Config], values: dict[str, Any]) -> Config:
    """The dataclass of plain values, with text as paths again where a path is wanted."""
    kinds = {entry.name: _plain_type(entry.type) for entry in dataclasses.fields(group)}  # type: ignore[arg-type]
    return group(
        **{
            name: Path(value) if kinds[name] is Path and value is not None else value
            for name, value in values.items()
        }
    )


def _plain_type(annotation: Any) -> type:
    """`int` for `int | None`, and the type itself otherwise."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation


def _is_required(entry: dataclasses.Field) -> bool:
    return entry.default is dataclasses.MISSING


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _plain(value: Any) -> Any:
    """Paths as text, all the way down."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return str(value) if isinstance(value, Path) else value
