"""Kills training runs at random instants and takes them up: `kill_worker.py TIMES SEED REPORT`.

It works in the current folder, which holds data/phantom. torch is imported once and every run is a
fork of this process, so that a hundred of them take minutes. Half of the runs save after every
step, so that many a kill comes in the middle of a checkpoint.
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
SAVES = {"epochs": "0", "steps": "0.0000001"}
TIMINGS = ("images_per_s", "time_s")


def start(arguments: list[str]) -> int:
    """main.py in a fork of this process; its number."""
    number = os.fork()
    if number == 0:
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os._exit(main.main(arguments))
    return number


def end(number: int) -> int:
    """Wait for a fork; its exit status, negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def begin(folder: Path, saves: str) -> int:
    """A run in a folder of its own, or, where it was begun, the rest of it."""
    os.chdir(folder)
    is_begun = RUN.is_dir()
    arguments = ["--resume", str(RUN), "--device", "cpu"]
    return start(arguments if is_begun else [*COMMAND, "--save-every", SAVES[saves]])


def drop_timings(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a run measured of itself, but for the clock."""
    return [{key: row[key] for key in row if key not in TIMINGS} for row in history]


def read_end(folder: Path) -> dict[str, Any]:
    """All that a finished run left, but for times and where it ran."""
    last, best = (checkpoint.load_run(folder / RUN / f"{name}.pt") for name in ("last", "best"))
    for kept in (last, best):
        kept["history"] = drop_timings(kept["history"])
        kept["best"] = drop_timings([kept["best"]])
        del kept["environment"]
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
    """Where two ends differ, to the bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted({*one, *other}, key=str)
        return [
            line
            for key in keys
            for line in find_differences(one.get(key), other.get(key), f"{where}/{key}")
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [line for i, pair in pairs for line in find_differences(*pair, f"{where}/{i}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    return [] if one == other else [where]


def describe_kill(folder: Path) -> str:
    """What the run had come to when it was killed."""
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
    """A folder for a run beside the others, with the same slices."""
    folder = Path(name).absolute()
    (folder / "data").mkdir(parents=True)
    (folder / "data/phantom").symlink_to((HOME / "data/phantom").resolve())
    return folder


def kill_once(number: int, saves: str, longest_s: float, whole: dict[str, Any]) -> dict[str, Any]:
    """Kill a run, perhaps again while it is taken up, let it end, and compare."""
    os.chdir(HOME)
    folder, kills = make_folder(f"run-{number}"), []
    for _ in range(draw.choice((1, 1, 2))):
        process = begin(folder, saves)
        time.sleep(draw.uniform(0, longest_s))
        os.kill(process, signal.SIGKILL)
        if end(process) == 0:
            kills.append("it had ended")
            break
        kills.append(describe_kill(folder))
    status = 0 if kills[-1] == "it had ended" else end(begin(folder, saves))
    differences = find_differences(whole, read_end(folder)) if status == 0 else []
    if status == 0 and not differences:
        shutil.rmtree(folder)
    return {"kills": kills, "status": status, "differences": differences}


def work(times: int) -> list[dict[str, Any]]:
    """Kill so many runs, each beside one that was never stopped."""
    wholes, longest_s = {}, {}
    for saves in SAVES:
        folder = make_folder(f"whole-{saves}")
        started_s = time.time()
        assert end(begin(folder, saves)) == 0, (folder / "log.txt").read_text()
        # from here on it is judged, which takes longer than the training of so few slices
        trained_s = (folder / RUN / "best.pt").stat().st_mtime - started_s
        longest_s[saves], wholes[saves] = 1.1 * trained_s, read_end(folder)
        os.chdir(HOME)
    rows = []
    for number in range(times):
        saves = list(SAVES)[number % 2]
        rows.append(kill_once(number, saves, longest_s[saves], wholes[saves]))
        print(number, rows[-1], flush=True)
    return rows


HOME = Path.cwd()
draw = random.Random(int(sys.argv[2]))
rows = work(int(sys.argv[1]))
(HOME / sys.argv[3]).write_text(json.dumps(rows))
