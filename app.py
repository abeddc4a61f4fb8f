"""A local page to drop slices on: `python app.py session/RUN/best.pt`."""

import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING

import guard
import helper
import use_args
from helper import UserError, log

if TYPE_CHECKING:  # the real imports wait until the command line is known to be right
    from classifier import SliceClassifier


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    config = use_args.parse_app(argv)
    return helper.run_verb(serve, config, config.debug)


def serve(config: use_args.AppConfig) -> None:
    """Offer the page until Ctrl-C.

    Raises:
        UserError: The address cannot be used, Gradio is not installed, a checkpoint is not usable,
            or `--data` is no folder of prepare.py.
    """
    with open_socket(config.host, config.port) as door, private_folder() as folder:
        interface = import_interface()
        import page
        from classifier import load_classifier

        classifier = load_classifier(config.checkpoints, config.device, config.threads)
        training = page.find_training(classifier, config.data)
        warm_up(classifier)
        is_local = guard.is_local(config.host)
        site = guard.Guard(
            interface.build_site(classifier, training, folder),
            folder,
            guard.LOCAL_HOSTS | {config.host} if is_local else None,
        )
        for line in classifier.list_warnings():
            log.info("note: %s", line)
        if not is_local:
            log.info(
                "note: --host %s: whoever reaches this machine sees the page; it has no password, "
                "and pictures of patients come to it unencrypted",
                config.host,
            )
        log.info("pictures lie in %s until the page is ended", folder)
        log.info("%s", helper.NOTICE)
        guard.refuse_connections()
        ready = f"open {write_address(config.host, config.port)} (Ctrl-C ends it)"
        with contextlib.suppress(KeyboardInterrupt):  # the way to end it
            interface.run_site(site, door, lambda: log.info("%s", ready))
    log.info("ended; the pictures are deleted")


def import_interface() -> ModuleType:
    """The page in Gradio, which asks nobody for news and sends none.

    Raises:
        UserError: Gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import interface
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed; python -m pip install -r requirements-app.txt"
        ) from error
    return interface


def open_socket(host: str, port: int) -> socket.socket:
    """The socket that the page is offered at; who asks it waits until the page is ready.

    Raises:
        UserError: Another program listens there, or this machine has no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # named as TCP, or asyncio lets it wait for more to send, and Gradio loses events meanwhile
    door = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((host, port))
        door.listen()
    except OSError as error:
        door.close()
        reason = error.strerror or str(error)
        raise UserError(
            f"{host}:{port} cannot be used ({reason}); name another --port or --host"
        ) from error
    return door


def write_address(host: str, port: int) -> str:
    """The page's address as a browser wants it."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def warm_up(classifier: "SliceClassifier") -> None:
    """Let the first answer be as quick as the others."""
    import numpy as np

    fitted = classifier.preprocess(np.zeros((64, 64), np.uint8))
    classifier.judge([fitted])
    classifier.explain(fitted, classifier.classes[0])


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for what the page holds: only this user may read it, and it is deleted at the end.

    So it is at the end by another program or of the terminal, unless the process is killed.
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


if __name__ == "__main__":
    sys.exit(main())
