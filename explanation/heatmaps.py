"""Heat maps by Grad-CAM and occlusion, and metrics of heat maps.

A map shows which pixels a prediction depends on; they need not be the lesion.
`experiments.pointing_game` measures how often they are.
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

CHUNK_IMAGES = 16  # limits the memory of the graph of a large network
CHUNK_OCCLUDED = 64  # occluded images in a forward pass
PATCHES_PER_SIDE = 8
MIN_CELLS = 7  # per side: the grid of the Grad-CAM paper at 224 px
ROUNDING = 1e-5  # share of a logit that is attributed to rounding
# An adaptive pool repeats or blends the cells of the layer before it.
IGNORED = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Dropout, nn.Identity)


class SpatialLayer(NamedTuple):
    """The layer for Grad-CAM: its dotted name and the cells per side of its map."""

    name: str
    n_cells: int


def compute_heatmaps(
    network: nn.Module, images: Tensor, targets: Tensor, method: str = "auto"
) -> Tensor:
    """Compute heat maps of the evidence for a class, scaled to 0..1 per map.

    Negative values are set to 0 and each map is divided by its maximum, so that values compare
    within an image only. The arithmetic is fp32, and the state of the network is restored.

    Grad-CAM weights the channels of the layer of `find_spatial_layer` by their mean gradient. Its
    cells are spread evenly over the image, which can be off by half a cell. Occlusion is the fall
    of the logit when a patch of an eighth of the side, moved by half its size, is replaced by the
    mean of its surroundings (three patches wide). A fixed grey level would add edges.

    Args:
        network: Maps images to logits [B, K]; the property `head` is its last layer.
        images: fp32 [B, 1, S, S] in 0..1, on the device of the network.
        targets: Class ids [B].
        method: `gradcam`, `occlusion`, or `auto` for `choose_method`.

    Returns:
        fp32 [B, S, S] on the CPU.

    Raises:
        ValueError: A shape or the method is wrong, or no layer is suitable for Grad-CAM.

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
    name = find_spatial_layer(network, size_px).name if method == "gradcam" else ""
    maps = [torch.zeros(0, size_px, size_px)]
    with _eval_mode_fp32(network):
        for first in range(0, len(images), CHUNK_IMAGES):
            own = images[first : first + CHUNK_IMAGES].detach().clone().float()
            classes = targets[first : first + CHUNK_IMAGES].to(images.device)
            if method == "gradcam":
                found = _compute_gradcam(network, network.get_submodule(name), own, classes)
            else:
                found = _compute_occlusion(network, own, classes)
            maps.append(found.squeeze(1).detach().cpu())
    positive = torch.cat(maps).clamp(min=0)
    peaks = positive.amax((1, 2), keepdim=True)
    return torch.where(peaks > 0, positive / peaks, 0.0)


def choose_method(network: nn.Module, image_size: int | None = None) -> str:
    """Return `gradcam` for a map of 7 or more cells per side, else `occlusion`.

    `experiments.pointing_game` found no lesion with 3 cells per side; 4 to 6 were not measured. By
    default the image size, in px, is that of the network (`preprocess`).
    """
    if image_size is None:
        image_size = int(network.preprocess.image_size)  # type: ignore[union-attr, arg-type]
    try:
        n_cells = find_spatial_layer(network, image_size).n_cells
    except ValueError:
        return "occlusion"
    return "gradcam" if n_cells >= MIN_CELLS else "occlusion"


def find_spatial_layer(network: nn.Module, image_size: int) -> SpatialLayer:
    """Find the layer for Grad-CAM.

    It is the last module in order of execution before the head that outputs a map [B, C, h, w] of
    2 x 2 cells or more on every path to the head; no shortcut bypasses it. Only pooled features
    may follow. Tokens [B, N, C] and maps with channels last [B, h, w, C] are rejected: Grad-CAM
    would average over channels. A square image gives h = w, which identifies the axes unless
    C = h too.

    Args:
        network: As in `compute_heatmaps`.
        image_size: Side of the images, px.

    Raises:
        ValueError: The network has no such layer at this size.
    """
    kind = type(getattr(network, "backbone", network)).__name__
    refusal = f"no layer for Grad-CAM in {kind} at {image_size} px: "
    tensors = itertools.chain(network.parameters(), network.buffers())
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    with _eval_mode_fp32(network):
        image = torch.zeros(1, 1, image_size, image_size, device=device)
        steps = _trace(network, image)
        n_runs = Counter(name for name, _, _ in steps)
        for name, module, shape in reversed(steps):
            if sum(length > 1 for length in shape[1:]) <= 1:  # pooled, or one cell
                continue
            if len(shape) != 4 or shape[2] != shape[3] or shape[1] == shape[2]:
                raise ValueError(f"{refusal}{name} outputs {list(shape)}, not [B, C, h, w]")
            if isinstance(module, IGNORED) or n_runs[name] > 1:
                continue
            if _is_on_every_path(network, module, image):
                return SpatialLayer(name, shape[-1])
    raise ValueError(f"{refusal}no module outputs a map [B, C, h, w] on every path to the head")


