"""Start app.py in another process, for tests that send requests to it."""

import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from helper import PROJECT_DIR

BEST = "session/first/best.pt"
ENDED = "ended; the uploads are deleted\n"


class Page(NamedTuple):
    """A running page, its upload folder and the output of its start."""

    process: "subprocess.Popen[str]"
    port: int
    folder: Path
    output: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(root: Path, *options: str) -> Page:
    """Start app.py on the run `first` and wait until it is ready."""
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
    output = []
    for line in process.stdout:
        output.append(line.rstrip())
        if line.startswith("open http://"):
            break
    else:
        pytest.fail("\n".join(output))
    folder = next(line.split()[4] for line in output if line.startswith("uploads are stored in "))
    return Page(process, port, Path(folder), output)


def end(page: Page) -> str:
    """Stop it if it runs, and return the rest of its output."""
    if page.process.poll() is None:
        page.process.send_signal(signal.SIGINT)
    return page.process.communicate(timeout=20)[0]
