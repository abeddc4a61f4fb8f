"""Build classifiers by name: a backbone of the catalogue or the custom CNN, grey stem, new head."""

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from backbones.catalogue import choose_library, is_name, suggest
from backbones.record import BackboneRecord
from backbones.relu6 import replace_relu6
from helper import UserError, first_line
from net import SliceNet

CUSTOM_NET = "net"
# Means over the three channels of ImageNet, because a slice has one channel.
GREY_MEAN, GREY_STD = 0.449, 0.226
SAMPLE_PX = 64  # side of the grid of pixels whose percentiles are taken
TAIL = 0.01  # share of the pixels beyond a percentile
MIN_CONTRAST = 1 / 255  # of a slice that is divided by its contrast, in 0..1
MIN_EXCESS = -1e-4  # over the mean: in a slice of one grey level rounding must not decide


@dataclass(frozen=True)
class Preprocess:
    """Input format of a network.

    Attributes:
        image_size: Side of the square slices, px.
        mean: Subtracted from grey values in 0..1.
        std: Divides the difference.
        intensity: Normalisation of each slice before that, one of `args.INTENSITIES`.
        value_ranges: Of files without a declared bit depth in training (`imaging.bit_depth`).
    """

    image_size: int
    mean: float
    std: float
    intensity: str = "raw"
    value_ranges: dict[str, list[float]] = field(default_factory=dict)


class Classifier(nn.Module):
    """A backbone with its normalisation: takes grey slices in 0..1, returns logits.

    Args:
        backbone: Takes normalised slices [B, 1, S, S].
        head: Dotted name of the backbone's last layer.
        preprocess: Size and normalisation of the input.
    """

    def __init__(self, backbone: nn.Module, head: str, preprocess: Preprocess) -> None:
        super().__init__()
        self.backbone = backbone
        self.head_name = head
        self.preprocess = preprocess

    @property
    def head(self) -> nn.Module:
        """The last layer; its input is the embedding of a slice."""
        return self.backbone.get_submodule(self.head_name)

    def forward(self, slices: Tensor) -> Tensor:
        """Compute logits [B, K] of slices [B, 1, S, S] in 0..1."""
        return self.backbone(standardise(slices, self.preprocess))


def standardise(slices: Tensor, preprocess: Preprocess) -> Tensor:
    """Return what the backbone receives of slices [B, 1, S, S] in 0..1.

    The head are the pixels brighter than the mean of their slice. So the same pixels are the head
    if brightness or contrast of the slice change, and the result is the same but for clipping.

    - `raw`: the grey values, standardised by fixed numbers.
    - `percentile`: 1st percentile of the slice to 0, 99th percentile of the head to 1, clipped.
    - `zscore`: mean of the head to 0, its standard deviation to 1.

    Source: Nyul and Udupa 1999, On standardizing the MR image intensity scale, for percentiles as
    landmarks; Perez-Garcia et al. 2021, TorchIO, for the mean as threshold of the head.
    """
    if preprocess.intensity == "zscore":
        return _divide_by_deviation(slices)
    if preprocess.intensity == "percentile":
        slices = _stretch(slices)
    return (slices - preprocess.mean) / preprocess.std


def _divide_by_deviation(slices: Tensor) -> Tensor:
    """Subtract the mean of the head of each slice, divide by its standard deviation."""
    excess = slices - slices.mean((2, 3), keepdim=True)
    head = (excess > MIN_EXCESS).to(slices.dtype)
    n_pixels = head.sum((2, 3), keepdim=True)  # never 0: the largest value is not below the mean
    centred = excess - (excess * head).sum((2, 3), keepdim=True) / n_pixels
    variance = (centred.square() * head).sum((2, 3), keepdim=True) / n_pixels
    return centred / variance.sqrt().clamp(min=MIN_CONTRAST)


def _stretch(slices: Tensor) -> Tensor:
    """Stretch each slice to 0..1 between its percentiles, found on a grid of its pixels."""
    stride = math.ceil(slices.shape[-1] / SAMPLE_PX)  # sorting all pixels would take longer
    ordered = slices[:, 0, ::stride, ::stride].flatten(1).sort(dim=1).values  # [B, P]
    last = ordered.shape[1] - 1
    n_head = (ordered - ordered.mean(1, keepdim=True) > MIN_EXCESS).sum(1, keepdim=True)
    low = ordered[:, math.floor(TAIL * last), None]  # [B, 1]
    high = ordered.gather(1, last - (TAIL * n_head).floor().long())
    contrast = (high - low).clamp(min=MIN_CONTRAST)
    return ((slices - low[..., None, None]) / contrast[..., None, None]).clamp(0, 1)


