"""Serve a local web page that predicts dropped slices: `python app.py session/RUN/best.pt`."""

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import helper
from common.cli import add_options, argument, build_parser, fill_dataclass, option
from common.shared_options import calibration_option, debug_option, device_option, threads_option
from helper import log
from webapp import request_filter, server


@dataclass(frozen=True)
class AppConfig:
    """Checkpoints and address of app.py."""

    checkpoints: tuple[Path, ...] = argument(
        "session/RUN/best.pt, or session/RUN; one with --folds is one ensemble; several are "
        "averaged",
        metavar="CHECKPOINT_OR_RUN",
        several=True,
    )
    host: str = option("127.0.0.1", "address of the page", metavar="ADDRESS")
    port: int = option(7860, "port of the page", low=1, high=65535, metavar="N")
    data: Path | None = option(
        None, "folder of the training slices (default: the run's own)", metavar="DIR"
    )
    calibration: Path | None = calibration_option()
    device: str = device_option()
    threads: int = threads_option()
    debug: bool = debug_option()


def parse_args(argv: Sequence[str] | None = None) -> AppConfig:
    """Parse the command line of app.py; exit like `args.parse_train` on errors."""
    parser = build_parser(
        "app.py",
        "CHECKPOINT_OR_RUN [MORE …] [options]",
        "Serve a local web page that predicts dropped slices: probabilities, prediction set, heat "
        "map, nearest training slices. Slices go from the browser to this program only; with "
        "--host they cross the network unencrypted.",
        "examples:\n"
        "  python app.py session/RUN/best.pt\n"
        "  python app.py session/RUN\n"
        "  python app.py session/RUN/best.pt --port 8000",
    )
    add_options(parser, AppConfig)
    return fill_dataclass(AppConfig, vars(parser.parse_args(argv)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    config = parse_args(argv)
    return helper.run_command(serve, config, config.debug)


def serve(config: AppConfig) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        UserError: The address cannot be used, Gradio is not installed, a checkpoint is not usable,
            or `--data` is not a folder that prepare.py wrote.
    """
    with (
        server.open_socket(config.host, config.port) as listener,
        server.private_folder() as folder,
    ):
        gradio_page = server.import_gradio_page()
        from inference.predictor import load_predictor
        from webapp import page_content

        predictor = load_predictor(
            config.checkpoints, config.device, config.threads, config.calibration
        )
        training = page_content.find_training(predictor, config.data)
        server.warm_up(predictor)
        is_local = request_filter.is_local(config.host)
        site = request_filter.RequestFilter(
            gradio_page.build_site(predictor, training, folder),
            folder,
            request_filter.LOCAL_HOSTS | {config.host} if is_local else None,
        )
        for line in predictor.list_warnings():
            log.info("note: %s", line)
        if not is_local:
            log.info(
                "note: --host %s: everybody who reaches this machine can open the page; it has no "
                "password, and patient images are sent to it unencrypted",
                config.host,
            )
        log.info("uploads are stored in %s until the page ends", folder)
        log.info("%s", helper.NOTICE)
        request_filter.refuse_connections()
        host = f"[{config.host}]" if ":" in config.host else config.host
        ready = f"open http://{host}:{config.port} (Ctrl-C ends it)"
        with contextlib.suppress(KeyboardInterrupt):
            gradio_page.run_site(site, listener, lambda: log.info("%s", ready))
    log.info("ended; the uploads are deleted")


if __name__ == "__main__":
    sys.exit(main())
