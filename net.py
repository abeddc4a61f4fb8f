"""Custom CNN: a small residual network for one-channel slices, trained from scratch."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (24, 48, 96, 144)
BLOCKS_PER_STAGE = 2
STEM_STRIDE = 4


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut; the residual starts at zero.

    Source: He et al. 2016, Deep residual learning for image recognition; zero initialisation from
    Goyal et al. 2017, Accurate, large minibatch SGD.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        nn.init.zeros_(self.norm2.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, in_channels, H, W] to [B, out_channels, H / stride, W / stride]."""
        residual = F.relu(self.norm1(self.conv1(features)))
        residual = self.norm2(self.conv2(residual))
        return F.relu(self.shortcut(features) + residual)


class SliceNet(nn.Module):
    """Residual network of 1.1 million weights and 0.2 billion multiply-adds at 224 px.

    The stem reduces the side to a quarter, because slices are smooth and mostly background. The
    head uses mean and maximum of every channel: a lesion may fill one cell of the last grid, and
    the mean alone would dilute it.

    Args:
        n_classes: Number of classes K.
        dropout: Dropout probability of the pooled features.
    """

    def __init__(self, n_classes: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, WIDTHS[0], 7, STEM_STRIDE, padding=3, bias=False),
            nn.BatchNorm2d(WIDTHS[0]),
            nn.ReLU(inplace=True),
        )
        blocks: list[nn.Module] = []
        in_channels = WIDTHS[0]
        for stage, out_channels in enumerate(WIDTHS):
            for position in range(BLOCKS_PER_STAGE):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(ResidualBlock(in_channels, out_channels, stride))
                in_channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * in_channels, n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, slices: Tensor) -> Tensor:
        """Compute logits [B, K] of normalised slices [B, 1, S, S]."""
        features = self.blocks(self.stem(slices))  # [B, 144, S / 32, S / 32]
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)  # [B, 288]
        return self.head(self.dropout(pooled))
