"""The trained network as training steps call it: replicated over processes, compiled if wanted."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from helper import log
from training import distributed


class Replica:
    """Forward pass of a network whose gradients are averaged over all processes.

    torch.compile compiles the forward pass at its first call and the backward pass even later.

    Args:
        network: The network; its parameters that require gradients when `build` is called take
            part.
        compiles: Whether to compile it.

    Attributes:
        compiles: False also after a failure of the compiler.
        is_proven: Whether a whole step has run since `build`.
    """

    def __init__(self, network: nn.Module, compiles: bool) -> None:
        self.network, self.compiles = network, compiles
        self.build()

    def build(self) -> None:
        """Build the replica anew; call it when other parameters require gradients."""
        self.is_proven = False
        self._replicated = distributed.replicate(self.network)
        self._forward: nn.Module = self._replicated
        if self.compiles:
            log.info("compiling: the first steps take a minute or more")
            self._forward = torch.compile(self._replicated, dynamic=False)  # type: ignore[assignment]

    def __call__(self, images: Tensor) -> Tensor:
        """Compute the logits of images."""
        return self._forward(images)

    def average_gradients(self, is_last: bool) -> AbstractContextManager[None]:
        """Return a context for a micro-batch; gradients are averaged after the last one."""
        return distributed.average_gradients(self._replicated, is_last)

    def stop_compiling(self, reason: str) -> None:
        """Continue without the compiler, which has failed."""
        log.info("not compiled: torch.compile fails here (%s)", reason)
        self.compiles = False
        self.build()
