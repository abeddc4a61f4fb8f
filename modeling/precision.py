"""Training precision (fp32 or bf16), torch.compile, and settings of algorithms and allocator."""

import ctypes
import os
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from helper import UserError, first_line, log

Forward = Callable[[Tensor], Tensor]

# Parameters of mallopt in malloc.h of the GNU C library.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_THRESHOLD_BYTES = 2**30
# They train faster in fp32 on CPUs with AMX; ConvNeXt and RegNet do not (docs/performance.md).
DEPTHWISE_FAMILIES = ("efficientnet", "mnasnet", "mobilenet", "shufflenet")
MIN_STEPS_TO_COMPILE = 2000  # on CUDA; an estimate, not measured yet


def resolve_precision(choice: str, device: torch.device, model: str) -> str:
    """Return the training precision, `fp32` or `bf16`.

    `auto` is bf16 on devices with bf16 instructions: CUDA since Ampere, CPUs with AMX or
    AVX512-BF16. It is fp32 on CPUs that emulate bf16 and for networks of depthwise convolutions on
    CPUs, because bf16 is slower there (docs/performance.md).
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


def use_deterministic_algorithms() -> None:
    """Make CUDA results bit-identical; operations without a deterministic kernel raise."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def should_compile(choice: str, device: torch.device, n_steps: int, n_processes: int = 1) -> bool:
    """Return whether to compile the network for a run of `n_steps` steps.

    `auto` compiles long runs of one process on CUDA. On CPUs compilation takes about a minute and
    backbones train no faster (docs/performance.md).
    """
    is_long = device.type == "cuda" and n_processes == 1 and n_steps >= MIN_STEPS_TO_COMPILE
    return choice == "on" or (choice == "auto" and is_long)


def build_forward(network: nn.Module, compiles: bool, *, is_required: bool) -> Forward:
    """Return the network itself or its compiled form, which shares the weights.

    Compilation takes place at the first call with each input shape. If the first one fails, the
    network runs uncompiled, or, if compilation is required, the call raises UserError.
    """
    if not compiles:
        return network
    forward: Forward | None = None

    def compile_and_run(images: Tensor) -> Tensor:
        nonlocal forward
        if forward is not None:
            return forward(images)
        log.info("compiling: the first steps take a minute or more")
        try:
            # the batches of an epoch have at most two sizes; each is compiled separately
            compiled: Forward = torch.compile(network, dynamic=False)
            logits = compiled(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if is_required:
                raise UserError(
                    f"--compile on: torch.compile fails here ({first_line(error)}); leave it out"
                ) from error
            log.info("not compiled, torch.compile fails here (%s)", first_line(error))
            forward = network
            return network(images)
        forward = compiled
        return logits

    return compile_and_run


def keep_freed_memory() -> bool:
    """Let the GNU C library reuse freed buffers in the next step; return False if it cannot.

    By default it returns each buffer to the system and requests it again page by page in every
    step. With this setting the process holds its peak memory until it ends.
    """
    on_linux = sys.platform.startswith("linux")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if on_linux else None
    if mallopt is None:  # another C library
        return False
    settings = ((_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES), (_M_TRIM_THRESHOLD, 2**31 - 1))
    return all(mallopt(*setting) for setting in settings)
