"""The limit: the network's own arithmetic on one batch that never changes."""

import torch
from torch.nn import functional as F

from execution import build_forward
from model import to_unit_range
from optim import build_optimizer
from speed.rounds import Figures, Measure, time_run
from speed.task import Task

# So small that the batch is not learnt by heart: gradients that vanish are denormal, and slow.
LR = 1e-5


def build_limit(task: Task) -> Measure:
    """Images/s of forward, backward and optimiser step at the program's best settings.

    No loading, no augmentation, no clipping, no averaging, no look at the loss: a whole epoch can
    come near it and not pass it.
    """
    network = task.build_network().to(memory_format=torch.channels_last).train()
    head = list(network.head.parameters())
    in_head = set(map(id, head))
    body = [part for part in network.parameters() if id(part) not in in_head]
    optimizer = build_optimizer(body, head, LR, body_lr_share=1.0, weight_decay=0.0)
    forward = build_forward(network, task.config.compile, task.device, task.n_steps)
    batch = task.take_slices(n_steps=1)
    images, labels = to_unit_range(batch.pixels), batch.labels

    def step() -> None:
        with torch.autocast(task.device.type, torch.bfloat16, enabled=task.precision == "bf16"):
            logits = forward(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    def run() -> None:
        for _ in range(task.n_steps):
            step()

    def measure() -> Figures:
        return {"limit_images_per_s": len(task.rows) / time_run(run, task.device)}

    return measure
