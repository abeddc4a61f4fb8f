"""Find the layer of a network whose map a class activation map uses."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

# An adaptive pool repeats or blends the cells of the layer before it.
IGNORED = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Dropout, nn.Identity)


class SpatialLayer(NamedTuple):
    """The layer for a class activation map: its dotted name and the cells per side of its map."""

    name: str
    n_cells: int


def find_spatial_layer(network: nn.Module, image_size: int, min_cells: int = 2) -> SpatialLayer:
    """Find the last layer that all evidence passes as a map of enough cells.

    It is the last module in order of execution before the head that outputs a map [B, C, h, w] of
    `min_cells` per side or more on every path to the head; no shortcut bypasses it. Tokens
    [B, N, C] and maps with channels last [B, h, w, C] are rejected: their axes are not known. A
    square image gives h = w, which identifies the axes unless C = h too.

    Args:
        network: Maps images to logits [B, K]; the property `head` is its last layer.
        image_size: Side of the images, px.
        min_cells: 2 gives the layer for Grad-CAM: only pooled features follow it.

    Raises:
        ValueError: The network has no such layer at this size.
    """
    kind = type(getattr(network, "backbone", network)).__name__
    refusal = f"no layer for a class activation map in {kind} at {image_size} px: "
    tensors = itertools.chain(network.parameters(), network.buffers())
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    with eval_mode_fp32(network):
        image = torch.zeros(1, 1, image_size, image_size, device=device)
        steps = _trace(network, image)
        n_runs = Counter(name for name, _, _ in steps)
        for name, module, shape in reversed(steps):
            if sum(length > 1 for length in shape[1:]) <= 1:  # pooled, or one cell
                continue
            if len(shape) != 4 or shape[2] != shape[3] or shape[1] == shape[2]:
                raise ValueError(f"{refusal}{name} outputs {list(shape)}, not [B, C, h, w]")
            if shape[-1] < min_cells or isinstance(module, IGNORED) or n_runs[name] > 1:
                continue
            if _is_on_every_path(network, module, image):
                return SpatialLayer(name, shape[-1])
    raise ValueError(f"{refusal}no module outputs a map [B, C, h, w] on every path to the head")


@contextlib.contextmanager
def eval_mode_fp32(network: nn.Module) -> Iterator[None]:
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
