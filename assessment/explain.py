"""Where a network looks: heat maps by Grad-CAM and by occlusion, and tests of such maps.

A map says what the network rests on, which need not be the lesion; `studies.pointing_game` measures
how often it is, where the lesion is known.
"""

import contextlib
import copy
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch
from captum.attr import LayerAttribution, LayerGradCam, Occlusion
from torch import Tensor, nn
from torch.nn import functional as F

from helper import build_generator

METHODS = ("auto", "gradcam", "occlusion")
IMAGES_AT_ONCE = 16  # bounds the memory of a large network's graph
PASSES_AT_ONCE = 64  # occluded images a forward pass
PATCHES_PER_SIDE = 8
ROUNDING = 1e-5  # a smaller share of a logit is arithmetic, not evidence
# They make no map of their own: an adaptive pool repeats or blends cells of the one before it.
PASSIVE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Dropout, nn.Identity)


def compute_heatmaps(
    network: nn.Module, images: Tensor, targets: Tensor, method: str = "auto"
) -> Tensor:
    """What of each image speaks for a class, 0..1 in each map; all zeros where nothing does.

    Each map is cut at zero and divided by its own maximum: maps compare places in one image, never
    images. The network is left as it was found, and the arithmetic is fp32.

    Grad-CAM weighs the channels of the layer of `find_spatial_layer` by their mean gradient.
    Occlusion is the fall of the class's logit when a patch of an eighth of the side, moved by half
    of its own, is replaced by the mean of its surroundings (three patches wide). A lesion then
    fades into what is around it, and the black outside a head stays black: a patch of one fixed
    grey would itself be a shape that the slice does not have.

    Args:
        network: Has the property `head`, its last layer, and takes images to logits [B, K].
        images: fp32 [B, 1, S, S] in 0..1, on the network's device.
        targets: Class ids [B].
        method: `gradcam`, `occlusion`, or `auto` for what `choose_method` says.

    Returns:
        fp32 [B, S, S] on the CPU.

    Raises:
        ValueError: A shape or the method is wrong, or Grad-CAM finds no map in this network.

    Source: Selvaraju et al. 2017, Grad-CAM; Zeiler and Fergus 2014, Visualizing and understanding
    convolutional networks (occlusion).
    """
    if images.dim() != 4 or images.shape[1] != 1 or images.shape[2] != images.shape[3]:
        raise ValueError(f"images must be [B, 1, S, S], not {list(images.shape)}")
    if targets.shape != images.shape[:1]:
        raise ValueError(f"targets must be [{len(images)}], not {list(targets.shape)}")
    if method not in METHODS:
        raise ValueError(f"method {method!r}; choose one of {', '.join(METHODS)}")
    size_px = images.shape[-1]
    if method == "auto":
        method = choose_method(network, size_px)
    layer = find_spatial_layer(network, size_px) if method == "gradcam" else ""
    maps = []
    with _evaluating(network), _full_precision(images.device):
        parts = (part.split(IMAGES_AT_ONCE) for part in (images, targets.to(images.device)))
        for some, classes in zip(*parts, strict=True):
            own = some.detach().clone().float()
            if method == "gradcam":
                found = _compute_gradcam(network, network.get_submodule(layer), own, classes)
            else:
                found = _compute_occlusion(network, own, classes)
            maps.append(found.squeeze(1).detach().cpu())
    return _normalise(torch.cat(maps)) if maps else torch.zeros(0, size_px, size_px)


def choose_method(network: nn.Module, image_size: int | None = None) -> str:
    """What `auto` takes: `gradcam` where the network has a map to look at, else `occlusion`.

    Args:
        network: As in `compute_heatmaps`.
        image_size: Side of the images, px; None takes the network's own (`preprocess`).
    """
    if image_size is None:
        image_size = int(network.preprocess.image_size)  # type: ignore[union-attr, arg-type]
    try:
        find_spatial_layer(network, image_size)
    except ValueError:
        return "occlusion"
    return "gradcam"