def is_model(name: str) -> bool:
    """Return whether `--model` accepts a name.

    Raises:
        UserError: It needs timm, which is not installed.
    """
    return name == CUSTOM_NET or is_name(name)


def check_model(name: str, image_size: int, pretrained: bool, first_px: int | None = None) -> None:
    """Check the name and the sizes by a forward pass of shapes; nothing is downloaded.

    Args:
        name: Value of `--model`.
        image_size: Side of the slices, px.
        pretrained: True if training starts from weights, which may fix the size.
        first_px: Side of the first training slices, px, if `--first-size` changes it.

    Raises:
        UserError: The name is unknown or a size does not fit (exit status 2).
    """
    if not is_model(name):
        near = difflib.get_close_matches(name.lower(), [CUSTOM_NET]) or suggest(name)
        raise UserError(
            f"--model {name}: no such model; similar names: "
            f"{', '.join(near or [CUSTOM_NET, 'resnet18'])}; all are listed by --model list",
            status=2,
        )
    if name == CUSTOM_NET:  # accepts every size
        return
    native_px = read_record(name).native_px
    for option, side_px, advice in (
        (f"--image-size {image_size}", image_size, f"give --image-size {native_px}"),
        ("--first-size", first_px or image_size, "give a larger fraction or leave it out"),
    ):
        try:
            network = build_on_meta(name, image_size, pretrained).eval()
            network(torch.empty(1, 1, side_px, side_px, device="meta"))
            _check_restorable(network, name, image_size, pretrained)
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = f"{name} does not accept {side_px} px ({first_line(error)})"
            raise UserError(f"{option}: {reason}; {advice}", status=2) from error


def _check_restorable(network: Classifier, name: str, image_size: int, pretrained: bool) -> None:
    """Raise a ValueError if a network that is built for this size has tensors of other shapes."""
    if not pretrained or image_size == read_record(name).native_px:
        return
    shapes, own = (
        {key: tuple(tensor.shape) for key, tensor in each.state_dict().items()}
        for each in (build_on_meta(name, image_size, False), network)
    )
    if shapes != own:
        raise ValueError("its tables of positions are those of another size")


def build_on_meta(name: str, image_size: int, pretrained: bool) -> Classifier:
    """Build a network on the meta device (shapes without values), which is fast at any size."""

    def build() -> Classifier:
        backbone = build_backbone(name, image_size, pretrained=pretrained)
        return adapt_backbone(backbone, name, 3, image_size)

    try:
        with torch.device("meta"):
            return build()
    except NotImplementedError:  # RegNet computes its widths with tensors
        return build().to("meta")


def build_model(name: str, n_classes: int, image_size: int, *, dropout: float = 0.2) -> Classifier:
    """Build a network with random weights, a one-channel stem and a head of K classes.

    Args:
        name: A name that `--model` accepts.
        n_classes: K.
        image_size: Side of the slices, px.
        dropout: Dropout before the head of the custom network.
    """
    if name == CUSTOM_NET:
        net = SliceNet(n_classes, dropout)
        return Classifier(net, "head", Preprocess(image_size, GREY_MEAN, GREY_STD))
    return adapt_backbone(build_backbone(name, image_size), name, n_classes, image_size)


def build_backbone(name: str, image_size: int, *, pretrained: bool = False) -> nn.Module:
    """Build a backbone for three channels and 1,000 classes, with random weights.

    Args:
        name: A name of the catalogue.
        image_size: Side of the slices, px.
        pretrained: Build for ImageNet weights, at their native size.
    """
    return choose_library(name).build(name, image_size, pretrained=pretrained)


def adapt_backbone(backbone: nn.Module, name: str, n_classes: int, image_size: int) -> Classifier:
    """Replace the stem by a one-channel stem and the head by a new one of K classes."""
    head = find_head(backbone)
    record = read_record(name)
    _replace_stem(backbone, name)
    replace_head(backbone, n_classes)
    replace_relu6(backbone)
    return Classifier(
        backbone, head, Preprocess(image_size, sum(record.means) / 3, sum(record.stds) / 3)
    )


