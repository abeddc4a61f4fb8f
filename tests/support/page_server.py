"""Start app.py in another process, for tests that send requests to it."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from helper import PROJECT_DIR

BEST = "session/first/best.pt"
ENDED = "ended; no upload is kept\n"


class Page(NamedTuple):
    """A running page, its folder of temporary files and the output of its start."""

    process: "subprocess.Popen[str]"
    port: int
    temporary: Path
    output: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(root: Path, temporary: Path, *options: str) -> Page:
    """Start app.py on the run `first` and wait until it is ready."""
    port = find_port()
    command = [sys.executable, str(PROJECT_DIR / "app.py"), BEST, "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--device", "cpu", *options],
        cwd=root,
        env={**os.environ, "TMPDIR": str(temporary), "TEMP": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    output = []
    for line in process.stdout:
        output.append(line.rstrip())
        if line.startswith("open http://"):
            return Page(process, port, temporary, output)
    pytest.fail("\n".join(output))


def end(page: Page) -> str:
    """Stop it if it runs, and return the rest of its output."""
    if page.process.poll() is None:
        page.process.send_signal(signal.SIGINT)
    return page.process.communicate(timeout=20)[0]
