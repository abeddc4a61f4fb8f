"""Logits and embeddings, and the state of the network afterwards."""

import pytest
import torch

import model
from modeling.forward import predict_logits


@pytest.mark.parametrize(
    ("name", "width"),
    [("net", 288), ("resnet18", 512), ("squeezenet1_1", 512), ("mobilenet_v2", 1280)],
)
def test_network_is_left_unchanged(name: str, width: int) -> None:
    network = model.build_model(name, 3, 32).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    batches = torch.randint(0, 256, (5, 1, 32, 32), dtype=torch.uint8).split(2)
    logits, embeddings = predict_logits(network, batches)
    assert logits.shape == (5, 3)
    assert embeddings.shape == (5, width)
    assert logits.dtype == embeddings.dtype == torch.float32
    assert all(module.training for module in network.modules())
    assert not network.head._forward_pre_hooks
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_evaluation_mode_is_restored_and_hooks_are_removed_after_a_failure() -> None:
    network = model.build_model("net", 3, 32).eval()
    predict_logits(network, [torch.zeros(1, 1, 32, 32, dtype=torch.uint8)])
    assert not any(module.training for module in network.modules())
    with pytest.raises(RuntimeError):
        predict_logits(network.train(), [torch.zeros(1, 2, 32, 32, dtype=torch.uint8)])
    assert network.training
    assert not network.head._forward_pre_hooks
