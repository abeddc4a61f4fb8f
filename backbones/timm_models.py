"""Classifiers of timm, which is installed by `pip install -r requirements-timm.txt`."""

import functools
import importlib
from types import ModuleType

from torch import Tensor, nn

from backbones.record import BackboneRecord
from helper import UserError

PREFIX = "timm/"
INSTALL = "pip install -r requirements-timm.txt"
N_CLASSES = 1000
USUAL_PX, USUAL_MEANS, USUAL_STDS = 224, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# Convolutions whose kernels of three channels can be folded into one; others change their kernels.
PLAIN_STEMS = {"Conv2d", "Conv2dSame"}


@functools.cache
def load_timm() -> ModuleType:
    """Import timm.

    Raises:
        UserError: It is not installed; exit status 2.
    """
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise UserError(
            f"networks called {PREFIX}… need timm, which is not installed: {INSTALL}", status=2
        ) from error


def list_names(pattern: str = "*") -> list[str]:
    """Return timm/NAME of every architecture that matches a pattern with * and ?."""
    return [f"{PREFIX}{name}" for name in load_timm().list_models(pattern)]


def is_name(name: str) -> bool:
    """Return whether timm has this architecture, also with the tag of published weights."""
    timm, own = load_timm(), name.removeprefix(PREFIX)
    architecture, dot, _ = own.partition(".")
    if not timm.is_model(architecture):
        return False
    return not dot or own in timm.list_pretrained(architecture)


def read_record(name: str) -> BackboneRecord:
    """Return what timm states of a classifier; nothing is downloaded."""
    config = load_timm().get_pretrained_cfg(name.removeprefix(PREFIX))
    if config is None:  # an architecture without published weights
        return BackboneRecord(USUAL_PX, USUAL_MEANS, USUAL_STDS, "", "")
    weights = f"{PREFIX}{config.architecture}{f'.{config.tag}' if config.tag else ''}"
    return BackboneRecord(
        native_px=int(config.input_size[-1]),
        means=list(config.mean),
        stds=list(config.std),
        weights=weights if config.has_weights else "",
        file=str(config.hf_hub_id or config.url or ""),
    )


def build(name: str, image_size: int, *, pretrained: bool) -> nn.Module:
    """Build a network for three channels and 1,000 classes, with random weights.

    Args:
        name: timm/NAME.
        image_size: Side of the input, px; networks of a fixed size are built for it.
        pretrained: Build for published weights, at their native size.

    Raises:
        UserError: Its stem cannot take grey slices, or it has no head of one layer; exit status 2.
    """
    built_for = read_record(name).native_px if pretrained else image_size
    create = functools.partial(
        load_timm().create_model, name.removeprefix(PREFIX), num_classes=N_CLASSES
    )
    try:
        backbone = create(img_size=built_for)
    except TypeError:  # it takes any size
        backbone = create()
    convolutions = [each for each in backbone.modules() if isinstance(each, nn.Conv2d)]
    stems = [each for each in convolutions if each.in_channels == 3]
    if len(stems) != 1 or type(stems[0]).__name__ not in PLAIN_STEMS:
        kinds = sorted({type(each).__name__ for each in stems})
        found = f"{len(stems)} convolutions of 3 channels" if len(stems) != 1 else f"a {kinds[0]}"
        raise _refuse(name, f"its stem is {found}, which cannot be folded to one grey channel")
    heads = [
        each
        for each in backbone.modules()
        if getattr(each, "out_features", getattr(each, "out_channels", None)) == N_CLASSES
    ]
    head = backbone.get_classifier()
    if len(heads) != 1 or head is not heads[0]:
        raise _refuse(name, f"it has {len(heads)} layers of {N_CLASSES} outputs instead of a head")
    return backbone


def _refuse(name: str, reason: str) -> UserError:
    return UserError(f"--model {name}: {reason}; choose another network", status=2)


def download_weights(name: str) -> dict[str, Tensor]:
    """Return the default ImageNet weights; timm downloads them once.

    Raises:
        OSError, RuntimeError: They could not be downloaded.
    """
    create_model = load_timm().create_model
    return dict(create_model(name.removeprefix(PREFIX), pretrained=True).state_dict())
