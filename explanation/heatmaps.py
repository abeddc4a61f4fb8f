"""Where a network looks: heat maps by Grad-CAM and by occlusion, and tests of such maps.

A map says what the network rests on, which need not be the lesion; `experiments.pointing_game`
measures how often it is, where the lesion is known.
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

IMAGES_AT_ONCE = 16  # bounds the memory of a large network's graph
PASSES_AT_ONCE = 64  # occluded images a forward pass
PATCHES_PER_SIDE = 8
# The grid that Grad-CAM was published with: 7 x 7 cells at 224 px. Coarser ones are not taken.
FEWEST_CELLS = 7
ROUNDING = 1e-5  # a smaller share of a logit is arithmetic, not evidence
# They make no map of their own: an adaptive pool repeats or blends cells of the one before it.
PASSIVE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Dropout, nn.Identity)


def compute_heatmaps(
    network: nn.Module, images: Tensor, targets: Tensor, method: str = "auto"
) -> Tensor:
    """What of each image speaks for a class, 0..1 in each map; all zeros where nothing does.

    Each map is cut at zero and divided by its own maximum: it compares places of one image, never
    images. The network is left as it was found, and the arithmetic is fp32.

    Grad-CAM weighs the channels of the layer of `find_spatial_layer` by their mean gradient. Its
    cells are taken to lie side by side over the image; those of padded convolutions with stride may
    see a place up to half a cell further up and left.
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
    size_px = images.shape[-1]
    if method == "auto":
        method = choose_method(network, size_px)
    if method not in {"gradcam", "occlusion"}:
        raise ValueError(f"method {method!r}; choose gradcam, occlusion or auto")
    name = find_spatial_layer(network, size_px) if method == "gradcam" else ""
    maps = [torch.zeros(0, size_px, size_px)]
    with _undisturbed(network):
        for first in range(0, len(images), IMAGES_AT_ONCE):
            own = images[first : first + IMAGES_AT_ONCE].detach().clone().float()
            classes = targets[first : first + IMAGES_AT_ONCE].to(images.device)
            if method == "gradcam":
                found = _compute_gradcam(network, network.get_submodule(name), own, classes)
            else:
                found = _compute_occlusion(network, own, classes)
            maps.append(found.squeeze(1).detach().cpu())
    positive = torch.cat(maps).clamp(min=0)
    peaks = positive.amax((1, 2), keepdim=True)
    return torch.where(peaks > 0, positive / peaks, 0.0)


def choose_method(network: nn.Module, image_size: int | None = None) -> str:
    """What `auto` takes: `gradcam` where it has 7 cells a side or more, else `occlusion`.

    With 3 cells a side `experiments.pointing_game` found its maximum in no lesion (with such cells
    it could be in 0.17 of them at best); grids of 4 to 6 cells were not measured.

    Args:
        network: As in `compute_heatmaps`.
        image_size: Side of the images, px; None takes the network's own (`preprocess`).
    """
    if image_size is None:
        image_size = int(network.preprocess.image_size)  # type: ignore[union-attr, arg-type]
    try:
        n_cells = count_cells(network, image_size)
    except ValueError:
        return "occlusion"
    return "gradcam" if n_cells >= FEWEST_CELLS else "occlusion"


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
    return _find_step(network, image_size).name


def count_cells(network: nn.Module, image_size: int) -> int:
    """Cells a side of the map that Grad-CAM looks at; arguments and errors as above."""
    return _find_step(network, image_size).shape[-1]


