"""Speed beside other programs: conditions, processes and errors."""

import itertools
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import busy_cores
from helper import UserError
from tests.support.builders import Patch, Run


def test_every_condition_is_measured_once_a_round(monkeypatch: Patch, tmp_path: Path) -> None:
    calls: list[str] = []
    speeds = itertools.count(1)

    def measure(_checkpoint: Path, _images: Path, spins: str) -> dict[str, float]:
        calls.append(spins)
        return {"training": float(next(speeds))}

    monkeypatch.setattr(busy_cores, "measure_in_process", measure)
    target = tmp_path / "busy.json"
    command = ["best.pt", "images", "--rounds", "3", "--json", str(target)]
    assert busy_cores.main(command) == 0
    assert calls == [*busy_cores.SPINS.values()] * 9
    figures = json.loads(target.read_text("utf-8"))
    assert figures["rounds"]["2 beside, this project's"]["training"] == [6.0, 12.0, 18.0]
    assert figures["medians"]["0 beside, GNU OpenMP's own"] == {"training": 7.0}


def test_other_programs_end_with_the_measurement(monkeypatch: Patch) -> None:
    started: list[Any] = []
    start = subprocess.Popen

    def record(command: list[str]) -> Any:
        started.append(start(command))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", record)
    with busy_cores.keep_busy(2):
        assert [program.poll() for program in started] == [None, None]
    assert all(program.poll() is not None for program in started)


def test_failed_process_gives_its_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^checkpoint \S*nowhere\.pt: no such file$"):
        busy_cores.measure_in_process(tmp_path / "nowhere.pt", tmp_path, "3000")


def test_images_are_predicted_and_folders_without_refused(
    first_run: Run, phantom_dir: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    checkpoint = first_run.root / "session" / "first" / "best.pt"
    counts: list[int] = []

    def count(run: Callable[[], int]) -> float:
        counts.append(run())
        return 1.0

    monkeypatch.setattr(busy_cores, "time_images", count)
    found = busy_cores.measure_here(checkpoint, phantom_dir / "Images")
    assert found == dict.fromkeys(("training", "evaluation", "files"), 1.0)
    assert counts == [busy_cores.BATCH_SIZE, 60, busy_cores.BATCH_SIZE]
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match="no JPEG, PNG"):
        busy_cores.measure_here(checkpoint, tmp_path)


def test_speed_counts_what_the_function_returns(monkeypatch: Patch) -> None:
    clock = itertools.count(0.0, 1.0)
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert busy_cores.time_images(lambda: 8) == 8 * 3 / busy_cores.SHORTEST_S
