"""Recalibrate batch norm: compute its statistics anew on given slices."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from modeling.forward import disable_tf32, to_unit_range


def has_batch_norm(network: nn.Module) -> bool:
    """Return whether a network has statistics to recalibrate."""
    return any(isinstance(part, _BatchNorm) for part in network.modules())


@torch.no_grad()
def recalibrate_batch_norm(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the batch norm statistics by averages over the batches, computed in fp32.

    Args:
        network: In evaluation mode, before and afterwards.
        batches: uint8 slices [B, 1, S, S] on the device of the network.

    Source: Izmailov et al. 2018, Averaging weights leads to wider optima and better
    generalization; Touvron et al. 2019, Fixing the train-test resolution discrepancy.
    """
    norms = [part for part in network.modules() if isinstance(part, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        with disable_tf32():
            for number, slices in enumerate(batches, 1):
                for norm in norms:  # equal weights, as by None, which waits for the device
                    norm.momentum = 1 / number
                network(to_unit_range(slices))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
