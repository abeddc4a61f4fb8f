"""Memory that Windows and macOS report as available; Linux has /proc/meminfo for it."""

import ctypes
import re
import subprocess
import sys


class MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of Windows; sizes in bytes."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load_percent", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64),
        ("total_with_page_file", ctypes.c_uint64),
        ("available_with_page_file", ctypes.c_uint64),
        ("total_virtual", ctypes.c_uint64),
        ("available_virtual", ctypes.c_uint64),
        ("available_extended", ctypes.c_uint64),
    )


def ask_system_mib() -> float | None:
    """Return the available memory in MiB; None if the system does not report it."""
    if sys.platform == "darwin":
        return _ask_macos_mib()
    windll = getattr(ctypes, "windll", None)
    return None if windll is None else _ask_windows_mib(windll.kernel32)


def _ask_windows_mib(kernel32: ctypes.CDLL) -> float | None:
    status = MemoryStatus(length=ctypes.sizeof(MemoryStatus))
    if not kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return status.available / 2**20


def _ask_macos_mib() -> float | None:
    """Add up the pages that `vm_stat` calls free, inactive or speculative."""
    try:
        shown = subprocess.run(
            ["vm_stat"], capture_output=True, encoding="utf-8", timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    page_size = re.search(r"page size of (\d+) bytes", shown.stdout)
    pages = re.findall(
        r"^Pages (?:free|inactive|speculative):\s+(\d+)\.", shown.stdout, re.MULTILINE
    )
    if page_size is None or len(pages) != 3:
        return None
    return int(page_size[1]) * sum(map(int, pages)) / 2**20
