"""Free memory of a machine or container, shared by processes."""

from pathlib import Path

import pytest
import torch

from loading import memory_budget

MIB = 2**20


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of system files that report 1,000 MiB of available memory."""
    lines = "total: used:\n\nMemTotal: 9999999 kB\nMemAvailable: 1024000 kB\n"  # others are ignored
    (tmp_path / "meminfo").write_text(lines)
    monkeypatch.setattr(memory_budget, "MEMORY_INFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory_budget, "CONTROL_GROUP", tmp_path)
    return tmp_path


def expect_budget(mib: float, n_processes: int = 1) -> None:
    assert memory_budget.measure_host_budget_mib(n_processes) == pytest.approx(mib)


def write_control_group(folder: Path, names: tuple[str, str], limit: object, used: int) -> None:
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")


def test_budget_is_half_of_the_free_memory_divided_by_the_processes(system: Path) -> None:
    expect_budget(500)
    expect_budget(125, n_processes=4)
    (system / "meminfo").write_text("MemTotal: 5 kB\n")
    expect_budget(memory_budget.UNKNOWN_MIB / 2)
    (system / "meminfo").unlink()
    expect_budget(memory_budget.UNKNOWN_MIB / 2)


def test_limit_of_a_container(system: Path) -> None:
    names = ("memory.max", "memory.current")
    for limit, used, budget_mib in (
        (300 * MIB, 100 * MIB, 100),
        (300 * MIB, 400 * MIB, 0),
        ("max", 100 * MIB, 500),
        (300 * MIB, 280 * MIB, 10),
    ):
        write_control_group(system, names, limit, used)
        expect_budget(budget_mib)
    (system / "memory.stat").write_text("unknown content\n")
    expect_budget(10)
    # the file cache does not count as used
    (system / "memory.stat").write_text(f"anon 5\nfile 6\ninactive_file {180 * MIB}\n")
    expect_budget(100)


def test_control_groups_version_1(system: Path) -> None:
    folder = system / "memory"
    folder.mkdir()
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    (folder / "memory.stat").write_text(f"total_inactive_file {100 * MIB}\n")
    write_control_group(folder, names, 300 * MIB, 200 * MIB)
    expect_budget(100)
    write_control_group(folder, names, 9223372036854771712, 200 * MIB)  # no limit
    expect_budget(500)


@pytest.mark.parametrize(
    ("free_mib", "limit_mib", "reserved_mib", "budget_mib"),
    [
        (200, None, 0, 100),
        (9000, None, 1000, 4000),
        (100, None, 300, 0),
        (9000, 5000, 1000, 5000),
        (9000, 8500, 1000, 8000),
    ],
)
def test_memory_of_a_cuda_device(
    monkeypatch: pytest.MonkeyPatch,
    free_mib: int,
    limit_mib: int | None,
    reserved_mib: int,
    budget_mib: int,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free_mib * MIB, 9999 * MIB))
    device = torch.device("cuda", 1)
    assert memory_budget.measure_device_budget_mib(device, limit_mib, reserved_mib) == budget_mib
    assert memory_budget.measure_device_budget_mib(torch.device("mps")) == float("inf")
