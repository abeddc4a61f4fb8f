"""The plain way to train, for comparison: every slice in memory, one rate, fp32, nothing else.

    python -m experiments.plain_fine_tuning --data data --model mobilenet_v2 --weights WEIGHTS.pth

Decodes with Pillow, keeps the slices as uint8, mirrors and turns whole batches by quarters, and
trains torchvision's network on three channels with AdamW at a constant rate. Prints the accuracy on
the grouped val split after each epoch, and ends when it has reached the target.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import dataset
from helper import run_verb

RGB_MEAN, RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH_SIZE = 32


def load_split(data_dir: Path, split: str, size_px: int) -> tuple[Tensor, Tensor]:
    """The slices of one split: uint8 [N, S, S] and class indices [N]."""
    table = dataset.load_table(data_dir)
    classes = dataset.list_classes(table)
    rows = table[table["split"] == split]
    pixels = np.stack(
        [
            np.asarray(Image.open(data_dir / path).convert("L").resize((size_px, size_px)))
            for path in rows["path"]
        ]
    )
    return torch.from_numpy(pixels), torch.tensor([classes.index(label) for label in rows["label"]])


def normalise(pixels: Tensor) -> Tensor:
    """uint8 [B, S, S] as three normalised channels, [B, 3, S, S]."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (RGB_MEAN, RGB_STD))
    return (pixels.unsqueeze(1) / 255 - mean) / std


def shuffle(pixels: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches in a random order, each mirrored and turned as a whole."""
    for rows in torch.randperm(len(labels)).split(BATCH_SIZE):
        batch = torch.rot90(pixels[rows], int(torch.randint(4, ())), (1, 2))
        yield normalise(batch.flip(2) if torch.rand(()) < 0.5 else batch), labels[rows]


@torch.no_grad()
def measure_accuracy(network: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """Share of the slices whose likeliest class is the true one."""
    network.eval()
    logits = [network(normalise(batch)) for batch in pixels.split(BATCH_SIZE)]
    network.train()
    return float((torch.cat(logits).argmax(1) == labels).float().mean())


def train(options: argparse.Namespace) -> None:
    """Train until val reaches the target, or the epochs are over."""
    torch.manual_seed(options.seed)
    weights = torch.load(options.weights, weights_only=True) if options.weights else None
    network = torchvision.models.get_model(options.model, weights=None)
    if weights:
        network.load_state_dict(weights)
    if options.model == "resnet18":
        network.fc = nn.Linear(512, 3)
    else:
        network.classifier[1] = nn.Linear(1280, 3)
    learnt, judged = (
        load_split(options.data, split, options.image_size) for split in ("train", "val")
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.lr)
    for epoch in range(1, options.epochs + 1):
        for images, labels in shuffle(*learnt):
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
        accuracy = measure_accuracy(network, *judged)
        print(f"epoch {epoch}/{options.epochs}  val accuracy {accuracy:.4f}", flush=True)
        if accuracy >= options.target:
            return


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="experiments.plain_fine_tuning", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--model", choices=("mobilenet_v2", "resnet18"), default="mobilenet_v2")
    parser.add_argument("--weights", type=Path, help="of ImageNet; without: from scratch")
    parser.add_argument("--image-size", type=int, default=160, help="px")
    parser.add_argument("--epochs", type=int, default=10, help="most")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--target", type=float, default=0.97, help="val accuracy to end at")
    parser.add_argument("--seed", type=int, default=0)
    return run_verb(train, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
