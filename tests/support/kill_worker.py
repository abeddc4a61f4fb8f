"""Kill training runs at random times and resume them: `kill_worker.py TIMES SEED REPORT`.

It works in the current folder, which holds data/phantom. torch is imported once and every run is a
fork of this process, so a hundred runs take minutes. Half of the runs save after every step, so
that kills also hit the writing of a checkpoint.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

import main
from common.atomic_files import UNFINISHED
from modeling import checkpoint

RUN = Path("session/run")
COMMAND = (
    *("--phantom", "--model", "net", "--image-size", "32", "--batch-size", "4", "--epochs", "5"),
    *("--dropout", "0.3", "--mixup", "0.2", "--name", "run", "--device", "cpu", "--threads", "1"),
)
SAVE_EVERY = {"epochs": "0", "steps": "0.0000001"}
TIMINGS = ("images_per_s", "time_s")


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


def drop_timings(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: row[key] for key in row if key not in TIMINGS} for row in history]


def read_run(folder: Path) -> dict[str, Any]:
    """Read everything that a finished run left, except timings and environment."""
    last, best = (checkpoint.load_run(folder / RUN / f"{name}.pt") for name in ("last", "best"))
    for content in (last, best):
        content["history"] = drop_timings(content["history"])
        content["best"] = drop_timings([content["best"]])
        del content["environment"]
    metrics = json.loads((folder / "results/run/metrics.json").read_text("utf-8"))
    del metrics["environment"]
    files = [folder / RUN / "split.csv", folder / RUN / "config.json"]
    files.append(folder / "results/run/predictions.csv")
    return {
        "last": last,
        "best": best,
        "metrics": json.dumps(metrics),
        "files": [path.read_bytes() for path in files],
        "session": sorted(path.name for path in (folder / RUN).iterdir()),
        "results": sorted(path.name for path in (folder / "results/run").iterdir()),
    }


def find_differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Return where two runs differ, to the bit."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        one, other = dict(enumerate(one)), dict(enumerate(other))
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            line
            for key in sorted({*one, *other}, key=str)
            for line in find_differences(one.get(key), other.get(key), f"{where}/{key}")
        ]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    return [] if one == other else [where]


def describe_kill(folder: Path) -> str:
    """Describe the state in which the run was killed."""
    if not (folder / RUN).exists():
        return "before the run folder"
    if list((folder / RUN).glob(f"{UNFINISHED}*")):
        return "while a file was written"
    if not (folder / RUN / "last.pt").exists():
        return "before the first save"
    if not (folder / RUN / "best.pt").exists():
        return "in the first epoch"
    best = checkpoint.load_run(folder / RUN / "best.pt")
    return "after training" if "calibration" in best else "in a later epoch"


def make_folder(name: str) -> Path:
    """Create a working folder with the same slices."""
    folder = HOME / name
    (folder / "data").mkdir(parents=True)
    (folder / "data/phantom").symlink_to((HOME / "data/phantom").resolve())
    return folder


def kill_once(number: int, saves: str, longest_s: float, whole: dict[str, Any]) -> dict[str, Any]:
    """Kill a run once or twice, let it finish, and compare it with one that was never stopped."""
    folder, kills = make_folder(f"run-{number}"), []
    for _ in range(draw.choice((1, 1, 2))):
        process = start(folder, saves)
        time.sleep(draw.uniform(0, longest_s))
        os.kill(process, signal.SIGKILL)
        if wait(process) == 0:
            kills.append("finished")
            break
        kills.append(describe_kill(folder))
    status = 0 if kills[-1] == "finished" else wait(start(folder, saves))
    differences = find_differences(whole, read_run(folder)) if status == 0 else []
    if status == 0 and not differences:
        shutil.rmtree(folder)
    return {"kills": kills, "status": status, "differences": differences}


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
        print(number, rows[-1], flush=True)
    return rows


HOME = Path.cwd()
draw = random.Random(int(sys.argv[2]))
report = work(int(sys.argv[1]))
(HOME / sys.argv[3]).write_text(json.dumps(report))
