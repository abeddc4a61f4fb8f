"""Facts about this machine and process: cores, CPU model, peak memory."""

import os
import platform
import sys
from pathlib import Path


def count_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_cpu_model() -> str:
    """Return the model name of the CPU."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def read_peak_memory_mib() -> float | None:
    """Return the peak memory of this process; None if the system does not report it.

    On Linux `getrusage` includes the memory of the parent process, so /proc is read instead.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text("utf-8", "replace").splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 2**10
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
