"""Data-parallel training with torchrun; in a run of one process every function is a no-op.

Each process holds the same weights, takes its part of every batch and averages its gradients with
those of the others (DistributedDataParallel). Only the main process writes files and logs. When one
process dies, torchrun ends the others: on the CPU they print one line; on CUDA they may be killed
without one.
"""

import contextlib
import inspect
import logging
import os
import re
import signal
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from helper import UserError, first_line, is_out_of_memory, log, resolve_device

# The others wait while the main process decodes slices; torchrun ends processes that hang.
TIMEOUT = timedelta(hours=6)
# Words in the messages of gloo and NCCL; other errors of a training step have the same types.
CONNECTION_ERROR = "gloo|nccl|connection|socket|timed out"


def init(name: str) -> torch.device:
    """Join the process group, if torchrun has started several processes.

    Args:
        name: Value of `--device`.

    Returns:
        The device of this process; of several CUDA devices, the one of its local rank.

    Raises:
        UserError: This machine has no such device, or PyTorch cannot connect its GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return resolve_device(name)
    if torch.cuda.is_available() and name != "cpu":
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = resolve_device(name)
    if device.type == "cuda" and not dist.is_nccl_available():
        raise UserError(
            "several GPUs need NCCL, which PyTorch has on Linux only: start one process without "
            "torchrun, or use WSL 2"
        )
    if not dist.is_initialized():
        signal.signal(signal.SIGTERM, _raise_lost_connection)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with _convert_errors():
            dist.init_process_group(backend, timeout=TIMEOUT)
    if not is_main_process():
        log.setLevel(logging.WARNING)
    return device


def destroy() -> None:
    """Leave the process group after success; after a failure this would wait for the others."""
    if dist.is_initialized():
        dist.destroy_process_group()


def get_rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def get_world_size() -> int:
    """Return the number of processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def get_local_world_size() -> int:
    """Return the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


def is_main_process() -> bool:
    """Return whether this process writes files and logs."""
    return get_rank() == 0


def barrier() -> None:
    """Wait until every process has reached this call."""
    if get_world_size() > 1:
        with _convert_errors():
            dist.barrier()


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Run the block in one process of each machine before the others, e.g. to fill a cache."""
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if not is_first:
        barrier()
    yield
    if is_first:
        barrier()


def broadcast(value: Any) -> Any:
    """Return the plain value that the main process passed."""
    if get_world_size() == 1:
        return value
    values = [value]
    with _convert_errors():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def all_reduce(values: Tensor) -> Tensor:
    """Sum a tensor in place over all processes; its shape must be the same in each."""
    if get_world_size() > 1:
        with _convert_errors():
            dist.all_reduce(values)
    return values


def replicate(network: nn.Module) -> nn.Module:
    """Return the network, wrapped to average its gradients if there are several processes.

    The weights of the main process are sent to all. Gradients are sent while the backward pass is
    still running.

    Source: Li et al. 2020, PyTorch distributed: experiences on accelerating data parallel training.
    """
    if get_world_size() == 1:
        return network
    device = next(network.parameters()).device
    # the buffers are statistics of batch norm, which no forward pass reads; named so since 2.14
    parameters = inspect.signature(DistributedDataParallel).parameters
    buffers = (
        "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
    )
    options: dict[str, Any] = {buffers: False, "gradient_as_bucket_view": True}
    with _convert_errors():
        return DistributedDataParallel(
            network, device_ids=[device] if device.type == "cuda" else None, **options
        )


@contextlib.contextmanager
def average_gradients(replica: nn.Module, is_last: bool) -> Iterator[None]:
    """Run forward and backward of a micro-batch; average the summed gradients in the last one."""
    if not isinstance(replica, DistributedDataParallel):
        yield
        return
    with (
        contextlib.nullcontext() if is_last else replica.no_sync(),
        _convert_errors(CONNECTION_ERROR),
    ):
        yield


def all_gather_rows(rows: Tensor, n_rows: int) -> Tensor:
    """Concatenate the rows of all processes: [n_rows, …], on the CPU.

    Args:
        rows: Rows of this process, [n, …]; process r of R holds part r of `tensor_split(R)`.
        n_rows: Total over all processes.
    """
    if get_world_size() == 1:
        return rows.cpu()
    indices = torch.arange(n_rows).tensor_split(get_world_size())[get_rank()]
    gathered = torch.zeros(n_rows, *rows.shape[1:], dtype=rows.dtype)
    gathered[indices] = rows.cpu()
    return all_reduce(gathered)  # a sum with zeros is exact


def convert_sync_batch_norm(network: nn.Module) -> None:
    """Synchronise batch norm over all processes on CUDA.

    torch has no synchronised batch norm for the CPU: there each process normalises by its own part
    of the batch.
    """
    if get_world_size() > 1 and next(network.parameters()).is_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # replaces submodules in place


def check_batch_size(splits: list[str], batch_size: int) -> None:
    """Check that each process gets two slices of every batch, the minimum of batch norm.

    Args:
        splits: Split of each slice.
        batch_size: Value of `--batch-size`.

    Raises:
        UserError: The batches or the val split are too small for the number of processes.
    """
    n_processes, n_train, n_val = get_world_size(), splits.count("train"), splits.count("val")
    if n_processes == 1 or not n_train or not n_val:
        return  # an empty split is reported where it is opened
    if n_val < n_processes:
        raise UserError(f"{n_processes} processes would share {n_val} val slices; start fewer")
    size = min(batch_size, n_train)
    if size < 2 * n_processes:
        raise UserError(
            f"{n_processes} processes would share batches of {size} slices; each needs two: "
            f"give a --batch-size of {2 * n_processes} or more, or start fewer processes"
        )


@contextlib.contextmanager
def _convert_errors(words: str = "") -> Iterator[None]:
    """Convert torch.distributed errors whose message has one of the words into UserErrors."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if is_out_of_memory(error) or not re.search(words, str(error), re.I):
            raise
        raise _describe_lost_connection(f" ({first_line(error)})") from error


def _raise_lost_connection(signal_number: int, frame: Any) -> NoReturn:
    """Handle SIGTERM, which torchrun sends when another process has failed."""
    raise _describe_lost_connection()


def _describe_lost_connection(cause: str = "") -> UserError:
    return UserError(
        f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} lost the connection: another "
        f"process has ended, see its own error line{cause}; continue with --resume, or start again"
    )
