"""A local page to drop a slice on: `python app.py session/RUN/best.pt`."""

import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import helper
import use_args
from helper import UserError, log

if TYPE_CHECKING:  # the real imports wait until the command line is known to be right
    from classifier import SliceClassifier

LOCAL = {"127.0.0.1", "localhost", "::1"}
# The browser itself refuses what would leave this machine.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; worker-src 'self' blob:; frame-ancestors 'none'; form-action 'self'"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    config = use_args.parse_app(argv)
    return helper.run_verb(serve, config, config.debug)


def serve(config: use_args.AppConfig) -> None:
    """Show the page until Ctrl-C.

    Raises:
        UserError: Gradio is not installed, the port is taken, or a checkpoint is not usable.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    with _private_folder():
        try:
            import uvicorn

            import interface
        except ModuleNotFoundError as error:
            raise UserError(
                f"{error.name} is not installed; python -m pip install -r requirements-app.txt"
            ) from error
        from classifier import load_classifier

        check_port(config.host, config.port)
        classifier = load_classifier(config.checkpoints, config.device, config.threads)
        warm_up(classifier)
        data_dir = config.data or Path(classifier.members[0].kept["data"])
        site = interface.build_site(
            classifier, data_dir, CONTENT_SECURITY_POLICY, sorted({config.host, *LOCAL})
        )
        if config.host not in LOCAL:
            log.info(
                "note: --host %s: whoever reaches this machine sees the page; it has no password",
                config.host,
            )
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            signal.signal(number, lambda *_: sys.exit(143))  # the folder goes, whatever ends it
        log.info("%s", helper.NOTICE)
        host = f"[{config.host}]" if ":" in config.host else config.host
        log.info("open http://%s:%d (Ctrl-C ends it)", host, config.port)
        uvicorn.run(site, host=config.host, port=config.port, log_level="error")
    log.info("ended; pictures that were dropped are deleted")


def check_port(host: str, port: int) -> None:
    """Make sure that the page can be offered there.

    Raises:
        UserError: Another program listens there, or this machine has no such address.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family):
            pass
    except OSError as error:
        raise UserError(
            f"{host}:{port} cannot be used ({error.strerror}); name another --port"
        ) from error


def warm_up(classifier: "SliceClassifier") -> None:
    """Let the first answer be as quick as the others."""
    import numpy as np

    fitted = classifier.fit(np.zeros((64, 64), np.uint8))
    classifier.judge([fitted])
    classifier.explain(fitted, classifier.classes[0])


@contextlib.contextmanager
def _private_folder() -> Iterator[None]:
    """A folder for what the page holds, which only this user may read and which is deleted."""
    with tempfile.TemporaryDirectory(prefix="brain-mri-page-") as folder:
        before: dict[str, Any] = {"GRADIO_TEMP_DIR": os.environ.get("GRADIO_TEMP_DIR")}
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield
        finally:
            if before["GRADIO_TEMP_DIR"] is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ.update(before)


if __name__ == "__main__":
    sys.exit(main())
