"""Memory that other systems report, by stand-ins for them."""

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loading import memory_budget

VM_STAT = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               40000.
Pages active:                            300000.
Pages inactive:                           20000.
Pages speculative:                         4000.
Pages throttled:                              0.
Pages wired down:                        100000.
Pages purgeable:                           9999.
"Translation faults":                 999999999.
File-backed pages:                       150000.
"""


@pytest.fixture
def no_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system without /proc and /sys, and an empty folder for its programs."""
    monkeypatch.setattr(memory_budget, "MEMORY_INFO", tmp_path / "none")
    monkeypatch.setattr(memory_budget, "CONTROL_GROUP", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def measure() -> float:
    return memory_budget.measure_host_budget_mib()


@pytest.mark.usefixtures("no_linux")
@pytest.mark.parametrize(("succeeds", "expected_mib"), [(1, 3000), (0, 2048)])
def test_windows(succeeds: int, expected_mib: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(pointer: Any) -> int:
        status = pointer._obj
        assert status.length == ctypes.sizeof(status) == 64  # Windows refuses other lengths
        status.total, status.available = 16000 * 2**20, 6000 * 2**20
        return succeeds

    windll = SimpleNamespace(kernel32=SimpleNamespace(GlobalMemoryStatusEx=fill))
    monkeypatch.setattr(ctypes, "windll", windll, raising=False)
    assert measure() == expected_mib


@pytest.mark.parametrize(
    ("output", "expected_mib"), [(VM_STAT, 500), (VM_STAT.replace("free", "x"), 2048), ("", 2048)]
)
def test_macos(
    output: str, expected_mib: float, no_linux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert measure() == 2048  # without vm_stat
    program = no_linux / "vm_stat"
    program.write_text(f"#!/bin/sh\nprintf '%s' '{output}'\n", "utf-8")
    program.chmod(0o755)
    assert measure() == expected_mib
