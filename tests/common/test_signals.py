"""Deferred signals: the first one waits, the second one does not."""

import os
import signal

import pytest

from common import signals
from tests.support.builders import run_python


def test_a_second_signal_raises_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)

    def ignore_the_first() -> None:
        with signals.defer_signals() as stop:
            stop.raise_if_requested()
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.kind is KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the second signal was ignored")

    with pytest.raises(signals.Terminated):
        ignore_the_first()
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_raises_only_within_the_context() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(signals.Terminated), signals.raise_on_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.integration
def test_a_closed_window_on_windows_is_like_sigterm() -> None:
    code = (
        "import os, signal\n"
        "signal.SIGBREAK = signal.SIGUSR1\n"
        "from common import signals\n"
        "with signals.defer_signals() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGBREAK)\n"
        "    print(stop.kind.__name__)\n"
        "try:\n"
        "    with signals.raise_on_sigterm():\n"
        "        os.kill(os.getpid(), signal.SIGBREAK)\n"
        "except signals.Terminated as error:\n"
        "    print(error.status)\n"
    )
    assert run_python("-c", code).stdout == "Terminated\n143\n"


@pytest.mark.integration
def test_a_signal_is_recorded_when_stderr_is_closed() -> None:
    code = (
        "import os, signal\n"
        "from common import signals\n"
        "reader, writer = os.pipe()\n"
        "os.dup2(writer, 2); os.close(writer); os.close(reader)\n"
        "with signals.defer_signals() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print(stop.kind.__name__)\n"
    )
    assert run_python("-c", code).stdout == "KeyboardInterrupt\n"
