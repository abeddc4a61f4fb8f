"""Training precision (fp32, bf16 or fp16), and settings of algorithms and allocator."""

import ctypes
import os
import re
import sys
from contextlib import AbstractContextManager

import torch
from torch import nn

from helper import UserError
from model import find_nondeterministic_layers

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Parameters of mallopt in malloc.h of the GNU C library.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_THRESHOLD_BYTES = 2**30
# They train faster in fp32 on CPUs with AMX; ConvNeXt and RegNet do not (docs/performance.md).
DEPTHWISE_FAMILIES = re.compile(r"(timm/)?(tf_)?(efficientnet|mnasnet|mobilenet|shufflenet)")
TENSOR_CORES = (7, 0)  # compute capability of Volta, the first GPUs with fast fp16


def resolve_precision(choice: str, device: torch.device, model: str) -> str:
    """Return the training precision, `fp32`, `bf16` or `fp16`.

    `auto` is bf16 on devices with bf16 instructions: CUDA since Ampere, CPUs with AMX or
    AVX512-BF16. It is fp16 on CUDA devices with tensor cores but without bf16 (Volta and Turing),
    and fp32 on older ones, on CPUs that emulate bf16 and for networks of depthwise convolutions on
    CPUs, because bf16 is slower there (docs/performance.md).
    """
    if choice != "auto":
        return choice
    if device.type == "cuda":
        if has_fast_bf16(device):
            return "bf16"
        return "fp16" if torch.cuda.get_device_capability(device) >= TENSOR_CORES else "fp32"
    if device.type == "cpu" and not DEPTHWISE_FAMILIES.match(model) and has_fast_bf16(device):
        return "bf16"
    return "fp32"


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether a CUDA device or CPU has bf16 instructions and does not emulate them."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, test, lambda: False)() for test in tests)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Return a context in which a forward pass runs in a precision; fp32 changes nothing."""
    dtype = DTYPES.get(precision)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def choose_algorithms(device: torch.device, deterministic: bool, network: nn.Module) -> None:
    """Let cuDNN choose the fastest algorithms, or make CUDA results bit-identical.

    Predictions do not use the fastest algorithms, which may change from run to run (`forward`).

    Raises:
        UserError: A layer of the network has no deterministic backward pass on CUDA.
    """
    layers = find_nondeterministic_layers(network) if device.type == "cuda" else []
    if deterministic and layers:
        raise UserError(
            f"--deterministic: {', '.join(layers)} has no deterministic backward pass on CUDA; "
            "leave the option out, or choose another --model or --device cpu"
        )
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic)


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