def point_hits(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """Score the pointing game: bool [B], whether the maximum is in the lesion.

    An empty map is a miss. Of equal maxima the one nearest to their common centre counts.

    Args:
        heatmaps: [B, S, S], 0 or more.
        masks: bool [B, S, S].

    Source: Zhang et al. 2018, Top-down neural attention by excitation backprop.
    """
    hits = torch.zeros(len(heatmaps), dtype=torch.bool)
    for index, (heatmap, mask) in enumerate(zip(heatmaps, masks, strict=True)):
        peaks = (heatmap == heatmap.max()).nonzero()
        distances = (peaks - peaks.double().mean(0)).square().sum(1)
        row, column = peaks[distances.argmin()]
        hits[index] = (heatmap[row, column] > 0) & mask[row, column]
    return hits


def compute_energy_inside(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """Compute the share of the sum of each map in the lesion, [B], 0..1; 0 for an empty map.

    Args:
        heatmaps: [B, S, S], 0 or more.
        masks: bool [B, S, S].

    Source: Wang et al. 2020, Score-CAM (energy-based pointing game).
    """
    whole, inside = heatmaps.sum((1, 2)), (heatmaps * masks).sum((1, 2))
    return torch.where(whole > 0, inside / whole, 0.0)


def randomise_weights(network: nn.Module, seed: int) -> nn.Module:
    """Return a copy of the network with random weights, for sanity checks of heat maps.

    Matrices and kernels are drawn from the He normal distribution. Scales are 1, biases are 0, and
    running statistics are reset.

    Source: Adebayo et al. 2018, Sanity checks for saliency maps.
    """
    randomised = copy.deepcopy(network)
    generator = build_generator(seed, "randomise")
    with torch.no_grad():
        for name, parameter in randomised.named_parameters():
            if parameter.dim() > 1:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn * math.sqrt(2 / parameter[0].numel()))
            else:
                parameter.fill_(float(name.endswith("weight")))
    for module in randomised.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
    return randomised


# ---- methods


def _compute_gradcam(
    network: nn.Module, layer: nn.Module, images: Tensor, targets: Tensor
) -> Tensor:
    """Compute Grad-CAM maps [B, 1, S, S], bilinear between the centres of the cells.

    DenseNet applies ReLU to its last map as a function, which has no hook. The head never gets the
    negative activations, which would count for the wrong class. They are set to 0 here, provided
    that the logits do not change.
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
    """Compute the mean fall of the logit over the patches that cover a pixel, [B, 1, S, S]."""
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
        perturbations_per_eval=max(1, CHUNK_OCCLUDED // len(images)),
    )
    scale = network(images).abs().amax(1)[:, None, None, None]
    return torch.where(falls > ROUNDING * scale, falls, 0.0)


# ---- network


def _trace(network: nn.Module, image: Tensor) -> list[tuple[str, nn.Module, tuple[int, ...]]]:
    """Return name, module and output shape before the head runs, in order of completion."""
    steps: list[tuple[str, nn.Module, tuple[int, ...]]] = []
    head_runs: list[bool] = []
    head: nn.Module = network.head  # type: ignore[assignment]
    with contextlib.ExitStack() as hooks, torch.no_grad():
        for name, module in network.named_modules():

            def record(
                module: nn.Module, _inputs: object, output: object, name: str = name
            ) -> None:
                if isinstance(output, Tensor) and not head_runs:
                    steps.append((name, module, tuple(output.shape)))

            hooks.callback(module.register_forward_hook(record).remove)
        hooks.callback(head.register_forward_pre_hook(lambda *_: head_runs.append(True)).remove)
        network(image)
    if not head_runs:
        raise ValueError(f"{type(network).__name__} does not run its head")
    return steps


def _is_on_every_path(network: nn.Module, module: nn.Module, image: Tensor) -> bool:
    """Return whether detaching the module leaves no gradient from the logits to the image."""
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
def _eval_mode_fp32(network: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode and fp32 whatever the caller uses, and restore every flag."""
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