class _Step(NamedTuple):
    """A module's output in a forward pass."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]


def find_spatial_layer(network: nn.Module, image_size: int) -> str:
    """The dotted name of the layer that Grad-CAM looks at.

    It is the last module in the order of execution, before the head, whose output is a map
    [B, C, h, w] of 2 x 2 cells or more, and through which everything goes that reaches the head: no
    shortcut leads around it.

    Nothing but pooled features may come after it. Tokens [B, N, C] and maps with their channels
    last [B, h, w, C] have the axes of a map in other places, and a Grad-CAM of them would average
    over channels and add up places. A square image has square maps, so that two unequal last axes
    tell the one from the other; where all three axes are equal nothing does.

    Args:
        network: As in `compute_heatmaps`.
        image_size: Side of the images, px.

    Raises:
        ValueError: The network has no such layer at this size.
    """
    refusal = f"no layer for Grad-CAM in {_name_kind(network)} at {image_size} px: "
    with _evaluating(network), _full_precision(_find_device(network)):
        steps = _trace(network, image_size)
        runs = Counter(step.name for step in steps)
        for name, module, shape in reversed(steps):
            if sum(length > 1 for length in shape[1:]) <= 1:  # pooled, or a grid of one cell
                continue
            if len(shape) != 4 or shape[2] != shape[3] or shape[1] == shape[2]:
                raise ValueError(f"{refusal}{name} gives {list(shape)}, which is no [B, C, h, w]")
            if isinstance(module, PASSIVE) or runs[name] > 1:
                continue
            if _is_passed_by_all(network, module, image_size):
                return name
    raise ValueError(f"{refusal}no module gives a map [B, C, h, w] that leads to the head")


def point_hits(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """The pointing game: bool [B], whether the maximum lies in the lesion; an empty map misses.

    Of equal maxima, such as a plateau of occlusion, the one nearest to their common centre counts.

    Args:
        heatmaps: [B, S, S], 0 or more.
        masks: bool [B, S, S].

    Source: Zhang et al. 2018, Top-down neural attention by excitation backprop.
    """
    points = find_points(heatmaps)
    rows = torch.arange(len(masks))
    return masks[rows, points[:, 0], points[:, 1]].bool() & (heatmaps.amax((1, 2)) > 0)


def find_points(heatmaps: Tensor) -> Tensor:
    """Row and column [B, 2] of each map's maximum, as `point_hits` takes it."""
    n_maps, _, width = heatmaps.shape
    is_peak = heatmaps == heatmaps.amax((1, 2), keepdim=True)
    points = torch.zeros(n_maps, 2, dtype=torch.long)
    for index in range(n_maps):
        peaks = is_peak[index].nonzero().double()
        nearest = (peaks - peaks.mean(0)).square().sum(1).argmin()
        points[index] = peaks[nearest].long()
    return points.clamp(max=max(0, width - 1))


def compute_energy_inside(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """The share of each map's sum that lies in the lesion [B], 0..1, high is good.

    An empty map has 0.

    Args:
        heatmaps: [B, S, S], 0 or more.
        masks: bool [B, S, S].

    Source: Wang et al. 2020, Score-CAM (energy-based pointing game).
    """
    whole = heatmaps.sum((1, 2))
    inside = (heatmaps * masks).sum((1, 2))
    return torch.where(whole > 0, inside / whole.clamp(min=1e-30), 0.0)


def randomise_weights(network: nn.Module, seed: int) -> nn.Module:
    """A copy of the network that has learnt nothing: a map that it shares says nothing of learning.

    Matrices and kernels are drawn from He's normal distribution; the vectors of norms and biases
    and the running statistics begin anew at 1 and 0.

    Source: Adebayo et al. 2018, Sanity checks for saliency maps.
    """
    untrained = copy.deepcopy(network)
    generator = build_generator(seed, "randomise")
    with torch.no_grad():
        for name, parameter in untrained.named_parameters():
            if parameter.dim() > 1:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn * math.sqrt(2 / parameter[0].numel()))
            else:
                parameter.fill_(float(name.endswith("weight")))
    for module in untrained.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
    return untrained


# ---- the two methods


