"""From a name to a network with its weights, and from slices to logits."""

import contextlib
import dataclasses
import difflib
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from helper import UserError, first_line
from net import SliceNet

CUSTOM_NET = "net"
# IMAGENET's three means and deviations, averaged: a grey slice is one channel.
GREY_MEAN, GREY_STD = 0.449, 0.226
AUXILIARY_HEADS = ("AuxLogits", "aux1", "aux2")


@dataclass(frozen=True)
class Preprocess:
    """What a network expects: square grey slices of `image_size` px, normalised by mean and std.

    Mean and deviation are of grey values scaled to 0..1.
    """

    image_size: int
    mean: float
    std: float


class Classifier(nn.Module):
    """A backbone with its normalisation inside: grey slices in 0..1 in, logits out."""

    def __init__(self, backbone: nn.Module, head: str, preprocess: Preprocess) -> None:
        super().__init__()
        self.backbone = backbone
        self.head_name = head
        self.preprocess = preprocess

    @property
    def head(self) -> nn.Module:
        """The last layer; what enters it is the embedding of a slice."""
        return self.backbone.get_submodule(self.head_name)

    def forward(self, slices: Tensor) -> Tensor:
        """[B, 1, S, S] in 0..1 to logits [B, K]."""
        return self.backbone((slices - self.preprocess.mean) / self.preprocess.std)


def list_models() -> list[str]:
    """Every name that `--model` takes."""
    return [CUSTOM_NET, *torchvision.models.list_models(module=torchvision.models)]


def check_model(name: str, image_size: int, pretrained: bool, first_px: int | None = None) -> None:
    """Refuse a wrong name or size before any file is opened; nothing is computed or downloaded.

    Args:
        name: Of `--model`.
        image_size: Side of the slices, px.
        pretrained: Whether it starts from weights, which may fix its size.
        first_px: Side of the first training slices, where it is another.

    Raises:
        UserError: With exit status 2.
    """
    names = list_models()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=5, cutoff=0.5) or ["net", "resnet18"]
        raise UserError(
            f"--model {name}: no such model; near it: {', '.join(near)} "
            f"({len(names)} in all: {CUSTOM_NET} and torchvision's classifiers)",
            status=2,
        )
    try:
        network = _build_on_meta(name, image_size, pretrained).eval()
        network(torch.empty(1, 1, image_size, image_size, device="meta"))
    except (RuntimeError, ValueError, AssertionError) as error:
        fitting = _weights_record(name)
        usual = f"; its usual size is {_usual_size(fitting)}" if fitting else ""
        raise UserError(
            f"--image-size {image_size}: {name} does not take it ({first_line(error)}){usual}",
            status=2,
        ) from error
    try:
        network(torch.empty(1, 1, first_px or image_size, first_px or image_size, device="meta"))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(
            f"--first-size: {name} does not take slices of {first_px} px ({first_line(error)}); "
            "give a larger share, or leave it out",
            status=2,
        ) from error


def _build_on_meta(name: str, image_size: int, pretrained: bool) -> Classifier:
    """A network of shapes without numbers: built at once, whatever its size."""
    try:
        with torch.device("meta"):
            return _build_untrained(name, 3, image_size, pretrained)
    except NotImplementedError:  # RegNet computes its widths with tensors
        return _build_untrained(name, 3, image_size, pretrained).to("meta")


def build_model(
    name: str,
    n_classes: int,
    image_size: int,
    *,
    pretrained: bool = False,
    weights: Path | None = None,
    dropout: float = 0.2,
) -> Classifier:
    """The network called `name`, with a one-channel stem and a new head of K classes.

    Args:
        name: One of `list_models()`.
        n_classes: K.
        image_size: Side of the slices, px.
        pretrained: Start from torchvision's default ImageNet weights (downloaded once by torch).
        weights: Start from this local state dict instead.
        dropout: Dropout before the head of the custom network.

    Raises:
        UserError: The weights are not there or do not fit.
    """
    uses_weights = weights is not None or (pretrained and name != CUSTOM_NET)
    if not uses_weights:
        return _build_untrained(name, n_classes, image_size, False, dropout)
    state = _read_state_dict(weights) if weights else _download_state_dict(name)
    origin = str(weights) if weights else _weights_record(name).url
    return _build_untrained(name, n_classes, image_size, True, start=(state, origin))


