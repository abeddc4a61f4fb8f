"""Small networks with known behaviour, images for them, and predictions of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from evaluation.calibration import apply_calibration
from evaluation.ensembles import MemberSlices, Predictions
from evaluation.fitted import Fitted
from loading.image_source import MemorySlices
from model import Classifier, Preprocess, build_model


class Toy(nn.Module):
    """A backbone, a pooling function and a head without bias, weights [K, C]."""

    def __init__(
        self,
        backbone: nn.Module,
        weights: list[list[float]],
        pool: Callable[[Tensor], Tensor] = lambda features: features.mean((2, 3)),
    ) -> None:
        super().__init__()
        self.backbone, self.pool = backbone, pool
        self.head = nn.Linear(len(weights[0]), len(weights), bias=False)
        self.head.weight.data = torch.tensor(weights)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pool(self.backbone(images)))


def make_pointwise(slopes: list[float], offsets: list[float]) -> nn.Conv2d:
    conv = nn.Conv2d(1, len(slopes), 1)
    conv.weight.data = torch.tensor(slopes).view(-1, 1, 1, 1)
    conv.bias.data = torch.tensor(offsets)  # type: ignore[union-attr]
    return conv


def make_images(count: int, size_px: int) -> Tensor:
    return torch.rand(count, 1, size_px, size_px, generator=torch.Generator().manual_seed(0))


def build(name: str, size_px: int) -> Classifier:
    torch.manual_seed(0)
    return build_model(name, 3, size_px)


def describe_state(network: nn.Module) -> dict[str, Any]:
    """Hooks, flags and hashes of the tensors of a network."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    tensors = dict(network.state_dict())
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            tensors[f"gradient of {name}"] = parameter.grad
    return {
        "hooks": [len(getattr(module, name)) for module in network.modules() for name in hooks],
        "training": [module.training for module in network.modules()],
        "needs_grad": [parameter.requires_grad for parameter in network.parameters()],
        "values": {name: hash(tensor.numpy().tobytes()) for name, tensor in tensors.items()},
    }


class BrightnessReader(nn.Module):
    """Predict class 1 if the mean of a part of the slice is above 0.3."""

    def __init__(self, rows: slice, columns: slice) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.layer = nn.Identity()
        self.head = nn.Linear(1, 2)
        self.head.weight.data = torch.tensor([[-50.0], [50.0]])
        self.head.bias.data = torch.tensor([15.0, -15.0])

    def forward(self, images: Tensor) -> Tensor:
        part = self.layer(images)[:, :, self.rows, self.columns]
        return self.head(part.mean((2, 3)))


def make_predictions(reader: BrightnessReader, n_slices: int = 24) -> Predictions:
    """Predict discs with a thin bright rim, and with a bright centre for class 1.

    Four slices in a row share a duplicate set and a group.
    """
    down, right = np.mgrid[:64, :64] - 31.5
    distance = np.hypot(down, right)
    labels = np.arange(n_slices) % 2
    pixels = np.zeros((n_slices, 64, 64), np.uint8)
    pixels[:, distance < 24] = 60
    pixels[:, (distance < 24) & (distance > 21)] = 200
    pixels[labels == 1] = np.where(distance < 8, 200, pixels[labels == 1])
    pixels += np.random.default_rng(0).integers(0, 4, pixels.shape, dtype=np.uint8)
    slices = MemorySlices(torch.from_numpy(pixels).unsqueeze(1), torch.from_numpy(labels))
    network = Classifier(reader, "head", Preprocess(64, 0.0, 1.0)).eval()
    with torch.no_grad():
        logits = network(slices.pixels / 255).numpy()
    rows = pd.DataFrame({"label": labels.astype(str), "group": np.arange(n_slices) // 4})
    rows["path"] = [f"Images/{label}/{row}.png" for row, label in enumerate(labels)]
    return Predictions(
        path=Path("x"),
        checkpoints=[{"classes": ["a", "b"]}],
        rows=rows.assign(duplicate_set=rows["group"]),
        labels=labels,
        logits=logits[None],
        calibrated=apply_calibration(None, logits),
        fitted=Fitted(None, 1.0, "nothing"),
        calibrations=[],
        folds=np.zeros(n_slices, int),
        distances=np.full((1, n_slices), np.nan),
        held_out=None,
        baseline_hits={},
        related=np.zeros(n_slices, bool),
        warnings=[],
        member_slices=[MemberSlices(network, slices)],
    )