def _compute_gradcam(
    network: nn.Module, layer: nn.Module, images: Tensor, targets: Tensor
) -> Tensor:
    """[B, 1, S, S], cut at zero, between the centres of the cells bilinear."""
    with torch.enable_grad(), _rectified(network, layer, images):
        grid = LayerGradCam(network, layer).attribute(images, targets, relu_attributions=True)
    return LayerAttribution.interpolate(grid, images.shape[-2:], "bilinear")


@contextlib.contextmanager
def _rectified(network: nn.Module, layer: nn.Module, images: Tensor) -> Iterator[None]:
    """Cut the layer's output at zero, where the network does so itself in its next step.

    DenseNet calls a function for it, which no hook sees: negative activations, of which the head
    knows nothing, would be multiplied with the channels' weights and speak for the wrong class.
    """
    with torch.no_grad():
        logits = network(images)
        handle = layer.register_forward_hook(lambda _module, _inputs, output: output.relu())
        try:
            if not torch.equal(network(images), logits):
                handle.remove()
            with torch.enable_grad():
                yield
        finally:
            handle.remove()


@torch.no_grad()
def _compute_occlusion(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """[B, 1, S, S]: mean fall of the class's logit over the patches that cover a pixel."""
    patch_px = max(1, round(images.shape[-1] / PATCHES_PER_SIDE))
    stride_px = max(1, patch_px // 2)
    reach_px = patch_px + patch_px // 2
    surroundings = F.avg_pool2d(images, 2 * reach_px + 1, 1, reach_px, count_include_pad=False)
    falls = Occlusion(network).attribute(
        images,
        sliding_window_shapes=(1, patch_px, patch_px),
        strides=(1, stride_px, stride_px),
        baselines=surroundings,
        target=targets,
        perturbations_per_eval=max(1, PASSES_AT_ONCE // len(images)),
    )
    scale = network(images).abs().amax(1)[:, None, None, None]
    return torch.where(falls > ROUNDING * scale, falls, 0.0)


def _normalise(maps: Tensor) -> Tensor:
    """[B, S, S] cut at zero, each divided by its maximum."""
    maps = maps.clamp(min=0)
    peaks = maps.amax((1, 2), keepdim=True)
    return torch.where(peaks > 0, maps / peaks, 0.0)


# ---- the network, looked at and left alone


def _trace(network: nn.Module, image_size: int) -> list[_Step]:
    """What every module gave before the head was entered, in order of completion."""
    steps: list[_Step] = []
    handles = []
    reached: list[bool] = []
    head: nn.Module = network.head  # type: ignore[assignment]

    def watch(name: str, module: nn.Module) -> None:
        def record(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and not reached:
                steps.append(_Step(name, module, tuple(output.shape)))

        handles.append(module.register_forward_hook(record))

    try:
        for name, module in network.named_modules():
            watch(name, module)
        handles.append(head.register_forward_pre_hook(lambda *_: reached.append(True)))
        with torch.no_grad():
            network(torch.zeros(1, 1, image_size, image_size, device=_find_device(network)))
    finally:
        for handle in handles:
            handle.remove()
    if not reached:
        raise ValueError(f"{_name_kind(network)} does not run its head")
    return steps


def _is_passed_by_all(network: nn.Module, module: nn.Module, image_size: int) -> bool:
    """Whether no gradient finds its way from the logits to the image once the module is cut."""
    image = torch.zeros(1, 1, image_size, image_size, device=_find_device(network))
    handle = module.register_forward_hook(lambda _module, _inputs, output: output.detach().clone())
    try:
        with torch.enable_grad():
            total = network(image.requires_grad_()).sum()
            if not total.requires_grad:
                return True
            return torch.autograd.grad(total, image, allow_unused=True)[0] is None
    finally:
        handle.remove()


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module has its own flag again."""
    flags = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, was_training in flags:
            module.training = was_training


@contextlib.contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """fp32 whatever the caller has switched on, and tensors that may have gradients."""
    with (
        torch.inference_mode(False),
        torch.autocast(device.type, enabled=False),
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
    ):
        yield


def _find_device(network: nn.Module) -> torch.device:
    tensors = itertools.chain(network.parameters(), network.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def _name_kind(network: nn.Module) -> str:
    return type(getattr(network, "backbone", network)).__name__
