"""Compare heat maps with outlines of lesions: pointing game, energy and random weights."""

import copy
import math

import torch
from torch import Tensor, nn

from helper import build_generator


def point_hits(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """Score the pointing game: bool [B], whether the maximum is in the lesion.

    An empty map is a miss. Of equal maxima the one nearest to their common centre counts. The
    tolerance around the lesion is 0 px.

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