def _build_untrained(
    name: str,
    n_classes: int,
    image_size: int,
    pretrained: bool,
    dropout: float = 0.2,
    start: tuple[dict[str, Tensor], str] | None = None,
) -> Classifier:
    if name == CUSTOM_NET:
        net = SliceNet(n_classes, dropout)
        return Classifier(net, "head", Preprocess(image_size, GREY_MEAN, GREY_STD))
    backbone = _build_backbone(name, image_size, pretrained)
    head = _find_head(backbone)
    if start is not None:
        _load_backbone(backbone, head, *start)
    _replace_stem(backbone)
    _replace_head(backbone, head, n_classes)
    return Classifier(backbone, head, _preprocess_of(name, image_size))


def _build_backbone(name: str, image_size: int, pretrained: bool) -> nn.Module:
    """Torchvision's network with three input channels and its 1,000 classes, untrained."""
    built_for = _usual_size(_weights_record(name)) if pretrained else image_size
    options: dict[str, Any] = {}
    if name in {"inception_v3", "googlenet"}:
        options = {"init_weights": not pretrained, "aux_logits": True}
    if name.startswith("vit_"):
        options["image_size"] = built_for
    if name.startswith("maxvit"):
        options["input_size"] = (built_for, built_for)
    backbone = torchvision.models.get_model(name, weights=None, **options)
    if hasattr(backbone, "aux_logits"):
        # The auxiliary heads serve training on ImageNet; without them the output is one tensor.
        backbone.aux_logits = False
        for auxiliary in AUXILIARY_HEADS:
            if hasattr(backbone, auxiliary):
                setattr(backbone, auxiliary, None)
    return backbone


def _find_head(backbone: nn.Module) -> str:
    """The dotted name of the last layer: the one with an output for each class of ImageNet."""
    names = [
        name
        for name, module in backbone.named_modules()
        if getattr(module, "out_features", getattr(module, "out_channels", None)) == 1000
    ]
    return names[-1]


def _replace_head(backbone: nn.Module, head: str, n_classes: int) -> None:
    old = backbone.get_submodule(head)
    if isinstance(old, nn.Conv2d):  # SqueezeNet
        new: nn.Module = nn.Conv2d(old.in_channels, n_classes, kernel_size=1)
    else:
        new = nn.Linear(old.in_features, n_classes)  # type: ignore[arg-type]
        nn.init.normal_(new.weight, std=0.01)
        nn.init.zeros_(new.bias)
    parent, _, child = head.rpartition(".")
    setattr(backbone.get_submodule(parent), child, new)


