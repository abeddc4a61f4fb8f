"""Options of main.py and evaluate.py, and their parsers.

Each group of options is a frozen dataclass; a field states its default, help, choices and range.
Imports no heavy package, so that `--help` is quick.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import run_paths
from common.cli import (
    add_options,
    argument,
    build_parser,
    fill_dataclass,
    name_flag,
    option,
    restore_dataclass,
    simplify,
)
from common.config_file import find_contradiction, take_options
from common.contradictions import CONTRADICTIONS
from common.portable_names import PLAIN_NAME
from common.shared_options import (
    calibration_option,
    debug_option,
    device_option,
    threads_option,
    threshold_option,
)
from helper import UserError

DATA_DIR = Path("data")
PHANTOM_DIR = Path("data/phantom")
PRECISIONS = ("auto", "bf16", "fp16", "fp32")
# instead of the defaults, which are for pretrained networks (docs/results.md, recipe study)
FROM_SCRATCH = {"image_size": 224, "epochs": 30}
INTENSITIES = ("raw", "percentile", "zscore")
MODEL_HELP = (
    "classifier of torchvision by name, of timm as timm/NAME, or `net` for the custom CNN; "
    "`--model list [PATTERN]` prints all names with parameters and usual size"
)


# ---- main.py


@dataclass(frozen=True)
class DataOptions:
    """Data and splits."""

    data: Path = option(
        DATA_DIR, "folder that prepare.py wrote (Images/ and CSV/images.csv)", metavar="DIR"
    )
    phantom: bool = option(False, "train on the generated phantoms in data/phantom")
    split_by: str = option(
        "group", "split by group of related images, or by image (leaky)", choices=("group", "image")
    )
    split_seed: int | None = option(
        None, "draw new splits with this seed (default: splits of the manifest)", low=0, metavar="N"
    )
    folds: int | None = option(
        None, "cross-validate: K runs in session/RUN/fold_1..K", low=2, high=20, metavar="K"
    )
    keep_test: bool = option(
        False,
        "with --folds: leave the test split of the manifest out of all folds, as for a --teacher",
    )
    class_weights: str = option(
        "none", "weight the loss by inverse class frequency", choices=("none", "balanced")
    )


@dataclass(frozen=True)
class ModelOptions:
    """Network and initial weights."""

    model: str = option("resnet18", MODEL_HELP, metavar="NAME")
    pretrained: bool = option(True, "start from ImageNet weights; `net` has none")
    weights: Path | None = option(
        None, "weights to start from: any checkpoint of PyTorch, or best.pt", metavar="FILE"
    )
    image_size: int = option(
        160, "side of the square input, px; from scratch 224", low=16, high=2048, metavar="PX"
    )
    intensity: str = option(
        "raw", "normalisation of each slice by the grey values of its head", choices=INTENSITIES
    )
    dropout: float = option(0.2, "dropout before the last layer of `net`", low=0.0, high=0.95)


@dataclass(frozen=True)
class TrainOptions:
    """Optimization."""

    epochs: int = option(6, "passes over the training slices; from scratch 30", low=1, metavar="N")
    batch_size: int = option(32, "slices per step", low=4, metavar="N")
    lr: float | None = option(
        None, "peak learning rate (default: 0.001 if pretrained, else 0.003)", low=1e-8, high=10.0
    )
    backbone_lr_factor: float = option(
        0.3, "learning-rate multiplier of the pretrained backbone", low=0.0, high=1.0
    )
    layer_decay: float = option(
        1.0,
        "learning-rate multiplier of the first pretrained layer; it rises to 1 at the last",
        low=0.001,
        high=1.0,
    )
    weight_decay: float = option(0.05, "decoupled weight decay of AdamW", low=0.0, high=10.0)
    warmup_epochs: float = option(1.0, "epochs of linear warm-up before the cosine decay", low=0.0)
    label_smoothing: float = option(0.05, "probability spread over all classes", low=0.0, high=0.5)
    clip_norm: float = option(1.0, "largest gradient norm; 0: no clipping", low=0.0)
    ema_decay: float = option(0.998, "EMA decay per step; 0: no EMA", low=0.0, high=0.99999)
    first_size: float = option(
        1.0, "first training size, relative to --image-size", low=0.25, high=1.0, metavar="SHARE"
    )
    teacher: Path | None = option(
        None,
        "run with --folds whose out-of-fold probabilities are learned, too",
        metavar="session/RUN",
    )
    teacher_weight: float = option(
        0.5, "share of --teacher in what is learned, the rest is the label", low=0.0, high=1.0
    )
    freeze_epochs: int = option(0, "first epochs with a frozen backbone", low=0, metavar="N")
    patience: int = option(
        10, "stop after N epochs without a better val macro-F1; 0: never", low=0, metavar="N"
    )


@dataclass(frozen=True)
class AugmentOptions:
    """Random augmentation of training slices."""

    flip: bool = option(True, "mirror half of the slices")
    quarter_turns: bool = option(True, "rotate by 0, 90, 180 or 270 degrees")
    rotation: float = option(10.0, "largest additional rotation, degrees", low=0.0, high=180.0)
    shift: float = option(0.05, "largest shift, as a share of the side", low=0.0, high=0.5)
    zoom: float = option(0.1, "largest zoom in or out, as a share", low=0.0, high=0.5)
    gamma: float = option(0.2, "largest change of gamma, as a share", low=0.0, high=0.9)
    contrast: float = option(0.2, "largest change of contrast, as a share", low=0.0, high=0.9)
    erase: float = option(0.0, "share of slices with an erased box of 2 to 20 %", low=0.0, high=1.0)
    bias_field: float = option(
        0.0, "largest change of brightness by a smooth field, as a share", low=0.0, high=2.0
    )
    ghosting: float = option(0.0, "largest strength of ghosts of motion", low=0.0, high=1.0)
    noise: float = option(
        0.0, "largest deviation of Rician noise, of the range of grey", low=0.0, high=0.5
    )
    mixup: float = option(0.0, "alpha of mixup's Beta distribution; 0: off", low=0.0, high=10.0)
    cutmix: float = option(0.0, "alpha of cutmix's Beta distribution; 0: off", low=0.0, high=10.0)


@dataclass(frozen=True)
class RunOptions:
    """Name, device and precision."""

    name: str | None = option(
        None, "name of the run (default: model, date and time)", metavar="RUN", pattern=PLAIN_NAME
    )
    seed: int = option(0, "seed of initial weights, order and augmentation", low=0, metavar="N")
    device: str = device_option()
    threads: int = threads_option()
    memory_mib: int | None = option(
        None, "memory limit for slices, MiB (default: half of the free memory)", low=1, metavar="N"
    )
    precision: str = option(
        "auto", "precision of training; predictions are fp32", choices=PRECISIONS
    )
    compile: str = option(
        "auto", "torch.compile for training; auto: off", choices=("auto", "on", "off")
    )
    save_every: float = option(
        10.0, "minutes between checkpoints within an epoch; 0: none", low=0.0, metavar="MINUTES"
    )
    deterministic: bool = option(False, "bit-identical results on CUDA, as on CPUs; slower")
    tensorboard: bool = option(False, "log to session/RUN/tensorboard; needs TensorBoard")
    debug: bool = debug_option()


@dataclass(frozen=True)
class TrainConfig:
    """All options of a training run."""

    data: DataOptions
    model: ModelOptions
    train: TrainOptions
    augment: AugmentOptions
    run: RunOptions

    @property
    def data_dir(self) -> Path:
        """Folder that holds the slices."""
        return PHANTOM_DIR if self.data.phantom else self.data.data

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for config.json and the checkpoint."""
        return simplify(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        """Return the configuration that `to_dict` was called on."""
        return cls(
            **{key: restore_dataclass(group, values[key]) for key, group in TRAIN_GROUPS.items()}
        )


TRAIN_GROUPS: dict[str, Any] = {part.name: part.type for part in dataclasses.fields(TrainConfig)}


@dataclass(frozen=True)
class ResumeConfig:
    """Options of `main.py --resume`; all others are those of the stopped run."""

    resume: Path
    device: str = "auto"
    debug: bool = False
    epochs: int | None = None
    data: Path | None = None


@dataclass(frozen=True)
class DryRunConfig:
    """Options of `main.py --dry-run`: those of the run, which is not started."""

    train: TrainConfig


@dataclass(frozen=True)
class ListConfig:
    """Options of `main.py --model list [PATTERN]`."""

    pattern: str = ""


# ---- evaluate.py


@dataclass(frozen=True)
class EvaluateConfig:
    """Checkpoints, data and output."""

    checkpoints: tuple[Path, ...] = argument(
        "session/RUN/best.pt, or session/RUN, also of a run with --folds; several are compared",
        metavar="CHECKPOINT_OR_RUN",
        several=True,
    )
    data: Path | None = option(
        None, "folder that prepare.py wrote (default: the data of the run)", metavar="DIR"
    )
    split: str = option(
        "test", "split of the run; all: every slice", choices=("test", "val", "train", "all")
    )
    class_map: tuple[str, ...] = option(
        (),
        "class OLD of the data is class NEW of the model; NEW is - if the model lacks it",
        metavar="OLD=NEW",
        pattern=r"[^=].*=.+",
    )
    threshold: tuple[str, ...] = threshold_option()
    name: str | None = option(
        None, "folder under results/ (default: the run's)", metavar="RUN", pattern=PLAIN_NAME
    )
    calibration: Path | None = calibration_option()
    recalibrate: Path | None = option(
        None,
        "fit temperature and thresholds to the labelled slices of this folder that prepare.py "
        "wrote, print what changes and write session/RUN/calibration-DIR.json",
        metavar="DIR",
    )
    stress: bool = option(
        False, "also evaluate rotated, blurred, blanked … slices and report the drop in accuracy"
    )
    gallery: int = option(
        8, "heat maps of the N worst errors and N least certain slices", low=0, high=50, metavar="N"
    )
    batch_size: int = option(64, "slices per forward pass", low=1, metavar="N")
    device: str = device_option()
    threads: int = threads_option()
    debug: bool = debug_option()


# ---- parsers


def parse_train(
    argv: Sequence[str] | None = None,
) -> TrainConfig | ResumeConfig | DryRunConfig | ListConfig:
    """Parse the command line of main.py.

    Raises:
        SystemExit: 0 after `--help`, 2 if the command line is wrong.
    """
    parser = build_parser(
        "main.py",
        "[options]",
        "Train a classifier on MRI slices, keep the best checkpoint in session/RUN and evaluate it "
        "once on the test split into results/RUN.",
        "examples:\n"
        "  python main.py --model resnet18 --epochs 30 --dry-run\n"
        "  python main.py --model resnet18 --epochs 30\n"
        "  python main.py --model net --phantom --image-size 96 --epochs 12\n"
        "  python main.py --model resnet18 --epochs 30 --folds 5\n"
        "  python main.py --model list efficientnet\n"
        "  python main.py --resume session/RUN\n"
        "  python main.py --resume session/RUN --epochs 60\n"
        "  python main.py --config session/RUN/config.json --seed 1",
    )
    for group in TRAIN_GROUPS.values():
        add_options(parser, group)
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="session/RUN",
        help="continue a run with its own options; --epochs N extends it, --data DIR names the "
        "folder that its data moved to, --device and --debug can be added",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="take the options from config.json of a run; those of the command line override them",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="train two steps, then print what the run would use (device, precision, memory, time, "
        "disk space, files) and keep nothing but the data folder's cache and downloaded weights",
    )
    parser.add_argument("pattern", nargs="?", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    given = vars(parser.parse_args(argv))
    pattern = given.pop("pattern", "")
    if given.get("model") == "list":
        return ListConfig(pattern)
    if pattern:
        parser.error(f"unrecognized argument: {pattern}")
    if "resume" in given:
        names = {field.name for field in dataclasses.fields(ResumeConfig)}
        if extra := sorted(set(given) - names):
            parser.error(f"--resume uses the options of the run; leave out {name_flag(extra[0])}")
        return fill_dataclass(ResumeConfig, given)
    if "config" in given:
        path, typed = given["config"], set(given)
        try:
            given, lines = take_options(path, given, TRAIN_GROUPS, CONTRADICTIONS, FROM_SCRATCH)
        except UserError as error:
            parser.exit(error.status, f"error: {error}\n")
        if not typed & {"data", "phantom"}:
            usual = PHANTOM_DIR if given.get("phantom") else given.get("data", DATA_DIR)
            if (data := run_paths.locate(usual, path)) != usual:  # the run is in another folder
                given |= {"phantom": False, "data": data}
                lines.append(f"--data {data}")
        print("\n".join(lines), flush=True)
    if found := find_contradiction(given, CONTRADICTIONS):
        parser.error(found[1])
    has_weights = given.get("model") != "net" and given.get("pretrained", True)
    if not (has_weights or given.get("weights")):
        given = FROM_SCRATCH | given
    config = TrainConfig(
        **{key: fill_dataclass(group, given) for key, group in TRAIN_GROUPS.items()}
    )
    return DryRunConfig(config) if "dry_run" in given else config


def parse_evaluate(argv: Sequence[str] | None = None) -> EvaluateConfig:
    """Parse the command line of evaluate.py; exit like `parse_train`."""
    parser = build_parser(
        "evaluate.py",
        "CHECKPOINT_OR_RUN [MORE …] [options]",
        "Evaluate a checkpoint: metrics.json, predictions.csv, plots and report.html under "
        "results/RUN. Several checkpoints are compared on the slices that they share, together "
        "with their ensemble.",
        "examples:\n"
        "  python evaluate.py session/RUN/best.pt\n"
        "  python evaluate.py session/RUN/best.pt --stress\n"
        "  python evaluate.py session/A/best.pt session/B/best.pt\n"
        "  python evaluate.py session/RUN/best.pt --data elsewhere --split all\n"
        "  python evaluate.py session/RUN --data elsewhere --class-map glioma_tumor=Glioma\n"
        "  python evaluate.py session/RUN --threshold Glioma=0.2\n"
        "  python evaluate.py session/RUN --recalibrate elsewhere",
    )
    add_options(parser, EvaluateConfig)
    given = vars(parser.parse_args(argv))
    config = fill_dataclass(EvaluateConfig, given)
    if config.stress and len(config.checkpoints) > 1:
        parser.error("--stress evaluates one run; give one CHECKPOINT_OR_RUN")
    if config.recalibrate is not None:
        fixed = {"checkpoints", "recalibrate", "name", "batch_size", "device", "threads", "debug"}
        fixed |= {"class_map"}
        if extra := sorted(set(given) - fixed):
            parser.error(
                f"--recalibrate fits all slices of its folder; leave out {name_flag(extra[0])}"
            )
    return config
