"""How much memory decoded slices may take when nobody says: half of what is free."""

from pathlib import Path

import torch

SHARE = 0.5  # the other half is for the network, its activations, and other programs
CONTROL_GROUP = Path("/sys/fs/cgroup")
MEMORY_INFO = Path("/proc/meminfo")
# Of control groups, second and first version: limit, use, and the part of it that is file cache.
CONTROL_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)
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
    """MiB of the host that a program can still have: of the machine, or within a container.

    Limits of groups above the container's own are not seen.
    """
    free_mib = _read_available_mib()
    for limit_name, used_name, cache_key in CONTROL_FILES:
        limit, used = (_read_bytes(CONTROL_GROUP / name) for name in (limit_name, used_name))
        if limit is not None and used is not None:
            # files read lately count as used, and are given up when memory is asked for
            used -= _read_cache_bytes(
                (CONTROL_GROUP / limit_name).with_name("memory.stat"), cache_key
            )
            free_mib = min(free_mib, (limit - used) / 2**20)
    return max(free_mib, 0.0)


def _read_cache_bytes(path: Path, key: str) -> int:
    try:
        rows = dict(line.split() for line in path.read_text("ascii").splitlines())
    except (OSError, ValueError):
        return 0
    return int(rows.get(key, 0))


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
