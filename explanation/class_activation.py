"""Class activation maps: Grad-CAM and LayerCAM."""

import torch
from captum.attr import LayerAttribution, LayerGradCam
from torch import Tensor, nn


def compute_gradcam(
    network: nn.Module, layer: nn.Module, images: Tensor, targets: Tensor
) -> Tensor:
    """Compute Grad-CAM maps [B, S, S], bilinear between the centres of the cells.

    The channels of the layer are weighted by their mean gradient. DenseNet applies ReLU to its last
    map as a function, which has no hook. The head never gets the negative activations, which would
    count for the wrong class. They are set to 0 here, provided that the logits do not change.

    Source: Selvaraju et al. 2017, Grad-CAM.
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
    return LayerAttribution.interpolate(grid, images.shape[-2:], "bilinear").squeeze(1)


def compute_layercam(
    network: nn.Module, layer: nn.Module, images: Tensor, targets: Tensor
) -> Tensor:
    """Compute LayerCAM maps [B, S, S], bilinear between the centres of the cells.

    Each activation is weighted by its own positive gradient, so that layers of fine grids, whose
    mean gradients mix the evidence of all places, can be used.

    Source: Jiang et al. 2021, LayerCAM: exploring hierarchical class activation maps.
    """
    outputs: list[Tensor] = []
    images = images.clone().requires_grad_()  # a frozen network has a graph, too

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        outputs.append(output)
        return output.clone()  # the next module may change it in place

    handle = layer.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = network(images)
            [activations] = outputs
            score = logits.gather(1, targets[:, None]).sum()
            [gradients] = torch.autograd.grad(score, activations)
    finally:
        handle.remove()
    grid = (gradients.relu() * activations.detach()).sum(1, keepdim=True).relu()
    return LayerAttribution.interpolate(grid, images.shape[-2:], "bilinear").squeeze(1)
