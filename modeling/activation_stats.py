"""What some layers of a network make of slices: the mean and the deviation of each channel.

What enters the last layer tells classes apart and little else: pictures of anything at all fall
among them. Earlier layers still know how a picture looks.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

N_LAYERS = 3
PLACES_A_SIDE = 14  # looking at all of 112 x 112 would cost a tenth of a resnet18's whole pass


class Watch:
    """Collects the statistics of the layers of a network in every forward pass."""

    def __init__(self, names: list[str]) -> None:
        self._parts: dict[str, list[Tensor]] = {name: [] for name in names}

    def add(self, name: str, features: Tensor, channel: int) -> None:
        """Take in what a layer gave; `channel` is the dimension of its channels."""
        places = [dim for dim in range(1, features.dim()) if dim != channel % features.dim()]
        own = features.detach()
        if features.dim() == 4:  # of a large map every second, third, … row and column
            step = max(1, features.shape[places[0]] // PLACES_A_SIDE)
            kept = (slice(None, None, step if dim in places else 1) for dim in range(4))
            own = own[tuple(kept)].contiguous()
        deviation, mean = torch.std_mean(own.float(), dim=places, correction=0)
        self._parts[name].append(torch.cat([mean, deviation], dim=1).cpu())

    def collect(self) -> Tensor:
        """The statistics of all slices so far, fp32 [N, D] on the CPU."""
        return torch.cat([torch.cat(parts) for parts in self._parts.values()], dim=1)


@contextlib.contextmanager
def watch_layers(network: nn.Module) -> Iterator[Watch]:
    """Watch the first, the middle and the last convolution while slices go through.

    Of networks with fewer convolutions, such as transformers, layer norms are watched. The hooks
    are gone afterwards.
    """
    layers, channel = _choose_layers(network)
    watch = Watch(list(layers))
    with contextlib.ExitStack() as hooks:
        for name, layer in layers.items():

            def take(_layer: nn.Module, _inputs: object, output: Tensor, name: str = name) -> None:
                watch.add(name, output, channel)

            hooks.callback(layer.register_forward_hook(take).remove)
        yield watch


def _choose_layers(network: nn.Module) -> tuple[dict[str, nn.Module], int]:
    """Layers by name, and the dimension of their channels."""
    for kind, channel in ((nn.Conv2d, 1), (nn.LayerNorm, -1)):
        found = [(name, layer) for name, layer in network.named_modules() if type(layer) is kind]
        if len(found) >= N_LAYERS:
            chosen = np.linspace(0, len(found) - 1, N_LAYERS).round().astype(int)
            return dict(found[place] for place in chosen), channel
    raise ValueError(f"{type(network).__name__} has fewer than {N_LAYERS} layers to watch")
