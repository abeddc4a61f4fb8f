"""Integrated gradients: what each pixel adds to the log-probability of a class."""

import math

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from model import Classifier, standardise

STEPS = 16  # more change neither hits nor energy
SMOOTHING = 1 / 64  # standard deviation of the Gaussian, relative to the side


def compute_integrated_gradients(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Compute the positive part of integrated gradients, smoothed: [B, S, S].

    Single pixels of the plain map alternate in sign and are too small to see. Smoothing after the
    negative values are set to 0 keeps more maxima in lesions than smoothing before.

    Args:
        network: Maps images to logits [B, K].
        images: fp32 [B, 1, S, S].
        targets: Class ids [B].
    """
    positive = integrate_gradients(network, images, targets).clamp(min=0)
    sigma_px = images.shape[-1] * SMOOTHING
    side_px = 2 * math.ceil(3 * sigma_px) + 1
    return gaussian_blur(positive, [side_px, side_px], [sigma_px, sigma_px])


def integrate_gradients(
    network: nn.Module, images: Tensor, targets: Tensor, n_steps: int = STEPS
) -> Tensor:
    """Compute integrated gradients from a black image, [B, S, S]; negative against the class.

    The path is a straight line, and the integral is taken by the midpoint rule. The sum of a map is
    the log-probability of the class for the image minus that for a black image, up to the error of
    the rule (completeness). Black is the air around the head, which therefore never counts. A
    log-probability takes the evidence for the other classes into account, a logit not.

    The path starts after the normalisation of each slice, which would undo it: a normalised slice
    does not become darker if its grey values are multiplied.

    Args:
        network: Maps images to logits [B, K].
        images: fp32 [B, 1, S, S].
        targets: Class ids [B].
        n_steps: Points of the path, a forward and a backward pass each.

    Source: Sundararajan et al. 2017, Axiomatic attribution for deep networks.
    """
    with torch.no_grad():
        black, whole, rest = _split_network(network, images)
    total = torch.zeros_like(whole)
    with torch.enable_grad():
        for step in range(n_steps):
            point = (black + (whole - black) * ((step + 0.5) / n_steps)).requires_grad_()
            score = rest(point).log_softmax(1).gather(1, targets[:, None]).sum()
            total += torch.autograd.grad(score, point)[0]
    return ((whole - black) * total / n_steps).squeeze(1)


def _split_network(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, nn.Module]:
    """Return the ends of the path, both [B, 1, S, S], and the network that takes its points."""
    black = torch.zeros_like(images)
    if not isinstance(network, Classifier):
        return black, images, network
    black, whole = (standardise(each, network.preprocess) for each in (black, images))
    # zscore takes the grey level of an image of one level for its mean: the air is darker
    return torch.minimum(black, whole.amin((2, 3), keepdim=True)), whole, network.backbone
