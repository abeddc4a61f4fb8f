"""Default memory budget for decoded slices: half of the free memory."""

import math
from pathlib import Path

import torch

from loading.available_memory import ask_system_mib

BUDGET_FRACTION = 0.5  # the rest is for the network, its activations and other programs
CONTROL_GROUP = Path("/sys/fs/cgroup")
MEMORY_INFO = Path("/proc/meminfo")
# Control groups version 2 and 1: files of limit and usage, key of the file cache in memory.stat.
CONTROL_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)
UNKNOWN_MIB = 4096.0  # assumed free memory if the system does not report it


def measure_host_budget_mib(n_processes: int = 1) -> float:
    """Return the memory of the host in MiB that one process may use for slices.

    Args:
        n_processes: Processes of this run on this machine, which share the memory.
    """
    return BUDGET_FRACTION * measure_free_mib() / n_processes


def measure_device_budget_mib(
    device: torch.device, limit_mib: int | None = None, reserved_mib: float = 0.0
) -> float:
    """Return the memory of the device in MiB that slices may use.

    Args:
        device: A CUDA device has memory of its own; others share that of the host, which
            `measure_host_budget_mib` limits.
        limit_mib: Use at most this much instead of half of the free memory.
        reserved_mib: Memory that will be allocated before the first step.
    """
    if device.type != "cuda":
        return limit_mib or math.inf
    torch.cuda.empty_cache()  # memory of an earlier fold, which torch keeps
    free_mib = torch.cuda.mem_get_info(device)[0] / 2**20
    free_mib = max(0.0, free_mib - reserved_mib)
    return min(limit_mib, free_mib) if limit_mib else BUDGET_FRACTION * free_mib


def measure_free_mib() -> float:
    """Return the memory in MiB that is available on this machine or in this container.

    Limits of parent control groups are not visible.
    """
    available_kib = _read_table(MEMORY_INFO).get("MemAvailable:")
    free_mib = (ask_system_mib() or UNKNOWN_MIB) if available_kib is None else available_kib / 1024
    for limit_name, usage_name, cache_key in CONTROL_FILES:
        limit, usage = (_read_bytes(CONTROL_GROUP / name) for name in (limit_name, usage_name))
        if limit is not None and usage is not None:
            stat = _read_table((CONTROL_GROUP / limit_name).with_name("memory.stat"))
            free_mib = min(free_mib, (limit - usage + stat.get(cache_key, 0)) / 2**20)
    return max(free_mib, 0.0)


def _read_table(path: Path) -> dict[str, int]:
    """Read a system file of lines `key number [unit]`; empty if it cannot be read."""
    try:
        rows = [line.split() for line in path.read_text("ascii").splitlines()]
    except (OSError, ValueError):
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _read_bytes(path: Path) -> int | None:
    """Read a number of a control group; None if there is no group or no limit."""
    try:
        text = path.read_text("ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
