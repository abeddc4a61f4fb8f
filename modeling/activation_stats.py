"""Means and standard deviations of the channels of three layers, the input of OOD detection.

Embeddings (of the last layer) of arbitrary images can be close to those of training slices. Earlier
layers still represent the appearance of an image.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

N_LAYERS = 3
POSITIONS_PER_SIDE = 14  # all 112 x 112 would cost a tenth of a forward pass of resnet18


class ActivationStats:
    """Statistics of the named layers, collected in every forward pass."""

    def __init__(self, names: list[str]) -> None:
        self._parts: dict[str, list[Tensor]] = {name: [] for name in names}

    def add(self, name: str, features: Tensor, channel: int) -> None:
        """Add the output of a layer, [B, ...], whose channels are in dimension `channel`."""
        dims = [dim for dim in range(1, features.dim()) if dim != channel % features.dim()]
        sampled = features.detach()
        if features.dim() == 4:  # every second, third, … row and column of a large map
            step = max(1, features.shape[dims[0]] // POSITIONS_PER_SIDE)
            steps = (slice(None, None, step if dim in dims else 1) for dim in range(4))
            sampled = sampled[tuple(steps)].contiguous()
        deviation, mean = torch.std_mean(sampled.float(), dim=dims, correction=0)
        features = torch.cat([mean, deviation], dim=1)
        self._parts[name].append(features.to("cpu", non_blocking=True))

    def collect(self) -> Tensor:
        """Return the statistics of all slices so far, fp32 [N, D] on the CPU.

        Call it when the device has finished, as after `predict_logits`.
        """
        return torch.cat([torch.cat(parts) for parts in self._parts.values()], dim=1)


@contextlib.contextmanager
def record_activation_stats(network: nn.Module) -> Iterator[ActivationStats]:
    """Record statistics of the first, middle and last convolution during forward passes.

    In networks with fewer convolutions, such as transformers, layer norms are used, else linear
    layers. The hooks are
    removed afterwards.
    """
    layers, channel = _choose_layers(network)
    stats = ActivationStats(list(layers))
    with contextlib.ExitStack() as hooks:
        for name, layer in layers.items():

            def add(_layer: nn.Module, _inputs: object, output: Tensor, name: str = name) -> None:
                stats.add(name, output, channel)

            hooks.callback(layer.register_forward_hook(add).remove)
        yield stats


def _choose_layers(network: nn.Module) -> tuple[dict[str, nn.Module], int]:
    """Return the layers by name and the dimension of their channels."""
    for kind, channel in ((nn.Conv2d, 1), (nn.LayerNorm, -1), (nn.Linear, -1)):
        found = [
            (name, layer) for name, layer in network.named_modules() if isinstance(layer, kind)
        ]
        if len(found) >= N_LAYERS:
            chosen = np.linspace(0, len(found) - 1, N_LAYERS).round().astype(int)
            return dict(found[index] for index in chosen), channel
    raise ValueError(f"{type(network).__name__} has fewer than {N_LAYERS} layers to record")