def _replace_stem(backbone: nn.Module) -> None:
    """Sum the three kernels of the first convolution: equal to feeding the grey slice thrice."""
    name, old = next(
        (name, module)
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Conv2d) and module.in_channels == 3
    )
    new = nn.Conv2d(
        1,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    with torch.no_grad():
        new.weight.copy_(old.weight.sum(dim=1, keepdim=True))
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    parent, _, child = name.rpartition(".")
    setattr(backbone.get_submodule(parent), child, new)


def _weights_record(name: str) -> Any:
    """Torchvision's default weights of a backbone (not downloaded), or None for the custom net."""
    return None if name == CUSTOM_NET else torchvision.models.get_model_weights(name).DEFAULT


def _usual_size(record: Any) -> int:
    """The side in px that a backbone's ImageNet weights were trained or evaluated at."""
    crop = record.transforms().crop_size
    return int(crop[0])


def _preprocess_of(name: str, image_size: int) -> Preprocess:
    if name in {"inception_v3", "googlenet"}:  # trained on inputs scaled to -1..1
        return Preprocess(image_size, 0.5, 0.5)
    record = _weights_record(name).transforms()
    mean, std = sum(record.mean) / 3, sum(record.std) / 3
    return Preprocess(image_size, mean, std)


# ---- weights


def _download_state_dict(name: str) -> dict[str, Tensor]:
    record = _weights_record(name)
    file_name = record.url.rsplit("/", 1)[-1]
    try:
        return dict(record.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:
        where = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"ImageNet weights of {name}: {file_name} is not in {where} and could not be "
            f"downloaded ({first_line(error)}); put it there, or give --weights FILE, "
            "or --no-pretrained"
        ) from error


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    """A file of plain tensors; code in it is never run."""
    state = load_tensors(path, "--weights")
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise UserError(f"--weights {path}: not a state dict (names and tensors)")
    return state


def _load_backbone(backbone: nn.Module, head: str, state: dict[str, Tensor], origin: str) -> None:
    """Load all but the classifier head, which is made anew.

    Raises:
        UserError: A weight is missing, unexpected or of another shape; each is named.
    """
    left_out = (f"{head}.", *(f"{auxiliary}." for auxiliary in AUXILIARY_HEADS))
    body = {
        # torchvision's DenseNet files are older than its module names: norm.1 became norm1
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): value
        for key, value in state.items()
        if not key.startswith(left_out)
    }
    wanted = {
        key: value for key, value in backbone.state_dict().items() if not key.startswith(left_out)
    }
    counters = {key for key in wanted if key.endswith("num_batches_tracked")}
    missing = sorted(set(wanted) - set(body) - counters)
    unexpected = sorted(set(body) - set(wanted))
    reshaped = sorted(
        f"{key} {tuple(body[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in set(body) & set(wanted)
        if body[key].shape != wanted[key].shape
    )
    faults = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for kind, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", reshaped),
        )
        if keys
    ]
    if faults:
        raise UserError(f"{origin}: not the weights of this model: {'; '.join(faults)}")
    backbone.load_state_dict({**wanted, **body}, strict=False)


def describe_model(name: str, network: Classifier, classes: list[str]) -> dict[str, Any]:
    """The part of a checkpoint that says what the network is."""
    return {
        "model": name,
        "classes": list(classes),
        "preprocess": dataclasses.asdict(network.preprocess),
    }


def describe_start(name: str, pretrained: bool, weights: Path | None) -> str:
    """What the weights were before training, in words; `scratch` when they were drawn at random."""
    if weights is not None:
        return f"weights of {weights.name}"
    if name == CUSTOM_NET or not pretrained:
        return "scratch"
    return f"ImageNet weights {_weights_record(name)}"


def load_tensors(path: Path, what: str) -> Any:
    """A file of tensors and plain values onto the CPU; code in it is never run.

    Raises:
        UserError: No such file, or it holds something else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that were not written by torch.save
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{what} {path}: no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"{what} {path}: a folder; name the file in it") from error
    except Exception as error:
        raise UserError(
            f"{what} {path}: not readable as plain tensors (weights_only=True refuses code): "
            f"{first_line(error)}"
        ) from error


# ---- inference


@torch.no_grad()
def infer(network: Classifier, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Logits and embeddings of slices, in fp32; the network is left as it was.

    Args:
        network: On the device of the batches.
        batches: uint8 slices [B, 1, S, S].

    Returns:
        Logits [N, K] and embeddings [N, D] on the CPU. The embedding is what enters the last layer.
    """
    device = next(network.parameters()).device
    logits, embeddings = [], []
    with full_precision(), _evaluating(network), _inputs_of(network.head) as caught:
        for slices in batches:
            logits.append(network(to_unit_range(slices.to(device))).float().cpu())
            features = caught.pop()
            embeddings.append(features.flatten(2).mean(2) if features.dim() == 4 else features)
    return torch.cat(logits), torch.cat([part.float().cpu() for part in embeddings])


def full_precision() -> contextlib.AbstractContextManager[None]:
    """fp32 that is fp32: CUDA's convolutions would round their inputs to TF32 otherwise."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def to_unit_range(slices: Tensor) -> Tensor:
    """uint8 slices as fp32 in 0..1."""
    return slices.to(torch.float32) / 255


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


@contextlib.contextmanager
def _inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Catch what enters a module; the hook is gone afterwards."""
    caught: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        yield caught
    finally:
        handle.remove()
