"""Ctrl-C and SIGTERM in training: an end that waits until what is under way is saved."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM, by which a system asks a program to end: as Ctrl-C, but for the exit status."""

    status = 143


KINDS: dict[int, type[KeyboardInterrupt]] = {
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGTERM: Terminated,
}


@contextlib.contextmanager
def heed_sigterm() -> Iterator[None]:
    """Let SIGTERM raise Terminated, so that the program ends in order."""
    if not _can_heed():
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _can_heed() -> bool:
    """Python hands signals to the main thread alone."""
    return threading.current_thread() is threading.main_thread()


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


class Stop:
    """Whether an end was asked for.

    Attributes:
        kind: What is raised for it; None: nobody has asked.
    """

    kind: type[KeyboardInterrupt] | None = None

    def heed(self) -> None:
        """Raise what was asked for, once nothing is lost by it."""
        if self.kind is not None:
            raise self.kind


@contextlib.contextmanager
def postpone() -> Iterator[Stop]:
    """Keep Ctrl-C and SIGTERM until they are heeded; a second one ends the program at once."""
    stop = Stop()
    if not _can_heed():
        yield stop
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.kind is not None:
            raise KINDS[number]
        stop.kind = KINDS[number]
        with contextlib.suppress(OSError):  # whoever read it may have ended too
            os.write(2, b"\nending after this step; once more ends at once\n")  # safe in a handler

    before = {number: signal.signal(number, ask) for number in KINDS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
