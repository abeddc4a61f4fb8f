"""The usual pipeline: ImageFolder, a DataLoader with workers, transforms an image, fp32."""

from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarking.rounds import Figures, Measure, time_run
from benchmarking.task import Task, count_cores
from model import CUSTOM_NET
from net import SliceNet

LR = 1e-3
RGB_MEAN, RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY_MEAN, GREY_STD = (0.5,), (0.5,)


def build_usual(task: Task) -> Measure:
    """Images/s of an epoch as tutorials train: every image decoded and changed anew by workers.

    The workers live on between epochs; an epoch is timed as a whole, its first batch's wait
    included, as the program's is.
    """
    paths = task.rows["path"].head(task.n_short_steps * task.config.batch_size).tolist()
    images = open_folder(task, Path(paths[0]).parents[1])
    loader = build_loader(task, images, paths)
    network = build_usual_network(task, len(images.classes)).to(task.device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)
    on_cuda = task.device.type == "cuda"

    def run() -> float:
        total = 0.0
        for images, labels in loader:
            images = images.to(task.device, non_blocking=on_cuda)
            labels = labels.to(task.device, non_blocking=on_cuda)
            optimizer.zero_grad()
            logits = network(images)
            if not isinstance(logits, Tensor):
                logits = logits[0]  # Inception and GoogLeNet have auxiliary outputs behind it
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        return total

    def measure() -> Figures:
        return {"usual_images_per_s": len(paths) / time_run(run, task.device)}

    return measure


def open_folder(task: Task, root: Path) -> ImageFolder:
    """The class folders below `root`, with the transforms of an image."""
    size, is_net = task.config.image_size, task.config.model == CUSTOM_NET
    change = transforms.Compose(
        [
            transforms.Resize((size, size)),
            *([transforms.Grayscale(1)] if is_net else []),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(10),
            transforms.ColorJitter(brightness=0.2, contrast=0.2),
            transforms.ToTensor(),
            transforms.Normalize(*((GREY_MEAN, GREY_STD) if is_net else (RGB_MEAN, RGB_STD))),
        ]
    )
    return ImageFolder(str(root), change, allow_empty=True)


def build_loader(task: Task, images: ImageFolder, paths: list[str]) -> DataLoader:
    """Shuffled batches of the files at `paths`, a worker on every core."""
    place = {Path(path).as_posix(): index for index, (path, _) in enumerate(images.samples)}
    return DataLoader(
        Subset(images, [place[path] for path in paths]),
        task.config.batch_size,
        shuffle=True,
        num_workers=count_cores(),
        persistent_workers=True,
        pin_memory=task.device.type == "cuda",
    )


def build_usual_network(task: Task, n_classes: int) -> nn.Module:
    """Torchvision's network of that name for RGB; the custom one is the program's own."""
    name, size = task.config.model, task.config.image_size
    if name == CUSTOM_NET:
        return SliceNet(n_classes)
    options: dict[str, Any] = {}
    if name.startswith("vit_"):
        options["image_size"] = size
    if name.startswith("maxvit"):
        options["input_size"] = (size, size)
    return torchvision.models.get_model(name, weights=None, num_classes=n_classes, **options)
