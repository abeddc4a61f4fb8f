"""The custom CNN: size, shapes, initialisation and ability to learn."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from net import ResidualBlock, SliceNet


def test_size_and_shapes() -> None:
    n_weights = sum(parameter.numel() for parameter in SliceNet(3).parameters())
    assert 800_000 <= n_weights <= 1_300_000
    for size_px, n_classes in ((64, 2), (96, 5), (224, 3)):
        net, slices = SliceNet(n_classes).eval(), torch.zeros(2, 1, size_px, size_px)
        assert net(slices).shape == (2, n_classes)
        assert net.blocks(net.stem(slices)).shape[2:] == (size_px // 32, size_px // 32)


@pytest.mark.parametrize("in_channels", [4, 8])
@pytest.mark.parametrize("stride", [1, 2])
def test_block_starts_as_its_shortcut(in_channels: int, stride: int) -> None:
    block = ResidualBlock(in_channels, 8, stride).eval()
    features = torch.randn(2, in_channels, 6, 6, generator=torch.Generator().manual_seed(0))
    result = block(features)
    assert result.shape == (2, 8, 6 // stride, 6 // stride)
    assert torch.equal(result, F.relu(block.shortcut(features)))
    assert isinstance(block.shortcut, nn.Identity) == (in_channels == 8 and stride == 1)


def test_dropout_is_active_in_training_only() -> None:
    net = SliceNet(3, dropout=0.9)
    assert [module.p for module in net.modules() if isinstance(module, nn.Dropout)] == [0.9]
    slices = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(net(slices), net(slices))
    net.eval()
    assert torch.equal(net(slices), net(slices))


def test_one_batch_is_memorised() -> None:
    torch.manual_seed(0)
    net = SliceNet(3, dropout=0.0)
    slices, labels = torch.rand(12, 1, 64, 64), torch.arange(12) % 3
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(40):
        loss = F.cross_entropy(net(slices), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(net(slices).argmax(1), labels)
