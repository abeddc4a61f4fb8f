"""Socket, private upload folder, warm-up and run of the page's process."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import numpy as np

from helper import UserError

if TYPE_CHECKING:  # the real imports take seconds, and the port is checked first
    from inference.predictor import SlicePredictor
    from webapp.guard import App

SHUTDOWN_S = 2  # for pending answers
CONNECTIONS = 128  # at once
HEADER_S = 10.0  # for the first request of a connection


def open_socket(host: str, port: int) -> socket.socket:
    """Open a listening socket; requests wait until the page is ready.

    Raises:
        UserError: The port is in use, or this machine does not have the address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only with an explicit protocol
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise UserError(
            f"{host}:{port} cannot be used ({reason}); name another --port or --host"
        ) from error
    return listener


def find_name(host: str) -> str:
    """Return the name by which a browser finds an address; that of this machine for all of them."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def warm_up(predictor: "SlicePredictor") -> None:
    """Predict and explain an empty image, so that the first upload is answered quickly."""
    preprocessed = predictor.preprocess(np.zeros((64, 64), np.uint8))
    predictor.predict([preprocessed])
    predictor.explain(preprocessed, predictor.classes[0])


def run(app: "App", listener: socket.socket, announce: Callable[[], None]) -> None:
    """Serve until the process is interrupted; call `announce` once the page answers.

    Raises:
        UserError: The packages of the page are not installed.
    """
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        """Closes a connection whose first request does not arrive."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.loop.call_later(HEADER_S, self._close_idle)

        def _close_idle(self) -> None:
            if self.cycle is None and not self.transport.is_closing():
                self.transport.close()

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            announce()

    settings = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        log_level="critical",
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=SHUTDOWN_S,
        server_header=False,
    )
    # it would log a line for each packet to a client that has left
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    Server(settings).run(sockets=[listener])


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """Create an upload folder that only this user can read, and delete it at the end.

    Temporary files of this process are made in it. It is also deleted after SIGTERM and SIGHUP, but
    not after SIGKILL.
    """
    ends = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, _interrupt) for number in ends}
    try:
        with tempfile.TemporaryDirectory(prefix="brain-mri-page-") as folder:
            tempfile.tempdir = folder
            yield Path(folder)
    finally:
        tempfile.tempdir = None
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
