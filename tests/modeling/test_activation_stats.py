"""Statistics of layers on the way of slices through a network."""

import pytest
import torch
from torch import nn

import model
from modeling.activation_stats import watch_layers


@pytest.mark.parametrize("name", ["net", "resnet18", "mobilenet_v2", "convnext_tiny", "vit_b_16"])
def test_every_slice_has_its_own_statistics(name: str) -> None:
    network = model.build_model(name, 3, 32)
    slices = torch.randint(0, 256, (5, 1, 32, 32), dtype=torch.uint8)
    with watch_layers(network) as watch:
        model.infer(network, [slices[:3], slices[3:]])
    whole = watch.collect()
    assert whole.shape[0] == 5
    assert torch.isfinite(whole).all()
    with watch_layers(network) as alone:
        model.infer(network, [slices[3:4]])
    torch.testing.assert_close(alone.collect()[0], whole[3], rtol=1e-3, atol=1e-4)
    assert not any(module._forward_hooks for module in network.modules())


def test_mean_and_deviation_of_channels() -> None:
    network = nn.Sequential(*(nn.Conv2d(1, 1, 1, bias=False) for _ in range(3)))
    for weight in network.parameters():
        nn.init.constant_(weight, 2.0)
    with watch_layers(network) as watch, torch.no_grad():
        network(torch.tensor([[[[1.0, 3.0]]]]))
    # after each layer the values double: 2 6, 4 12, 8 24
    assert watch.collect().tolist() == [[4, 2, 8, 4, 16, 8]]
