"""How a network is run on a device: its arithmetic, compiled or not, memory kept between steps."""

import ctypes
import os
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from helper import UserError, first_line, log

Forward = Callable[[Tensor], Tensor]

# Of mallopt in malloc.h of the GNU C library.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**30
# Measured to train faster in fp32 on a CPU with AMX; ConvNeXt and RegNet are not among them
# (docs/performance.md).
DEPTHWISE_FAMILIES = ("efficientnet", "mnasnet", "mobilenet", "shufflenet")
# Steps of a run on CUDA from which on compiling is thought to pay; not measured yet.
LEAST_STEPS_TO_COMPILE = 2000


def resolve_precision(choice: str, device: torch.device, model: str) -> str:
    """`auto` is bf16 where the device computes in it: CUDA since Ampere, CPUs with AMX or AVX-512.

    A CPU that only emulates bf16 would be slower than in fp32; so were, on the CPU that was
    measured, networks whose time goes into depthwise convolutions (docs/performance.md).
    """
    if choice != "auto":
        return choice
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu" and not model.startswith(DEPTHWISE_FAMILIES):
        tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        has_bf16 = any(getattr(torch.cpu, test, lambda: False)() for test in tests)
        return "bf16" if has_bf16 else "fp32"
    return "fp32"


def be_deterministic() -> None:
    """Let CUDA give the same bits in every run; what has no such way to be computed is refused."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def decides_to_compile(
    choice: str, device: torch.device, n_steps: int, n_processes: int = 1
) -> bool:
    """Whether a network is compiled for training.

    `auto` compiles long runs of one process on CUDA. On CPUs compiling takes about a minute, and
    backbones then train no faster (docs/performance.md).

    Args:
        choice: `auto`, `on` or `off`.
        device: To train on.
        n_steps: Of the whole run.
        n_processes: Of the run.
    """
    pays = device.type == "cuda" and n_processes == 1 and n_steps >= LEAST_STEPS_TO_COMPILE
    return choice == "on" or (choice == "auto" and pays)


def build_forward(network: nn.Module, compiles: bool, *, is_wanted: bool) -> Forward:
    """The network itself for training, or compiled.

    Args:
        network: On the device.
        compiles: Of `decides_to_compile`.
        is_wanted: Whether a user asked for it.
    """
    return CompiledNetwork(network, is_wanted) if compiles else network


class CompiledNetwork:
    """A network that torch.compile makes faster, each shape of its input at the first call with it.

    Args:
        network: Its weights are used and trained as they are.
        is_wanted: Whether a user asked for it; else the network goes on uncompiled where the
            compiler fails with the first batch.
    """

    def __init__(self, network: nn.Module, is_wanted: bool) -> None:
        self._network, self._is_wanted = network, is_wanted
        self._forward: Forward | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Logits, as of the network.

        Raises:
            UserError: The compiler fails, and it was asked for.
        """
        return self._start(images) if self._forward is None else self._forward(images)

    def _start(self, images: Tensor) -> Tensor:
        log.info("compiling: the first steps take a minute or more")
        try:
            # an epoch's batches have two sizes at most, each compiled for itself
            compiled: Forward = torch.compile(self._network, dynamic=False)
            logits = compiled(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if self._is_wanted:
                raise UserError(
                    f"--compile on: torch.compile fails here ({first_line(error)}); leave it out"
                ) from error
            log.info("not compiled, torch.compile fails here (%s)", first_line(error))
            self._forward = self._network
            return self._network(images)
        self._forward = compiled
        return logits


def keep_freed_memory() -> bool:
    """Let the C library keep the buffers that a step frees, for the next step; False if it cannot.

    It would give each back to the system and get it again page by page, at every step. The price:
    memory that was once needed is held until the end.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)) and bool(
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    )