def point_hits(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """The pointing game: bool [B], whether the maximum lies in the lesion; an empty map misses.

    Of equal maxima, such as a plateau of occlusion, the one nearest to their common centre counts.

    Args:
        heatmaps: [B, S, S], 0 or more.
        masks: bool [B, S, S].

    Source: Zhang et al. 2018, Top-down neural attention by excitation backprop.
    """
    hits = torch.zeros(len(heatmaps), dtype=torch.bool)
    for index, (heatmap, mask) in enumerate(zip(heatmaps, masks, strict=True)):
        peaks = (heatmap == heatmap.max()).nonzero()
        away = (peaks - peaks.double().mean(0)).square().sum(1)
        row, column = peaks[away.argmin()]
        hits[index] = (heatmap[row, column] > 0) & mask[row, column]
    return hits


def compute_energy_inside(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """The share of each map's sum that lies in the lesion [B], 0..1, high is good; 0 if empty.

    Args:
        heatmaps: [B, S, S], 0 or more.
        masks: bool [B, S, S].

    Source: Wang et al. 2020, Score-CAM (energy-based pointing game).
    """
    whole, inside = heatmaps.sum((1, 2)), (heatmaps * masks).sum((1, 2))
    return torch.where(whole > 0, inside / whole, 0.0)


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
    """[B, 1, S, S], bilinear between the centres of the cells.

    DenseNet cuts its last map at zero by a function that no hook sees, and its head knows nothing
    of the negative activations: times the channels' weights they would speak for the wrong class.
    So they are cut here where that leaves the logits as they are.
    """
    with torch.no_grad():
        logits = network(images)
        handle = layer.register_forward_hook(lambda _module, _inputs, output: output.relu())
        try:
            if not torch.equal(network(images), logits):
                handle.remove()
            cam = LayerGradCam(network, layer)
            grid = cam.attribute(images, targets, relu_attributions=True)
        finally:
            handle.remove()
    return LayerAttribution.interpolate(grid, images.shape[-2:], "bilinear")


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


# ---- the network, looked at and left alone


class _Step(NamedTuple):
    """A module's output in a forward pass."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]


def _find_step(network: nn.Module, image_size: int) -> _Step:
    kind = type(getattr(network, "backbone", network)).__name__
    refusal = f"no layer for Grad-CAM in {kind} at {image_size} px: "
    tensors = itertools.chain(network.parameters(), network.buffers())
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    with _undisturbed(network):
        image = torch.zeros(1, 1, image_size, image_size, device=device)
        steps = _trace(network, image)
        runs = Counter(step.name for step in steps)
        for step in reversed(steps):
            shape = step.shape
            if sum(length > 1 for length in shape[1:]) <= 1:  # pooled, or a grid of one cell
                continue
            if len(shape) != 4 or shape[2] != shape[3] or shape[1] == shape[2]:
                raise ValueError(f"{refusal}{step.name} gives {list(shape)}, not [B, C, h, w]")
            if isinstance(step.module, PASSIVE) or runs[step.name] > 1:
                continue
            if _is_passed_by_all(network, step.module, image):
                return step
    raise ValueError(f"{refusal}no module gives a map [B, C, h, w] on every way to the head")


def _trace(network: nn.Module, image: Tensor) -> list[_Step]:
    """What every module gave before the head was entered, in order of completion."""
    steps: list[_Step] = []
    reached: list[bool] = []
    head: nn.Module = network.head  # type: ignore[assignment]
    with contextlib.ExitStack() as hooks, torch.no_grad():
        for name, module in network.named_modules():

            def record(
                module: nn.Module, _inputs: object, output: object, name: str = name
            ) -> None:
                if isinstance(output, Tensor) and not reached:
                    steps.append(_Step(name, module, tuple(output.shape)))

            hooks.callback(module.register_forward_hook(record).remove)
        hooks.callback(head.register_forward_pre_hook(lambda *_: reached.append(True)).remove)
        network(image)
    if not reached:
        raise ValueError(f"{type(network).__name__} does not run its head")
    return steps


def _is_passed_by_all(network: nn.Module, module: nn.Module, image: Tensor) -> bool:
    """Whether no gradient finds its way from the logits to the image once the module is cut."""
    leaf = image.clone().requires_grad_()
    handle = module.register_forward_hook(lambda _module, _inputs, output: output.detach().clone())
    try:
        with torch.enable_grad():
            total = network(leaf).sum()
            if not total.requires_grad:
                return True
            return torch.autograd.grad(total, leaf, allow_unused=True)[0] is None
    finally:
        handle.remove()


@contextlib.contextmanager
def _undisturbed(network: nn.Module) -> Iterator[None]:
    """Evaluation mode and fp32 whatever the caller has switched on; then every flag as it was."""
    flags = [(module, module.training) for module in network.modules()]
    device_types = {parameter.device.type for parameter in network.parameters()} or {"cpu"}
    network.eval()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
            for device_type in device_types:
                stack.enter_context(torch.autocast(device_type, enabled=False))
            yield
    finally:
        for module, was_training in flags:
            module.training = was_training
