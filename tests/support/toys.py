"""Networks whose heat maps are known by hand, and slices for them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import build_model


class Toy(nn.Module):
    """A body that gives what is pooled, and a head without bias: weights [K, C]."""

    def __init__(self, body: nn.Module, weights: list[list[float]]) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(len(weights[0]), len(weights), bias=False)
        self.head.weight.data = torch.tensor(weights)

    def forward(self, images: Tensor) -> Tensor:
        features = self.pool(self.body(images))
        return self.head(features)

    def pool(self, features: Tensor) -> Tensor:
        return features.mean((2, 3))


class CutToy(Toy):
    def pool(self, features: Tensor) -> Tensor:
        return F.relu(features, inplace=True).mean((2, 3))


class ShortcutToy(Toy):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pool(self.body(images)) + images.mean((2, 3)))


class LastToy(Toy):
    """Channels last, as inside a Swin transformer."""

    def pool(self, features: Tensor) -> Tensor:
        return features.mean((1, 2))


class CornerToy(Toy):
    """Sees a quarter of the upper right side alone."""

    def pool(self, features: Tensor) -> Tensor:
        quarter = features.shape[-1] // 4
        return features[:, :, :quarter, -quarter:].mean((2, 3))


def make_pointwise(slopes: list[float], offsets: list[float]) -> nn.Conv2d:
    conv = nn.Conv2d(1, len(slopes), 1)
    conv.weight.data = torch.tensor(slopes).view(-1, 1, 1, 1)
    conv.bias.data = torch.tensor(offsets)  # type: ignore[union-attr]
    return conv


def make_two_spots() -> Tensor:
    """Black, with a white pixel in the upper right corner and a grey one below the middle."""
    images = torch.zeros(1, 1, 4, 4)
    images[0, 0, 0, 3], images[0, 0, 2, 1] = 1.0, 0.75
    return images


def make_images(count: int, size_px: int) -> Tensor:
    return torch.rand(count, 1, size_px, size_px, generator=torch.Generator().manual_seed(0))


def build(name: str, size_px: int) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, 3, size_px)


class Channelslast(nn.Module):
    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(1, n_channels)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.permute(0, 2, 3, 1))


class Headless(Toy):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))
