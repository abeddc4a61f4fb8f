"""Forward passes in evaluation mode: logits and embeddings in fp32."""

import contextlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from helper import synchronise
from loading.image_source import copy_async
from model import Classifier


@torch.no_grad()
def predict_logits(network: Classifier, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Compute logits and embeddings in fp32; the network's mode is restored afterwards.

    The device is waited for once, after the last batch.

    Args:
        network: Batches are moved to its device.
        batches: uint8 slices [B, 1, S, S].

    Returns:
        Logits [N, K] and embeddings [N, D] (inputs of the last layer), on the CPU.
    """
    device, was_training = next(network.parameters()).device, network.training
    logits: list[Tensor] = []
    embeddings: list[Tensor] = []

    def record(_head: nn.Module, inputs: tuple[Tensor]) -> None:
        features = inputs[0].flatten(2).mean(2) if inputs[0].dim() == 4 else inputs[0]
        embeddings.append(features.float().to("cpu", non_blocking=True))

    hook = network.head.register_forward_pre_hook(record)
    network.eval()
    try:
        with disable_tf32():
            for slices in batches:
                found = network(to_unit_range(copy_async(slices, device))).float()
                logits.append(found.to("cpu", non_blocking=True))
        synchronise(device)
    finally:
        network.train(was_training)
        hook.remove()
    return torch.cat(logits), torch.cat(embeddings)


def disable_tf32() -> contextlib.AbstractContextManager[None]:
    """Return a context in which cuDNN convolutions do not round fp32 inputs to TF32."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def to_unit_range(slices: Tensor) -> Tensor:
    """Scale uint8 slices to fp32 in 0..1."""
    return slices.to(torch.float32) / 255
