"""Options of the verbs that make and measure: a frozen dataclass a group, and their parsers.

A field states its default, help, choices and range once. Configurations are never changed after
parsing. Standard library only, so that `--help` answers before anything heavy is imported.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

DATA_DIR = Path("data")
PHANTOM_DIR = Path("data/phantom")
DEVICE = r"auto|cpu|mps|cuda(:\d+)?"
PLAIN_NAME = r"\w[\w .+-]*"


def device_option() -> Any:
    """`--device`, of every verb that computes."""
    return option("auto", "auto, cpu, cuda, cuda:1 or mps", metavar="D", pattern=DEVICE)


def threads_option(purpose: str = "") -> Any:
    """`--threads`, of every verb that computes; `purpose` says for what, where not for all."""
    words = f"CPU threads{purpose}; 0: as many as there are cores"
    return option(0, words, low=0, high=1024, metavar="N")


def debug_option() -> Any:
    """`--debug`, of every verb."""
    return option(False, "show the traceback of an error")


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
    folds: int | None = option(
        None,
        "cross-validate: K runs in session/RUN/fold_1..K, each slice judged once, pooled results",
        low=2,
        high=20,
        metavar="K",
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
    first_size: float = option(
        1.0,
        "side of the first training slices as a share of --image-size; it grows to all of it",
        low=0.25,
        high=1.0,
        metavar="SHARE",
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
    erase: float = option(
        0.0, "blank a box of 2 to 20 % in this share of the slices", low=0.0, high=1.0
    )
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
    device: str = device_option()
    threads: int = threads_option()
    memory_mib: int | None = option(
        None,
        "MiB for decoded slices; more are read from disk as they come (default: half of the free)",
        low=1,
        metavar="N",
    )
    precision: str = option(
        "auto", "arithmetic of training; verdicts are fp32", choices=("auto", "fp32", "bf16")
    )
    compile: str = option(
        "auto",
        "torch.compile for training; auto: on CUDA, where the run is long enough",
        choices=("auto", "on", "off"),
    )
    save_every: float = option(
        10.0,
        "minutes between saves within an epoch, beside those at its end; 0: none",
        low=0.0,
        metavar="MINUTES",
    )
    deterministic: bool = option(
        False,
        "the same bits in every run on CUDA too, as on CPUs; slower",
    )
    tensorboard: bool = option(
        False, "log to session/RUN/tensorboard, where TensorBoard is installed"
    )
    debug: bool = debug_option()


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
        return simplify(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        """What `to_dict` gave, as a configuration again."""
        return cls(
            **{key: restore_dataclass(group, values[key]) for key, group in TRAIN_GROUPS.items()}
        )


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
    """evaluate.py: the figures, pictures and page of checkpoints."""

    checkpoints: tuple[Path, ...] = argument(
        "session/RUN/best.pt, or session/RUN of a run with --folds; several are compared",
        metavar="CHECKPOINT",
        several=True,
    )
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
    stress: bool = option(
        False, "also judge slices that are turned, blurred, blanked …: how far accuracy falls"
    )
    gallery: int = option(
        8,
        "errors and least certain slices shown with heat maps, N each",
        low=0,
        high=50,
        metavar="N",
    )
    batch_size: int = option(64, "slices a forward pass", low=1, metavar="N")
    device: str = device_option()
    threads: int = threads_option()
    debug: bool = debug_option()


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
    debug: bool = debug_option()


# ---- benchmark.py


@dataclass(frozen=True)
class BenchmarkConfig:
    """What benchmark.py measures."""

    json: Path | None = option(None, "write every figure and every round there", metavar="FILE")
    data: Path | None = option(
        None, "folder that prepare.py wrote (default: phantoms, made anew)", metavar="DIR"
    )
    slices: int = option(
        640, "slices of an epoch: phantoms to make, or as many of --data", low=12, metavar="N"
    )
    model: str = option(
        "resnet18", "torchvision classifier by name, or `net` for the custom CNN", metavar="NAME"
    )
    image_size: int = option(224, "side of the square input, px", low=16, high=2048, metavar="PX")
    batch_size: int = option(32, "slices a step", low=4, metavar="N")
    repeats: int = option(3, "rounds that count, after one that does not", low=1, metavar="N")
    seed: int = option(0, "seed of phantoms, choice, weights and order", low=0, metavar="N")
    device: str = device_option()
    threads: int = threads_option()
    precision: str = option(
        "auto",
        "arithmetic of limit and pipeline; verdicts and the usual pipeline are fp32",
        choices=("auto", "fp32", "bf16"),
    )
    compile: str = option("off", "torch.compile of limit and pipeline", choices=("on", "off"))
    debug: bool = debug_option()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the processes that it starts."""
        return simplify(dataclasses.asdict(self))


