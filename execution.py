"""How a network is run on a device: its arithmetic, and memory that is kept between steps."""

import ctypes
import sys

import torch

# Of mallopt in malloc.h of the GNU C library.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**30


def resolve_precision(choice: str, device: torch.device) -> str:
    """`auto` is bf16 where the device computes in it: CUDA since Ampere, CPUs with AMX or AVX-512.

    A CPU that only emulates bf16 would be slower than in fp32.
    """
    if choice != "auto":
        return choice
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        has_bf16 = any(getattr(torch.cpu, test, lambda: False)() for test in tests)
        return "bf16" if has_bf16 else "fp32"
    return "fp32"


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
