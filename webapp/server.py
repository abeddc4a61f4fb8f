"""Socket, private upload folder, Gradio settings and warm-up of the page's process."""

import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING

import numpy as np

from helper import UserError

if TYPE_CHECKING:  # the real import takes seconds, and the port is checked first
    from inference.predictor import SlicePredictor


def import_gradio_page() -> ModuleType:
    """Import the page with Gradio's telemetry and update checks disabled.

    Raises:
        UserError: Gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        from webapp import gradio_page
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed; python -m pip install -r requirements-app.txt"
        ) from error
    return gradio_page


def open_socket(host: str, port: int) -> socket.socket:
    """Open a listening socket; requests wait until the page is ready.

    Raises:
        UserError: The port is in use, or this machine does not have the address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only with an explicit protocol; Gradio loses events without it
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


def warm_up(predictor: "SlicePredictor") -> None:
    """Predict and explain an empty image, so that the first upload is answered quickly."""
    preprocessed = predictor.preprocess(np.zeros((64, 64), np.uint8))
    predictor.predict([preprocessed])
    predictor.explain(preprocessed, predictor.classes[0])


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """Create an upload folder that only this user can read, and delete it at the end.

    It is also deleted after SIGTERM and SIGHUP, but not after SIGKILL.
    """
    ends = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, _interrupt) for number in ends}
    try:
        with tempfile.TemporaryDirectory(prefix="brain-mri-page-") as folder:
            os.environ["GRADIO_TEMP_DIR"] = folder
            yield Path(folder)
    finally:
        os.environ.pop("GRADIO_TEMP_DIR", None)
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
