"""Heat maps that explain predictions: which pixels a prediction depends on.

They need not be the lesion. `experiments.pointing_game` measures how often they are, and
`explanation.evidence` states the result.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from explanation.class_activation import compute_gradcam, compute_layercam
from explanation.integrated_gradients import compute_integrated_gradients, integrate_gradients
from explanation.occlusion import compute_occlusion
from explanation.spatial_layer import eval_mode_fp32, find_spatial_layer

Compute = Callable[[nn.Module, Tensor, Tensor], Tensor]

CHUNK_IMAGES = 16  # limits the memory of the graph of a large network
FINE_CELLS = 7  # per side: the grid of the Grad-CAM paper at 224 px
DEFAULT = "integrated_gradients"
METHODS = {  # name in the program and in texts
    "integrated_gradients": "integrated gradients",
    "unsmoothed": "integrated gradients, not smoothed",
    "occlusion": "occlusion",
    "gradcam": "Grad-CAM",
    "gradcam_fine": f"Grad-CAM, {FINE_CELLS} or more cells",
    "layercam": f"LayerCAM, {FINE_CELLS} or more cells",
}
MIN_CELLS = {"gradcam": 2, "gradcam_fine": FINE_CELLS, "layercam": FINE_CELLS}  # per side
WITHOUT_LAYER: dict[str, Compute] = {
    "integrated_gradients": compute_integrated_gradients,
    "unsmoothed": integrate_gradients,
    "occlusion": compute_occlusion,
}


def compute_heatmaps(
    network: nn.Module, images: Tensor, targets: Tensor, method: str = DEFAULT
) -> Tensor:
    """Compute heat maps of the evidence for a class, scaled to 0..1 per map.

    Negative values are set to 0 and each map is divided by its maximum, so that values compare
    within an image only. The arithmetic is fp32, and the state of the network is restored.

    Args:
        network: Maps images to logits [B, K]; the property `head` is its last layer.
        images: fp32 [B, 1, S, S] in 0..1, on the device of the network.
        targets: Class ids [B].
        method: One of METHODS. Class activation maps use the layer of `find_spatial_layer`;
            its cells are spread evenly over the image, which can be off by half a cell.

    Returns:
        fp32 [B, S, S] on the CPU.

    Raises:
        ValueError: A shape or the method is wrong, or no layer is suitable for the method.
    """
    if images.dim() != 4 or images.shape[1] != 1 or images.shape[2] != images.shape[3]:
        raise ValueError(f"images must be [B, 1, S, S], not {list(images.shape)}")
    if targets.shape != images.shape[:1]:
        raise ValueError(f"targets must be [{len(images)}], not {list(targets.shape)}")
    size_px = images.shape[-1]
    compute = _build_method(network, size_px, method)
    maps = [torch.zeros(0, size_px, size_px)]
    with eval_mode_fp32(network):
        for first in range(0, len(images), CHUNK_IMAGES):
            own = images[first : first + CHUNK_IMAGES].detach().clone().float()
            classes = targets[first : first + CHUNK_IMAGES].to(images.device)
            maps.append(compute(network, own, classes).detach().cpu())
    positive = torch.cat(maps).clamp(min=0)
    peaks = positive.amax((1, 2), keepdim=True)
    return torch.where(peaks > 0, positive / peaks, 0.0)


def _build_method(network: nn.Module, size_px: int, method: str) -> Compute:
    """Return the function of a method, bound to its layer.

    Raises:
        ValueError: The method is unknown, or the network has no suitable layer.
    """
    if method in WITHOUT_LAYER:
        return WITHOUT_LAYER[method]
    if method not in MIN_CELLS:
        raise ValueError(f"method {method!r}; choose {', '.join(METHODS)}")
    layer = network.get_submodule(find_spatial_layer(network, size_px, MIN_CELLS[method]).name)
    compute = compute_layercam if method == "layercam" else compute_gradcam
    return lambda network, images, targets: compute(network, layer, images, targets)
