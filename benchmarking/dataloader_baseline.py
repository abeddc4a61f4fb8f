"""DataLoader baselines: ImageFolder, worker processes, transforms per image."""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

import model
from benchmarking.rounds import Measure
from benchmarking.task import Task
from common.machine import count_cores
from helper import time_run
from modeling.precision import autocast
from net import SliceNet

LR = 1e-3
RGB_MEAN, RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY_MEAN, GREY_STD = (0.5,), (0.5,)


def build_dataloader_baseline(task: Task, *, tuned: bool) -> Measure:
    """Measure an epoch in which workers decode and transform every image (images/s).

    The workers persist between epochs. The time of an epoch includes the wait for its first batch.

    Args:
        task: Slices, network and device.
        tuned: Train in the precision of the pipeline, in channels_last and with a fused optimizer,
            as the pipeline does, instead of in fp32 and with PyTorch's defaults.
    """
    loader, n_classes = build_loader(task)
    layout = torch.channels_last if tuned else torch.contiguous_format
    precision = task.precision if tuned else "fp32"
    key = "dataloader_tuned_images_per_s" if tuned else "dataloader_baseline_images_per_s"
    network = build_baseline_network(task, n_classes).to(task.device)
    network.to(memory_format=layout).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=LR, fused=tuned)
    on_cuda = task.device.type == "cuda"

    def run() -> float:
        total = 0.0
        for images, labels in loader:
            images = images.to(task.device, non_blocking=on_cuda, memory_format=layout)
            labels = labels.to(task.device, non_blocking=on_cuda)
            optimizer.zero_grad()
            with autocast(task.device, precision):
                logits = network(images)
            loss = F.cross_entropy(logits.float(), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        return total

    n_images = len(loader) * task.config.batch_size
    return lambda: {key: n_images / time_run(run, task.device)}


def build_loader(task: Task) -> tuple[DataLoader, int]:
    """Return a loader of the slices of a short epoch with one worker per core, and K classes."""
    size, is_net = task.config.image_size, task.config.model == model.CUSTOM_NET
    transform = transforms.Compose(
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
    paths = task.rows["path"].head(task.n_short_steps * task.config.batch_size).tolist()
    images = ImageFolder(str(Path(paths[0]).parents[1]), transform, allow_empty=True)
    index_of = {Path(path).as_posix(): index for index, (path, _) in enumerate(images.samples)}
    loader: DataLoader = DataLoader(
        Subset(images, [index_of[path] for path in paths]),
        task.config.batch_size,
        shuffle=True,
        num_workers=count_cores(),
        persistent_workers=True,
        pin_memory=task.device.type == "cuda",
    )
    return loader, len(images.classes)


def build_baseline_network(task: Task, n_classes: int) -> nn.Module:
    """Build torchvision's network for RGB images, or the custom CNN."""
    if task.config.model == model.CUSTOM_NET:
        return SliceNet(n_classes)
    backbone = model.build_backbone(task.config.model, task.config.image_size)
    model.replace_head(backbone, n_classes)
    return backbone
