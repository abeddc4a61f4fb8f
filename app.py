"""A local page to drop slices on: `python app.py session/RUN/best.pt`."""

import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING

import helper
from args import debug_option, device_option, threads_option
from common.cli import add_options, argument, build_parser, fill_dataclass, option
from helper import UserError, log
from webapp import request_filter

if TYPE_CHECKING:  # the real imports wait until the command line is known to be right
    from inference.predictor import SliceClassifier


@dataclass(frozen=True)
class AppConfig:
    """What the page of app.py judges with, and where it is offered."""

    checkpoints: tuple[Path, ...] = argument(
        "session/RUN/best.pt; several are averaged", metavar="CHECKPOINT", several=True
    )
    host: str = option("127.0.0.1", "address to offer the page at", metavar="ADDRESS")
    port: int = option(7860, "port of the page", low=1, high=65535, metavar="N")
    data: Path | None = option(
        None, "folder of the training slices (default: the run's own)", metavar="DIR"
    )
    device: str = device_option()
    threads: int = threads_option()
    debug: bool = debug_option()


def parse_args(argv: Sequence[str] | None = None) -> AppConfig:
    """The configuration of app.py; exits as `args.parse_train` does."""
    parser = build_parser(
        "app.py",
        "CHECKPOINT [MORE.pt …] [options]",
        "Offer a local web page on which slices are dropped: probabilities, prediction set, heat "
        "map, nearest training slices. Slices go from the browser to this program and no further; "
        "with --host they cross the network to it unencrypted.",
        "examples:\n"
        "  python app.py session/RUN/best.pt\n"
        "  python app.py session/RUN/best.pt --port 8000",
    )
    add_options(parser, AppConfig)
    return fill_dataclass(AppConfig, vars(parser.parse_args(argv)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    config = parse_args(argv)
    return helper.run_verb(serve, config, config.debug)


def serve(config: AppConfig) -> None:
    """Offer the page until Ctrl-C.

    Raises:
        UserError: The address cannot be used, Gradio is not installed, a checkpoint is not usable,
            or `--data` is no folder of prepare.py.
    """
    with open_socket(config.host, config.port) as door, private_folder() as folder:
        gradio_page = import_gradio_page()
        from inference.predictor import load_classifier
        from webapp import page_content

        classifier = load_classifier(config.checkpoints, config.device, config.threads)
        training = page_content.find_training(classifier, config.data)
        warm_up(classifier)
        is_local = request_filter.is_local(config.host)
        site = request_filter.Guard(
            gradio_page.build_site(classifier, training, folder),
            folder,
            request_filter.LOCAL_HOSTS | {config.host} if is_local else None,
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
        request_filter.refuse_connections()
        ready = f"open {write_address(config.host, config.port)} (Ctrl-C ends it)"
        with contextlib.suppress(KeyboardInterrupt):  # the way to end it
            gradio_page.run_site(site, door, lambda: log.info("%s", ready))
    log.info("ended; the pictures are deleted")


def import_gradio_page() -> ModuleType:
    """The page in Gradio, which asks nobody for news and sends none.

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
