"""How much memory decoded slices may take when nobody says: half of what is free."""

from pathlib import Path

import torch

SHARE = 0.5  # the other half is for the network, its activations, and other programs
CONTROL_GROUP = Path("/sys/fs/cgroup")
MEMORY_INFO = Path("/proc/meminfo")
UNKNOWN_MIB = 4096.0  # where the system does not tell


def measure_budget_mib(device: torch.device, n_processes: int = 1) -> float:
    """MiB that one process may hold slices in.

    Args:
        device: That the slices lie on; a CUDA device has a memory of its own.
        n_processes: Of this run on this machine, which share the host's memory.
    """
    host_mib = SHARE * measure_free_mib() / n_processes
    if device.type != "cuda":
        return host_mib
    # on their way to the device they pass through the host
    return min(host_mib, SHARE * torch.cuda.mem_get_info(device)[0] / 2**20)


def measure_free_mib() -> float:
    """MiB of the host that a program can still have: of the machine, or within a container."""
    free_mib = _read_available_mib()
    limit, used = (_read_bytes(CONTROL_GROUP / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        free_mib = min(free_mib, (limit - used) / 2**20)
    return max(free_mib, 0.0)


def _read_available_mib() -> float:
    try:
        lines = MEMORY_INFO.read_text("ascii").splitlines()
    except OSError:
        return UNKNOWN_MIB
    kibibytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return kibibytes[0] / 1024 if kibibytes else UNKNOWN_MIB


def _read_bytes(path: Path) -> int | None:
    """A number of a control group; None where there is no group, or no limit."""
    try:
        text = path.read_text("ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
