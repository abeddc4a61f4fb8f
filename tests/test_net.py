"""The custom CNN: its size, its shapes, and that it can learn a batch by heart."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from net import ResidualBlock, SliceNet


def test_about_a_million_parameters() -> None:
    count = sum(parameter.numel() for parameter in SliceNet(3).parameters())
    assert 800_000 <= count <= 1_300_000


@pytest.mark.parametrize("size_px", [64, 96, 224])
@pytest.mark.parametrize("n_classes", [2, 5])
def test_shapes(size_px: int, n_classes: int) -> None:
    net = SliceNet(n_classes).eval()
    assert net(torch.zeros(2, 1, size_px, size_px)).shape == (2, n_classes)
    assert net.blocks(net.stem(torch.zeros(1, 1, size_px, size_px))).shape[2:] == (
        size_px // 32,
        size_px // 32,
    )


@pytest.mark.parametrize("in_channels", [4, 8])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_starts_as_its_shortcut(in_channels: int, stride: int) -> None:
    block = ResidualBlock(in_channels, 8, stride).eval()
    features = torch.randn(2, in_channels, 6, 6, generator=torch.Generator().manual_seed(0))
    result = block(features)
    assert result.shape == (2, 8, 6 // stride, 6 // stride)
    assert torch.equal(result, F.relu(block.shortcut(features)))
    assert isinstance(block.shortcut, nn.Identity) == (in_channels == 8 and stride == 1)


def test_dropout_acts_in_training_alone() -> None:
    net = SliceNet(3, dropout=0.9)
    assert [part.p for part in net.modules() if isinstance(part, nn.Dropout)] == [0.9]
    slices = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(net(slices), net(slices))
    net.eval()
    assert torch.equal(net(slices), net(slices))


def test_one_batch_is_overfitted() -> None:
    torch.manual_seed(0)
    net = SliceNet(3, dropout=0.0)
    slices, labels = torch.rand(24, 1, 64, 64), torch.arange(24) % 3
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(40):
        loss = F.cross_entropy(net(slices), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    accuracy = (net(slices).argmax(1) == labels).float().mean()
    assert accuracy >= 0.99
