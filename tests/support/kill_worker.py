"""Kill training runs at random times and resume them: `kill_worker.py TIMES SEED REPORT`.

It works in the current folder, which holds data/phantom. Every run is a fork of this process, so
that torch is imported once. Half of the runs save after every step, so that kills also hit the
writing of a checkpoint.
"""

import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import main
from modeling import checkpoint
from tests.support.builders import QUICK, link_phantoms

RUN = Path("session/run")
ON_CPU = ("--device", "cpu", "--threads", "1")
OPTIONS = ["--batch-size", "4", "--epochs", "5", "--dropout", "0.3", "--mixup", "0.2"]
COMMAND = [*QUICK, *ON_CPU, *OPTIONS, "--name", "run"]
SAVE_EVERY = {"epochs": "0", "steps": "0.0000001"}
VARYING = re.compile(r"/environment/|/(images_per_s|time_s)$")


def start(folder: Path, saves: str) -> int:
    """Start or resume a run in its folder, in a fork of this process; return its process id."""
    os.chdir(folder)
    arguments = [*COMMAND, "--save-every", SAVE_EVERY[saves]]
    if RUN.is_dir():
        arguments = ["--resume", str(RUN), "--device", "cpu"]
    process = os.fork()
    if process == 0:
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os._exit(main.main(arguments))
    return process


def wait(process: int) -> int:
    """Wait for a fork; return its exit status, negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def read_run(folder: Path) -> dict[str, Any]:
    """Read everything that a finished run left, by its place, except what varies."""
    session, results = folder / RUN, folder / "results/run"
    files = [session / "split.csv", session / "config.json", results / "predictions.csv"]
    content = {
        "last": checkpoint.load_run(session / "last.pt"),
        "best": checkpoint.load_run(session / "best.pt"),
        "metrics": json.loads((results / "metrics.json").read_text("utf-8")),
        "files": [path.read_bytes() for path in files],
        "session": sorted(path.name for path in session.iterdir()),
        "results": sorted(path.name for path in results.iterdir()),
    }
    return {place: leaf for place, leaf in list_leaves(content) if not VARYING.search(place)}


def list_leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield place and value of the leaves of nested dictionaries and lists; tensors as bytes."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, part in value.items():
            yield from list_leaves(part, f"{place}/{key}")
    else:
        yield place, value.numpy().tobytes() if isinstance(value, torch.Tensor) else value


def make_folder(name: str) -> Path:
    """Create a working folder with the same slices."""
    folder = HOME / name
    folder.mkdir()
    link_phantoms(folder, (HOME / "data/phantom").resolve())
    return folder


def kill_once(number: int, saves: str, longest_s: float, whole: dict[str, Any]) -> dict[str, Any]:
    """Kill a run once or twice, let it finish, and compare it with one that was never stopped."""
    folder, n_kills = make_folder(f"run-{number}"), 0
    for _ in range(draw.choice((1, 1, 2))):
        process = start(folder, saves)
        time.sleep(draw.uniform(0, longest_s))
        os.kill(process, signal.SIGKILL)
        n_kills += wait(process) != 0  # 0: the run had ended before
    status = wait(start(folder, saves))
    found = read_run(folder) if status == 0 else {}
    differences = [key for key in {*whole, *found} if whole.get(key) != found.get(key)]
    if not differences:
        shutil.rmtree(folder)
    return {"n_kills": n_kills, "status": status, "differences": differences}


def work(times: int) -> list[dict[str, Any]]:
    """Kill `times` runs, each compared with one that was never stopped."""
    wholes, longest_s = {}, {}
    for saves in SAVE_EVERY:
        folder = make_folder(f"whole-{saves}")
        started_s = time.time()
        assert wait(start(folder, saves)) == 0, (folder / "log.txt").read_text()
        # after training the run is evaluated, which takes longer than training
        trained_s = (folder / RUN / "best.pt").stat().st_mtime - started_s
        longest_s[saves], wholes[saves] = 1.1 * trained_s, read_run(folder)
    rows = []
    for number in range(times):
        saves = list(SAVE_EVERY)[number % 2]
        rows.append(kill_once(number, saves, longest_s[saves], wholes[saves]))
    return rows


HOME = Path.cwd()
draw = random.Random(int(sys.argv[2]))
report = work(int(sys.argv[1]))
(HOME / sys.argv[3]).write_text(json.dumps(report))
