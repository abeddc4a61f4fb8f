"""The limit: the network's own arithmetic on one batch that never changes."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarking.rounds import Figures, Measure, time_run
from benchmarking.task import Task
from model import Classifier, to_unit_range
from modeling.precision import build_forward, decides_to_compile
from training.optimizer import build_optimizer

# So small that the batch is not learnt by heart: gradients that vanish are denormal, and slow.
LR = 1e-5


def build_limit(task: Task) -> Measure:
    """Images/s of forward, backward and optimiser step at the program's best settings.

    No loading, no augmentation, no clipping, no averaging, no look at the loss: a whole epoch can
    come near it and not pass it.
    """
    batch, config = task.take_slices(n_steps=1), task.config
    images = to_unit_range(batch.pixels)
    step = build_step(task.build_network(), images, batch.labels, task.precision, config.compile)

    def run() -> None:
        for _ in range(task.n_steps):
            step()

    def measure() -> Figures:
        return {"limit_images_per_s": len(task.rows) / time_run(run, task.device)}

    return measure


def build_step(
    network: Classifier, images: Tensor, labels: Tensor, precision: str, compile: str = "off"
) -> Callable[[], None]:
    """One step of training on a batch that never changes.

    Args:
        network: On the device of the batch; it is trained.
        images: [B, 1, S, S] in 0..1.
        labels: Class indices [B].
        precision: fp32 or bf16.
        compile: `on` or `off`.
    """
    network = network.to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(network, network.head, LR, body_lr_share=1.0, weight_decay=0.0)
    compiles = decides_to_compile(compile, images.device, n_steps=1)
    forward = build_forward(network, compiles, is_wanted=compiles)

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = forward(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
