"""Seconds from process start to an accuracy on the grouped val split, main.py beside a plain way.

    python -m experiments.time_to_accuracy --weights WEIGHTS.pth \
        --json results/benchmarks/time_to_accuracy.json

The two take turns, from seed to seed the other one first, each in a process of its own with
whatever it has to import, decode and load. The plain way (experiments.plain_fine_tuning) ends
when it is there; main.py runs to its end, so that its last accuracy and the whole time to its
report are known too. Its pixel cache is taken away before, unless `--warm` is given.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common.atomic_files import write_json
from dataset import CACHE_FOLDER
from experiments.cli import describe_machine
from helper import PROJECT_DIR, UserError, log, run_verb

EPOCH_LINE = re.compile(r"^epoch +(\d+)/.* val accuracy (\d\.\d+)")
RECIPES = {
    "mobilenet_v2": (
        *("--image-size", "160", "--epochs", "3"),
        *("--first-size", "0.6", "--body-lr-factor", "1.0"),
    ),
    "resnet18": ("--no-pretrained", "--image-size", "160", "--epochs", "30"),
}
TARGETS = {"mobilenet_v2": 0.97, "resnet18": 0.95}


def follow(command: list[str], folder: Path, target: float) -> dict[str, Any]:
    """Run a training in a folder; when each epoch ended, and when the target was reached.

    Returns:
        `epochs`: [seconds, val accuracy] each; `target_s`: seconds to the first at the target or
        above, None where there is none; `total_s`; `command`.

    Raises:
        UserError: It failed.
    """
    epochs, started_s = [], time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-u", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT_DIR)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if found := EPOCH_LINE.match(line):
                epochs.append([time.perf_counter() - started_s, float(found[2])])
                log.info("  %6.1f s  %s", epochs[-1][0], line.strip())
    if process.returncode:
        raise UserError(f"python {' '.join(command)} ended with status {process.returncode}")
    reached = [time_s for time_s, accuracy in epochs if accuracy >= target]
    return {
        "command": " ".join(
            Path(word).name if Path(word).is_absolute() else word for word in command
        ),
        "epochs": epochs,
        "target_s": reached[0] if reached else None,
        "total_s": time.perf_counter() - started_s,
    }


def study(options: argparse.Namespace) -> None:
    """Let both train in turn, print the figures, and write them where asked to."""
    target = options.target or TARGETS[options.model]
    data = options.data.absolute()
    weights = ["--weights", str(options.weights.absolute())] if options.weights else []
    common = ["--data", str(data), "--model", options.model, *weights]
    rounds: dict[str, list[dict[str, Any]]] = {"plain": [], "main.py": []}
    figures: dict[str, Any] = {}
    read_everything(data)
    for number, seed in enumerate(options.seeds):
        order = list(rounds)[:: 1 if number % 2 == 0 else -1]
        each = [*common, "--seed", str(seed)]
        commands = {
            "plain": ["-m", "experiments.plain_fine_tuning", *each, "--target", str(target)],
            "main.py": [str(PROJECT_DIR / "main.py"), *each, *RECIPES[options.model]],
        }
        for name in order:
            command = commands[name]
            log.info("%s, seed %d", name, seed)
            if name == "main.py" and not options.warm:
                shutil.rmtree(data / CACHE_FOLDER, ignore_errors=True)
            with tempfile.TemporaryDirectory() as folder:
                rounds[name].append(follow(command, Path(folder), target))
        figures = {
            "target": target,
            "seeds": options.seeds[: number + 1],
            "warm": options.warm,
            "rounds": rounds,
            "ratios": divide(rounds),
            "environment": describe_machine(),
        }
        if options.json:
            write_json(options.json, figures)  # after every seed, for they are long
    report(figures)


def read_everything(data: Path) -> None:
    """Bring the pictures into the system's memory, so that no run finds them colder."""
    for path in (data / "Images").rglob("*.*"):
        path.read_bytes()


def divide(rounds: dict[str, list[dict[str, Any]]]) -> list[float | None]:
    """Main.py's seconds as a share of the plain way's, a seed; None where one was never there."""
    pairs = zip(rounds["main.py"], rounds["plain"], strict=True)
    return [
        ours["target_s"] / plain["target_s"] if ours["target_s"] and plain["target_s"] else None
        for ours, plain in pairs
    ]


def report(figures: dict[str, Any]) -> None:
    """A row each way and seed, then the ratios."""
    for name, runs in figures["rounds"].items():
        for seed, run in zip(figures["seeds"], runs, strict=True):
            reached = "not reached" if run["target_s"] is None else f"{run['target_s']:.1f} s"
            best = max(accuracy for _, accuracy in run["epochs"])
            log.info(
                "%-8s seed %d: val accuracy %.2f %s; best %.4f, last %.4f; %.1f s in all",
                *(name, seed, figures["target"], reached, best),
                *(run["epochs"][-1][1], run["total_s"]),
            )
    ratios = figures["ratios"]
    if None in ratios:
        log.info("no ratio: %d of %d seeds have one", len(ratios) - ratios.count(None), len(ratios))
    else:
        each = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        log.info("main.py / plain: median %.3f (%s)", statistics.median(ratios), each)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="experiments.time_to_accuracy", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--model", choices=tuple(RECIPES), default="mobilenet_v2")
    parser.add_argument("--weights", type=Path, help="of ImageNet, for mobilenet_v2")
    parser.add_argument("--target", type=float, help="val accuracy (default: 0.97, resnet18 0.95)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--warm", action="store_true", help="leave the pixel cache where it is")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    return run_verb(study, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
