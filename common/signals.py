"""Ctrl-C and SIGTERM during training: finish and save the current step, then exit.

Windows has no SIGTERM from other programs, but sends SIGBREAK for Ctrl-Break and, a few seconds
before it ends the program, for a closed window, a logoff and a shutdown.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGBREAK; handled like Ctrl-C, with another exit status."""

    status = 143


TERMINATING = [getattr(signal, name) for name in ("SIGTERM", "SIGBREAK") if hasattr(signal, name)]
KINDS: dict[int, type[KeyboardInterrupt]] = {
    signal.SIGINT: KeyboardInterrupt,
    **dict.fromkeys(TERMINATING, Terminated),
}


class StopRequest:
    """A signal that was received and not yet acted on.

    Attributes:
        kind: The exception to raise; None while no signal has been received.
    """

    kind: type[KeyboardInterrupt] | None = None

    def raise_if_requested(self) -> None:
        """Raise the requested exception; call it only when all work is saved."""
        if self.kind is not None:
            raise self.kind


@contextlib.contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Raise Terminated on SIGTERM and SIGBREAK, so that `finally` blocks run."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    with _handle(TERMINATING, stop):
        yield


@contextlib.contextmanager
def defer_signals() -> Iterator[StopRequest]:
    """Record the first Ctrl-C or SIGTERM instead of raising it; the second one raises at once."""
    request = StopRequest()

    def record(number: int, frame: FrameType | None) -> None:
        if request.kind is not None:
            raise KINDS[number]
        request.kind = KINDS[number]
        with contextlib.suppress(OSError):  # stderr may be closed
            # os.write is safe in a signal handler, print is not
            os.write(2, b"\nstopping after this step; press Ctrl-C again to stop at once\n")

    with _handle(KINDS, record):
        yield request


@contextlib.contextmanager
def _handle(
    numbers: Iterable[int], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Install a signal handler; does nothing outside the main thread, where Python forbids it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
