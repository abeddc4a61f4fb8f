"""Occlusion: the fall of a logit when a patch of the slice is replaced by its surroundings."""

import torch
from captum.attr import Occlusion
from torch import Tensor, nn
from torch.nn import functional as F

CHUNK_OCCLUDED = 64  # occluded images in a forward pass
PATCHES_PER_SIDE = 8
ROUNDING = 1e-5  # share of a logit that is attributed to rounding


@torch.no_grad()
def compute_occlusion(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Compute the mean fall of the logit over the patches that cover a pixel, [B, S, S].

    A patch has an eighth of the side and moves by half its size. It is replaced by the mean of its
    surroundings (three patches wide), because a fixed grey level would add edges.

    Source: Zeiler and Fergus 2014, Visualizing and understanding convolutional networks.
    """
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
    return torch.where(falls > ROUNDING * scale, falls, 0.0).squeeze(1)
