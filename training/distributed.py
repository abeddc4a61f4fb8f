"""The processes of one run, as torchrun starts them; every function also serves a run of one.

Each process holds the same weights, takes its part of every batch, and adds its gradients to those
of the others. The first alone writes files and speaks. When one is killed, torchrun ends the rest:
on the CPU they say so in a line; on CUDA one that waits for its device may be killed without.
"""

import contextlib
import logging
import os
import signal
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from helper import UserError, first_line, log, resolve_device

# The first process may decode, or judge val, while the others wait; torchrun ends what hangs.
LONGEST_WAIT = timedelta(hours=6)


def join(name: str) -> torch.device:
    """The device called `name`; where torchrun has started several processes, they meet here.

    Returns:
        The device of this process: of several CUDA devices, that of its local rank.

    Raises:
        UserError: This machine has no such device.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return resolve_device(name)
    if torch.cuda.is_available() and name != "cpu":
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = resolve_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        signal.signal(signal.SIGTERM, _end)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with _speaking_plainly():
            dist.init_process_group(backend, timeout=LONGEST_WAIT)
    if not is_first():
        log.setLevel(logging.WARNING)
    return device


def leave() -> None:
    """Part from the others at the end of the work; not called when it fails, for it would wait."""
    if dist.is_initialized():
        dist.destroy_process_group()


def get_rank() -> int:
    """Which process this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def count_local() -> int:
    """Those of them on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes files and speaks."""
    return get_rank() == 0


def wait() -> None:
    """Go on when every process has come here."""
    if count() > 1:
        with _speaking_plainly():
            dist.barrier()


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
    """Let the first process do something before the others do, such as filling a cache."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


def agree(value: Any) -> Any:
    """What the first process holds, a plain value."""
    if count() == 1:
        return value
    box = [value]
    with _speaking_plainly():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def add_up(values: Tensor) -> Tensor:
    """The sum of every process's tensor, on its device; all must have one shape."""
    if count() == 1:
        return values
    with _speaking_plainly():
        dist.all_reduce(values)
    return values


def add_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all processes, in one message."""
    if count() == 1:
        return
    gradients = [each.grad for each in parameters if each.grad is not None]
    flat = add_up(torch.cat([gradient.flatten() for gradient in gradients]))
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, total in zip(gradients, flat.split(sizes), strict=True):
        gradient.copy_(total.view_as(gradient))


def gather_rows(rows: Tensor, n_rows: int) -> Tensor:
    """The rows that the processes hold, one after another: [n_rows, …], on the CPU.

    Args:
        rows: Of this process, [n, …]; process r of R holds what `tensor_split(R)[r]` of all gives.
        n_rows: Of all processes.
    """
    if count() == 1:
        return rows.cpu()
    places = torch.arange(n_rows).tensor_split(count())[get_rank()]
    whole = torch.zeros(n_rows, *rows.shape[1:], dtype=rows.dtype)
    whole[places] = rows.cpu()
    return add_up(whole)  # a sum with zeros is exact


def share_batch_norm(network: nn.Module) -> None:
    """Batch norm over the slices of all processes, on CUDA; the CPU has none.

    There each process normalises by its own part of the batch.
    """
    if count() > 1 and next(network.parameters()).is_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # in place, but for a lone batch norm


def check_parts(n_train: int, n_val: int, batch_size: int) -> None:
    """Make sure that each process has two slices of every batch, the least that batch norm takes.

    Raises:
        UserError: The batches, or val, are too small for so many processes.
    """
    if count() == 1 or not n_train:
        return  # an empty split is told where it is opened
    if n_val < count():
        raise UserError(f"{count()} processes would share {n_val} val slices; start fewer")
    smallest = n_train // -(-n_train // batch_size)
    if smallest < 2 * count():
        raise UserError(
            f"{count()} processes would share batches of {smallest} slices; each needs two: "
            f"give a --batch-size of {2 * count()} or more, or start fewer processes"
        )


@contextlib.contextmanager
def _speaking_plainly() -> Iterator[None]:
    """A lost connection in one line; torch's own message is a page."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise _describe_loss(f" ({first_line(error)})") from error


def _end(signal_number: int, frame: Any) -> NoReturn:
    """What torchrun's signal to end, sent when another process has failed, does."""
    raise _describe_loss()


def _describe_loss(cause: str = "") -> UserError:
    return UserError(
        f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} lost the others: one of them "
        f"has ended, and its own line says why{cause}; go on with --resume, or start again"
    )
