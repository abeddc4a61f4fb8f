"""Train a classifier on MRI slices and evaluate it: `python main.py --model resnet18`."""

import datetime
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import args
import evaluate
import helper
from common import signals
from common.portable_names import quote
from common.run_paths import RESULTS_DIR, SESSION_DIR
from helper import UserError

# torch is imported inside the functions, so that `--help` and a wrong option respond at once


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    config = args.parse_train(argv)
    if isinstance(config, args.ListConfig):
        return helper.run_command(list_models, config)
    with signals.raise_on_sigterm():
        if isinstance(config, args.ResumeConfig):
            return helper.run_command(resume, config, config.debug)
        if isinstance(config, args.DryRunConfig):
            return helper.run_command(dry_run, config.train, config.train.run.debug)
        return helper.run_command(train, config, config.run.debug)


def list_models(config: args.ListConfig) -> None:
    """Print the networks that match a pattern."""
    from backbones.catalogue import describe_all

    is_found = False
    try:
        for line in describe_all(config.pattern):
            is_found = True
            print(line, flush=True)
    except BrokenPipeError:  # of `| head`; Python would write to it once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if not is_found:
        raise UserError(f"--model list {config.pattern}: no network matches; leave out the pattern")


def train(config: args.TrainConfig) -> None:
    """Start a run in session/RUN, train it and evaluate it into results/RUN."""
    from runs import cross_validation, lifecycle
    from training import distributed

    lifecycle.check_model(config)
    device = distributed.init(config.run.device)
    run_dir = choose_run_dir(config)
    if config.data.folds:
        cross_validation.start_folds(config, run_dir, device)
        evaluate_once(run_dir, config.run.device)
    else:
        table = lifecycle.load_table(config)
        lifecycle.start_run(config, table, run_dir, run_dir.name, device)
        evaluate_once(run_dir / "best.pt", config.run.device)


def dry_run(config: args.TrainConfig) -> None:
    """Print what a run would use: device, precision, memory, time, disk space and files."""
    from runs import dry_run, lifecycle
    from training import distributed

    lifecycle.check_model(config)
    device = distributed.init(config.run.device)
    run_dir = choose_run_dir(config)
    dry_run.try_run(config, run_dir, RESULTS_DIR / run_dir.name, device)
    distributed.destroy()


def resume(config: args.ResumeConfig) -> None:
    """Continue or extend a run or cross-validation and evaluate it into results/RUN."""
    from runs import cross_validation, lifecycle
    from runs.extension import Changes
    from training import distributed

    device = distributed.init(config.device)
    run_dir, changes = config.resume, Changes(config.epochs, config.data)
    if cross_validation.is_cross_validation(run_dir):
        cross_validation.resume_folds(run_dir, device, changes)
        evaluate_once(run_dir, config.device)
    else:
        lifecycle.resume_run(run_dir, device, changes)
        evaluate_once(run_dir / "best.pt", config.device)


def choose_run_dir(config: args.TrainConfig) -> Path:
    """Return session/RUN for a new run, the same in all processes.

    Raises:
        UserError: results/RUN exists and belongs to another run.
    """
    from training import distributed

    time = f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    model = config.model.model.replace("/", "-")
    name = distributed.broadcast(config.run.name or f"{model}-{time}")
    run_dir, results_dir = SESSION_DIR / name, RESULTS_DIR / name
    if distributed.is_main_process() and results_dir.exists() and not run_dir.exists():
        raise UserError(f"{results_dir} exists; choose another --name, or move that folder")
    return run_dir


def evaluate_once(path: Path, device: str) -> None:
    """Evaluate best.pt or a cross-validation on the test split, in the main process only."""
    from training import distributed

    is_main_process = distributed.is_main_process()
    distributed.destroy()  # the other processes need not wait for the evaluation
    if not is_main_process:
        return
    try:
        evaluate.evaluate(args.EvaluateConfig((path,), device=device))
    except KeyboardInterrupt as error:
        run_dir = path if path.is_dir() else path.parent
        raise type(error)(
            f"trained but not evaluated; continue with --resume {quote(run_dir)}"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
