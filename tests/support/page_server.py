"""The page of app.py in a process of its own, for tests that ask it something."""

import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from helper import PROJECT_DIR

BEST = "session/first/best.pt"


class Page(NamedTuple):
    """A page in a process of its own."""

    process: "subprocess.Popen[str]"
    port: int
    folder: Path
    said: list[str]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def find_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def start(root: Path, *options: str) -> Page:
    """Start app.py on the run `first` and wait until it says where it is."""
    port = find_port()
    command = [sys.executable, str(PROJECT_DIR / "app.py"), BEST, "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--device", "cpu", *options],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line.rstrip())
        if line.startswith("open http://"):
            break
    else:
        pytest.fail("\n".join(said))
    folder = next(line.split()[3] for line in said if line.startswith("pictures lie in "))
    return Page(process, port, Path(folder), said)


def end(one: Page) -> str:
    """End it if it runs, and return what else it said."""
    if one.process.poll() is None:
        one.process.send_signal(signal.SIGINT)
    return one.process.communicate(timeout=20)[0]
