"""Channel statistics of layers during forward passes."""

import pytest
import torch
from torch import nn

import model
from modeling.activation_stats import record_activation_stats
from modeling.forward import predict_logits
from tests.support.timm_families import TIMM


@pytest.mark.parametrize("name", ["net", "mobilenet_v2", "swin_t", *TIMM])
def test_statistics_do_not_depend_on_other_slices(name: str) -> None:
    network = model.build_model(name, 3, 32)
    slices = torch.randint(0, 256, (5, 1, 32, 32), dtype=torch.uint8)
    with record_activation_stats(network) as stats:
        predict_logits(network, [slices[:3], slices[3:]])
    all_stats = stats.collect()
    assert len(all_stats) == 5
    assert torch.isfinite(all_stats).all()
    with record_activation_stats(network) as single:
        predict_logits(network, [slices[3:4]])
    torch.testing.assert_close(single.collect()[0], all_stats[3], rtol=1e-3, atol=1e-4)
    assert not any(module._forward_hooks for module in network.modules())


def test_mean_and_deviation_by_hand() -> None:
    network = nn.Sequential(*(nn.Conv2d(1, 1, 1, bias=False) for _ in range(3)))
    for weight in network.parameters():
        nn.init.constant_(weight, 2.0)
    with record_activation_stats(network) as stats, torch.no_grad():
        network(torch.tensor([[[[1.0, 3.0]]]]))
    # each layer doubles the values: 2 6, 4 12, 8 24
    assert stats.collect().tolist() == [[4, 2, 8, 4, 16, 8]]
