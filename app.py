"""Serve a local web page that predicts dropped slices: `python app.py session/RUN/best.pt`."""

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import helper
from common.cli import add_options, argument, build_parser, fill_dataclass, option
from common.shared_options import calibration_option, debug_option, device_option, threads_option
from helper import UserError, log
from webapp import server

SHORTEST_TOKEN = 16  # characters


@dataclass(frozen=True)
class AppConfig:
    """Checkpoints and address of app.py."""

    checkpoints: tuple[Path, ...] = argument(
        "session/RUN/best.pt, or session/RUN; one with --folds is one ensemble; several are "
        "averaged",
        metavar="CHECKPOINT_OR_RUN",
        several=True,
    )
    host: str = option(
        "127.0.0.1",
        "address of the page; another than this machine's needs --token",
        metavar="ADDRESS",
    )
    port: int = option(7860, "port of the page", low=1, high=65535, metavar="N")
    token: str | None = option(
        None,
        f"secret of {SHORTEST_TOKEN} characters or more that requests need",
        metavar="TOKEN",
        pattern=rf"[!-~]{{{SHORTEST_TOKEN},}}",
    )
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
        "Serve a local web page and interface that predict dropped slices: probabilities, "
        "prediction set, heat map, nearest training slices. Slices go from the browser to this "
        "program only, and are deleted when their request ends.",
        "examples:\n"
        "  python app.py session/RUN/best.pt\n"
        "  python app.py session/RUN\n"
        "  python app.py session/RUN/best.pt --port 8000\n"
        "  python app.py session/RUN --host 0.0.0.0 --token SECRET",
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
        UserError: The address cannot be used, or is open to others without --token; packages are
            missing; a checkpoint is not usable; `--data` is not a folder that prepare.py wrote.
    """
    try:
        import swagger_ui_bundle  # noqa: F401  one of the packages of the page
        import uvicorn  # noqa: F401

        from webapp.guard import LOCAL_HOSTS, Guard, is_local
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed; python -m pip install -r requirements-app.txt"
        ) from error
    local = is_local(config.host)
    if not local and config.token is None:
        raise UserError(
            f"--host {config.host}: everybody who reaches this machine could open the page; add "
            f"--token with a secret of {SHORTEST_TOKEN} characters or more",
            status=2,
        )
    with (
        server.open_socket(config.host, config.port) as listener,
        server.private_folder() as folder,
    ):
        from inference.predictor import load_predictor
        from inference.training_slices import find_training
        from webapp.api import build_app

        predictor = load_predictor(
            config.checkpoints, config.device, config.threads, config.calibration
        )
        training = find_training(predictor, config.data)
        server.warm_up(predictor)
        hosts = LOCAL_HOSTS | {config.host} if local else None
        app = Guard(build_app(predictor, training, folder), hosts, config.token)
        for line in predictor.list_warnings():
            log.info("note: %s", line)
        if not local:
            log.info(
                "note: --host %s: slices and the token cross the network unencrypted; put a proxy "
                "with TLS before the page",
                config.host,
            )
        log.info("%s", helper.NOTICE)
        host = server.find_name(config.host)
        secret = f"/#token={quote(config.token)}" if config.token else ""
        ready = f"open http://{host}:{config.port}{secret} (Ctrl-C ends it)"
        with contextlib.suppress(KeyboardInterrupt):
            server.run(app, listener, lambda: log.info("%s", ready))
    log.info("ended; no upload is kept")


if __name__ == "__main__":
    sys.exit(main())