def parse_train(argv: Sequence[str] | None = None) -> TrainConfig | ResumeConfig:
    """The configuration of main.py.

    Raises:
        SystemExit: 0 after `--help`, 2 when the command line is wrong.
    """
    parser = build_parser(
        "main.py",
        "[options]",
        "Train a classifier on MRI slices, keep the best checkpoint in session/RUN, and evaluate "
        "it once on the test split into results/RUN.",
        "examples:\n"
        "  python main.py --model resnet18 --epochs 30\n"
        "  python main.py --model net --phantom --image-size 96 --epochs 12\n"
        "  python main.py --model resnet18 --epochs 30 --folds 5\n"
        "  python main.py --resume session/RUN",
    )
    for group in TRAIN_GROUPS.values():
        add_options(parser, group)
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
                f"--resume goes on with the run's own settings; leave out {name_flag(beside[0])}"
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
    if "dropout" in given and given.get("model") != "net":
        parser.error("--dropout is of `net`; leave it out, or give --model net")
    is_scratch = given.get("model") == "net" or given.get("pretrained") is False
    if given.get("freeze_epochs") and is_scratch:
        parser.error("--freeze-epochs: there is no pretrained body to stand still; leave it out")
    if given.get("mixup") and given.get("cutmix"):
        parser.error("--mixup and --cutmix mix the same batch; give one of them")
    return TrainConfig(**{key: fill_dataclass(group, given) for key, group in TRAIN_GROUPS.items()})


def parse_evaluate(argv: Sequence[str] | None = None) -> EvaluateConfig:
    """The configuration of evaluate.py; exits as `parse_train` does."""
    parser = build_parser(
        "evaluate.py",
        "CHECKPOINT [MORE …] [options]",
        "Evaluate a checkpoint: metrics.json, predictions.csv, plots and report.html under "
        "results/RUN. Several are compared on the slices that all of them judge, beside their "
        "ensemble.",
        "examples:\n"
        "  python evaluate.py session/RUN/best.pt\n"
        "  python evaluate.py session/RUN/best.pt --stress\n"
        "  python evaluate.py session/A/best.pt session/B/best.pt\n"
        "  python evaluate.py session/RUN/best.pt --data elsewhere --split all",
    )
    add_options(parser, EvaluateConfig)
    config = fill_dataclass(EvaluateConfig, vars(parser.parse_args(argv)))
    if config.stress and len(config.checkpoints) > 1:
        parser.error("--stress judges one run at a time; name one CHECKPOINT")
    return config


def parse_prepare(argv: Sequence[str] | None = None) -> PrepareConfig:
    """The configuration of prepare.py; exits as `parse_train` does."""
    parser = build_parser(
        "prepare.py",
        "(SOURCE | --phantom N) [options]",
        "Bring slices into data/Images/<Class>/ and list them in data/CSV/images.csv.",
        "examples:\n"
        "  python prepare.py brain_cancer_mri.zip\n"
        "  python prepare.py folder_of_class_folders --groups patients.csv\n"
        "  python prepare.py --phantom 600",
    )
    add_options(parser, PrepareConfig)
    config = fill_dataclass(PrepareConfig, vars(parser.parse_args(argv)))
    if (config.source is None) == (config.phantom is None):
        parser.error("give a SOURCE (archive or folder), or --phantom N, one of the two")
    if config.phantom is not None and config.groups is not None:
        parser.error("--groups is for a SOURCE; phantoms know their patients")
    return config


def parse_benchmark(argv: Sequence[str] | None = None) -> BenchmarkConfig:
    """The configuration of benchmark.py; exits as `parse_train` does."""
    parser = build_parser(
        "benchmark.py",
        "[options]",
        "Measure how fast training runs beside the limit of the network's own arithmetic and "
        "beside the usual pipeline (ImageFolder, workers, transforms an image), and what the "
        "stages around it take.",
        "examples:\n"
        "  python benchmark.py --json results/benchmarks/speed.json\n"
        "  python benchmark.py --model net --data data --slices 5451",
    )
    add_options(parser, BenchmarkConfig)
    config = fill_dataclass(BenchmarkConfig, vars(parser.parse_args(argv)))
    if config.slices < config.batch_size:
        parser.error(f"--slices {config.slices}: less than one batch of {config.batch_size}")
    return config
