"""Pretrain a backbone on slices without their labels, for `main.py --weights FILE`.

    python -m experiments.self_supervised DATA [DATA ...] --model mobilenet_v2 \\
      --weights WEIGHTS.pth --leave-out-folds 1 2 --output FILE

Each DATA is a prepared folder. The network learns to give two augmented views of a slice the same
embedding. Every slice of a patient who is in the test split of the first folder, or in the test
slices of one of the given folds of `experiments.recipe_study` on it, is left out of all folders:
the sets may share patients. The other slices are used whatever their split, and no label is read.
The file holds the backbone that `experiments.recipe_study` and main.py then start from.

Source: Chen and He 2021, Exploring simple Siamese representation learning (SimSiam).
"""

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import dataset
import helper
from args import AugmentOptions
from common.atomic_files import atomic_path
from experiments import cli, recipe_study
from helper import UserError, build_generator, log
from model import Classifier
from modeling.forward import to_unit_range
from modeling.weights import build_initial_model
from training.augmentation import Augmentation
from training.optimizer import build_optimizer, compute_lr_factor, set_learning_rate

VIEWS = AugmentOptions(
    rotation=20.0, shift=0.1, zoom=0.4, gamma=0.5, contrast=0.5, erase=0.5, noise=0.03
)
PROJECTION, BOTTLENECK = 512, 128  # units
LR, WEIGHT_DECAY, WARMUP_EPOCHS = 1e-3, 0.05, 1


class SimSiam(nn.Module):
    """A backbone without head, a projector and a predictor.

    Args:
        network: Its head is replaced by an identity.
    """

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        assert isinstance(network.head, nn.Linear)
        width = network.head.in_features
        network.backbone.set_submodule(network.head_name, nn.Identity())
        self.network = network
        self.projector = nn.Sequential(
            nn.Linear(width, PROJECTION, bias=False),
            nn.BatchNorm1d(PROJECTION),
            nn.ReLU(inplace=True),
            nn.Linear(PROJECTION, PROJECTION, bias=False),
            nn.BatchNorm1d(PROJECTION, affine=False),
        )
        self.predictor = nn.Sequential(
            nn.Linear(PROJECTION, BOTTLENECK, bias=False),
            nn.BatchNorm1d(BOTTLENECK),
            nn.ReLU(inplace=True),
            nn.Linear(BOTTLENECK, PROJECTION),
        )

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the loss of two views of each slice.

        Args:
            views: [2 B, 1, S, S] in 0..1; slice i has the views i and B + i.

        Returns:
            The loss, -1 (best) to 1, and the spread of the projections: 1 if they point in all
            directions, 0 if they have collapsed to one.
        """
        projections = self.projector(self.network(views))
        predictions = self.predictor(projections)
        targets = torch.cat(projections.detach().chunk(2)[::-1])
        loss = -F.cosine_similarity(predictions, targets).mean()
        directions = F.normalize(projections.detach())
        spread = directions.std(dim=0).mean() * math.sqrt(directions.shape[1])
        return loss, spread


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = cli.build_parser("self_supervised", __doc__)
    parser.add_argument("data", type=Path, nargs="+", help="prepared folders")
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--weights", type=Path, help="initial weights; without them random")
    parser.add_argument("--output", type=Path, required=True, help="file of weights to write")
    parser.add_argument(
        "--leave-out-folds",
        type=int,
        nargs="*",
        default=[],
        choices=range(1, recipe_study.FOLDS + 1),
        help="folds of the recipe study whose test patients are left out",
    )
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return cli.run(measure, parser.parse_args(argv))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Pretrain, write the weights and return the course of training."""
    helper.set_threads(options.threads)
    helper.seed_everything(options.seed, "weights")
    pixels = load_pixels(options)
    log.info("%d slices, labels unused", len(pixels))
    network = build_initial_model(
        options.model, 2, options.image_size, pretrained=False, weights=options.weights
    )
    head = network.head
    started_s = time.perf_counter()
    epochs = pretrain(SimSiam(network), pixels, options)
    network.backbone.set_submodule(network.head_name, head)  # untrained; loading leaves it out
    with atomic_path(options.output) as path:
        torch.save(network.backbone.state_dict(), path)
    return {
        **{"data": [folder.name for folder in options.data], "model": options.model},
        **{"n_slices": len(pixels), "left_out_folds": options.leave_out_folds},
        **{"time_s": round(time.perf_counter() - started_s, 1), "epochs": epochs},
    }


def load_pixels(options: argparse.Namespace) -> Tensor:
    """Load the slices of all folders but those of patients left out: uint8 [N, 1, S, S].

    Raises:
        UserError: The patient of a slice is unknown.
    """
    first = options.data[0]
    table = dataset.load_table(first)
    left_out = set(table["patient"][table["split"] == recipe_study.TEST])
    folds = recipe_study.divide(first)
    for number in options.leave_out_folds:
        fold = folds[number - 1]
        left_out |= set(fold["patient"][fold["split"] == recipe_study.TEST])
    parts = []
    for folder in options.data:
        table = dataset.load_table(folder)
        if (table["patient"] == "").any():
            raise UserError(f"{folder}: a slice has no patient; prepare it with --patients FILE")
        table = table[~table["patient"].isin(left_out)]
        slices = dataset.load_slices(
            *(table, ["all"], folder, dataset.list_classes(table), options.image_size),
            torch.device("cpu"),
            ranges=dataset.read_ranges(folder),
        )
        parts.append(slices[0].pixels)
    return torch.cat(parts)


def pretrain(simsiam: SimSiam, pixels: Tensor, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train in place; return loss and spread of the projections after each epoch."""
    simsiam.to(memory_format=torch.channels_last).train()
    augmentation = Augmentation(VIEWS)
    optimizer = build_optimizer(simsiam, simsiam.predictor, LR, WEIGHT_DECAY)
    n_steps = len(pixels) // options.batch_size  # of an epoch; the rest is left for another
    if n_steps == 0:
        raise UserError(f"{len(pixels)} slices are fewer than --batch-size {options.batch_size}")
    rows = []
    for epoch in range(options.epochs):
        generator = build_generator(options.seed, "self-supervised", epoch)
        order = torch.randperm(len(pixels), generator=generator)
        batches = order[: n_steps * options.batch_size].split(options.batch_size)
        totals = torch.zeros(2)
        for step, batch in enumerate(
            tqdm(batches, desc=f"epoch {epoch + 1}/{options.epochs}", leave=False, disable=None),
            epoch * n_steps,
        ):
            factor = compute_lr_factor(step, options.epochs * n_steps, WARMUP_EPOCHS * n_steps)
            set_learning_rate(optimizer, LR * factor)
            slices = to_unit_range(pixels[batch]).repeat(2, 1, 1, 1)
            loss, spread = simsiam(
                augmentation.augment(slices, augmentation.draw(len(slices), generator))
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            totals += torch.stack([loss.detach(), spread])
        mean_loss, mean_spread = (totals / n_steps).tolist()
        rows.append({"epoch": epoch + 1, "loss": mean_loss, "spread": mean_spread})
        log.info("epoch %d: loss %.4f, spread %.3f", epoch + 1, mean_loss, mean_spread)
    return rows


if __name__ == "__main__":
    sys.exit(main())
