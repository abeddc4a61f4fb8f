"""How much memory slices may take: of the machine, of a container, and shared by processes."""

from pathlib import Path

import pytest
import torch

from loading import memory_budget

CPU = torch.device("cpu")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 1,000 MiB available, in a folder that stands for its files."""
    (tmp_path / "meminfo").write_text("MemTotal: 9999999 kB\nMemAvailable: 1024000 kB\n")
    monkeypatch.setattr(memory_budget, "MEMORY_INFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory_budget, "CONTROL_GROUP", tmp_path)
    return tmp_path


def limit(system: Path, most: str, used_mib: int) -> None:
    (system / "memory.max").write_text(f"{most}\n")
    (system / "memory.current").write_text(f"{used_mib * 2**20}\n")


def test_half_of_what_is_free_shared_by_the_processes(system: Path) -> None:
    assert memory_budget.measure_budget_mib(CPU) == pytest.approx(500)
    assert memory_budget.measure_budget_mib(CPU, 4) == pytest.approx(125)


def test_a_container_has_less(system: Path) -> None:
    limit(system, str(300 * 2**20), 100)
    assert memory_budget.measure_budget_mib(CPU) == pytest.approx(100)
    limit(system, str(300 * 2**20), 400)
    assert memory_budget.measure_budget_mib(CPU) == 0
    limit(system, "max", 100)
    assert memory_budget.measure_budget_mib(CPU) == pytest.approx(500)


def test_files_that_were_read_do_not_count_as_used(system: Path) -> None:
    limit(system, str(300 * 2**20), 280)
    (system / "memory.stat").write_text(f"anon 5\nfile 6\ninactive_file {180 * 2**20}\n")
    assert memory_budget.measure_budget_mib(CPU) == pytest.approx(100)
    (system / "memory.stat").write_text("nothing that is known\n")
    assert memory_budget.measure_budget_mib(CPU) == pytest.approx(10)


def test_the_first_version_of_control_groups(system: Path) -> None:
    folder = system / "memory"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text(f"{300 * 2**20}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{200 * 2**20}\n")
    (folder / "memory.stat").write_text(f"total_inactive_file {100 * 2**20}\n")
    assert memory_budget.measure_budget_mib(CPU) == pytest.approx(100)
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712\n")  # no limit
    assert memory_budget.measure_budget_mib(CPU) == pytest.approx(500)


@pytest.mark.parametrize("content", [None, "MemTotal: 5 kB\n"])
def test_a_system_that_does_not_tell(system: Path, content: str | None) -> None:
    path = system / "meminfo"
    path.unlink() if content is None else path.write_text(content)
    assert memory_budget.measure_budget_mib(CPU) == memory_budget.UNKNOWN_MIB / 2


def test_a_device_with_memory_of_its_own(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (200 * 2**20, 999 * 2**20))
    assert memory_budget.measure_budget_mib(torch.device("cuda")) == pytest.approx(100)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (9000 * 2**20, 9999 * 2**20))
    assert memory_budget.measure_budget_mib(torch.device("cuda")) == pytest.approx(500)