def find_stem(backbone: nn.Module) -> str:
    """Return the dotted name of the first convolution, of three channels or of one."""
    return next(
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Conv2d) and module.in_channels in (1, 3)
    )


def find_head(backbone: nn.Module) -> str:
    """Return the dotted name of the last layer with one output per ImageNet class."""
    names = [
        name
        for name, module in backbone.named_modules()
        if getattr(module, "out_features", getattr(module, "out_channels", None)) == 1000
    ]
    return names[-1]


def replace_head(backbone: nn.Module, n_classes: int) -> None:
    """Replace the last layer by a new one with K outputs."""
    head = find_head(backbone)
    old = backbone.get_submodule(head)
    if isinstance(old, nn.Conv2d):  # SqueezeNet
        new: nn.Module = nn.Conv2d(old.in_channels, n_classes, kernel_size=1)
    else:
        new = nn.Linear(old.in_features, n_classes)  # type: ignore[arg-type]
        nn.init.normal_(new.weight, std=0.01)
        nn.init.zeros_(new.bias)
    backbone.set_submodule(head, new)


def _replace_stem(backbone: nn.Module, name: str) -> None:
    """Replace the first convolution of a backbone by one of a single channel and a bias."""
    stem = find_stem(backbone)
    old = backbone.get_submodule(stem)
    assert isinstance(old, nn.Conv2d)
    new = type(old)(  # timm has convolutions that pad like TensorFlow
        1,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        old.dilation,  # type: ignore[arg-type]
    )
    new.weight, new.bias = map(nn.Parameter, fold_stem(name, old.weight, old.bias))
    backbone.set_submodule(stem, new)


@torch.no_grad()
def fold_stem(name: str, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Fold the kernels of three channels into that of one channel and a bias.

    The network receives z = (x - mean) / std of the grey value x. Channel c of three copies would
    be (x - means[c]) / stds[c] = scale[c] * z + shift[c]. So the kernel of z is the sum of
    scale[c] * W[c], and the bias is the sum of shift[c] * W[c] over c and the kernel's cells. This
    is exact except where the kernel overlaps zero padding, because there three channels add only
    a part of the bias. No other value of the padding is exact either: it would have to differ
    between output channels. docs/architecture.md gives the size of the difference.

    Args:
        name: The backbone, which determines the statistics of the channels.
        weight: [O, 3, H, W].
        bias: [O], or None.

    Returns:
        Kernel [O, 1, H, W] and bias [O].
    """
    record = read_record(name)
    means, stds = record.means, record.stds
    mean, std = sum(means) / 3, sum(stds) / 3
    scale = weight.new_tensor([std / each for each in stds])
    shift = weight.new_tensor([(mean - m) / s for m, s in zip(means, stds, strict=True)])
    kernel = (weight * scale.view(3, 1, 1)).sum(dim=1, keepdim=True)
    added = (weight * shift.view(3, 1, 1)).sum(dim=(1, 2, 3))
    return kernel, added if bias is None else bias + added


def find_nondeterministic_layers(network: nn.Module) -> list[str]:
    """Return the layers without a deterministic backward on CUDA, e.g. of VGG and AlexNet.

    `torch.use_deterministic_algorithms` refuses these layers in the backward pass. Adaptive average
    pooling to one cell is a mean, which is deterministic.

    Returns:
        Name and type of each, e.g. `backbone.avgpool (AdaptiveAvgPool2d)`.
    """
    return [
        f"{name} ({type(module).__name__})"
        for name, module in network.named_modules()
        if isinstance(module, nn.AdaptiveMaxPool2d)
        or (isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size not in (1, (1, 1)))
    ]


def read_record(name: str) -> BackboneRecord:
    """Return the usual input and the default weights of a backbone; nothing is downloaded."""
    return choose_library(name).read_record(name)


def describe_model(name: str, network: Classifier, classes: list[str]) -> dict[str, Any]:
    """Return the entries of a checkpoint that define the network."""
    return {
        "model": name,
        "classes": list(classes),
        "preprocess": dataclasses.asdict(network.preprocess),
    }
