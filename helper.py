"""Errors, seeds, devices and the environment record, independent of images and classes.

Imports numpy and the standard library only; torch is imported inside the functions that use it, so
that `--help` and prepare.py start quickly.
"""

import contextlib
import logging
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

# Threads of torch's CPU kernels wait for each other busily. With the usual spin count of GNU OpenMP
# two of them fall to a third of their speed if other programs need the cores, to half with this
# one, which costs up to 16 % if none does (docs/performance.md). Read when torch is imported, on
# Linux; an own setting is kept.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

Config = TypeVar("Config")
log = logging.getLogger("brain_cancer_mri")

PROJECT_DIR = Path(__file__).resolve().parent
MAX_WINDOWS_FOLDER = 248  # characters that Windows' older functions do not accept any more
NOTICE = "Research use only: not a medical device. The published data set has no healthy class."


class UserError(Exception):
    """An error that the user can fix; its message is one line: what, where and what to do.

    `status` is the exit status: 2 if only the command line was read, 1 if also disk or data.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def run_command(command: Callable[[Config], None], config: Config, debug: bool = False) -> int:
    """Run a command and return its exit status; print an error as one line unless `debug`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    try:
        command(config)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        with contextlib.suppress(OSError):  # stderr may be closed
            print(f"error: {describe_error(error)}", file=sys.stderr, flush=True)
        if isinstance(error, KeyboardInterrupt):
            return getattr(error, "status", 130)  # 143 after SIGTERM
        return error.status if isinstance(error, UserError) else 1
    return 0


def describe_error(error: BaseException) -> str:
    """Return one line for any error; for an OSError the file and the reason."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}{_describe_length(error)}"
    if is_out_of_memory(error):
        return f"{first_line(error)}; try a smaller --batch-size or --image-size, or --device cpu"
    return f"{type(error).__name__}: {first_line(error)} (run again with --debug to see where)"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch failed to allocate memory of a device.

    The CUDA driver, cuDNN, cuBLAS and MPS raise a RuntimeError, and not torch's OutOfMemoryError.
    """
    is_named = type(error).__name__ == "OutOfMemoryError"  # of torch, which is not imported here
    has_words = any(words in str(error) for words in ("out of memory", "ALLOC_FAILED"))
    return is_named or (isinstance(error, RuntimeError) and has_words)


def _describe_length(error: OSError) -> str:
    """Return the length of a path that Windows may not find because it is long, else ""."""
    if not isinstance(error, FileNotFoundError) or not isinstance(error.filename, str):
        return ""
    length = len(str(Path(error.filename).absolute()))
    if length < MAX_WINDOWS_FOLDER:
        return ""
    return f" (a path of {length} characters; Windows finds 259 unless long paths are enabled)"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def derive_seed(seed: int, *purpose: int | str) -> int:
    """Return a 63-bit seed that depends on `seed` and every part of `purpose` only."""
    words = [int.from_bytes(str(part).encode(), "little") for part in purpose]
    state = np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def build_generator(seed: int, *purpose: int | str) -> "torch.Generator":
    """Return a torch generator on the CPU for one purpose, e.g. `(seed, "augment", step)`."""
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, *purpose))


def seed_everything(seed: int, *purpose: int | str) -> None:
    """Seed torch's global generators, which initial weights and dropout use."""
    import torch

    torch.manual_seed(derive_seed(seed, *purpose))


def seed_device(device: "torch.device", seed: int, *purpose: int | str) -> None:
    """Seed the global generator of one device only; a tenth of the time of `seed_everything`."""
    import torch

    number = derive_seed(seed, *purpose)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(number)
    elif device.type == "mps":
        torch.mps.manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)


def resolve_device(name: str) -> "torch.device":
    """Return the device called `name`; `auto` is CUDA if available, else the CPU.

    A CUDA device becomes the current one: streams, events and memory figures without a device are
    those of the current device.

    Raises:
        UserError: The name is not a device, or this machine does not have it.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda":
            if device.index is not None:
                torch.cuda.set_device(device)
            device = torch.device("cuda", torch.cuda.current_device())
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"--device {name}: not usable here ({first_line(error)}); try --device cpu"
        ) from error
    return device


def synchronise(device: "torch.device") -> None:
    """Wait until the device has finished its queue; CPU operations are synchronous."""
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def time_run(run: Callable[[], object], device: "torch.device") -> float:
    """Return the seconds from the call until its work on the device is finished."""
    synchronise(device)
    started_s = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - started_s


def set_threads(threads: int) -> int:
    """Use `threads` CPU threads (0: torch's default) and return how many are in use."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def describe_environment(device: "torch.device", argv: list[str]) -> dict[str, Any]:
    """Return the environment for metrics.json and checkpoints: versions, device, commit."""
    import torch
    import torchvision

    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # checkpoints cannot hold a TorchVersion
        "torchvision": str(torchvision.__version__),
        "device": device_name,
        "threads": torch.get_num_threads(),
        "commit": read_commit(),
        "command": shlex.join(["python", *argv]),
    }


def read_commit() -> str | None:
    """Return the commit, with `-dirty` if files differ from it; None outside git."""
    command = ["git", "-C", str(PROJECT_DIR), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        described = subprocess.run(
            command, capture_output=True, encoding="utf-8", timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None
