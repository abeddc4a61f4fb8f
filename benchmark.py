"""How fast the program is, beside its own limit and the usual way: `python benchmark.py`."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import args
import helper
from common import atomic_files
from helper import UserError, log

if TYPE_CHECKING:
    from benchmarking.task import Task

# torch is imported inside the functions: `--help` and a wrong option answer without it.


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    config = args.parse_benchmark(argv)
    return helper.run_verb(benchmark, config, config.debug)


def benchmark(config: args.BenchmarkConfig) -> None:
    """Measure in a temporary folder, print the figures, and write them where asked to.

    Raises:
        UserError: No such model, device or data folder, or the figures cannot be written there.
    """
    import model
    from benchmarking import process_start, report, task
    from modeling import precision

    model.check_model(config.model, config.image_size, pretrained=False)
    helper.resolve_device(config.device)
    check_target(config.json)
    precision.keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        work = Path(folder)
        data_dir = config.data or work / "phantoms"
        if config.data is None:
            log.info("making %d phantoms", config.slices)
            task.make_phantoms(config.slices, data_dir, config.seed)
        task.choose_slices(data_dir, work, config)
        process_start.write_config(config, work)
        whole = task.open_task(config, work)
        figures = report.build_report(whole, measure(whole))
    report.print_table(figures)
    if config.json:
        atomic_files.write_json(config.json, figures)
        log.info("written to %s", config.json)


def measure(task: "Task") -> dict[str, list[float]]:
    """Every figure of every round; what is compared takes turns."""
    from benchmarking import dataloader_baseline, pipeline, process_start, stages, synthetic_step
    from benchmarking.rounds import measure_in_turn

    repeats = task.config.repeats
    training = {
        "limit": synthetic_step.build_limit(task),
        "pipeline": pipeline.build_pipeline(task),
        "usual": dataloader_baseline.build_usual(task),
    }
    measured = measure_in_turn(training, repeats)
    del training  # its workers and networks go
    others = {
        "inference": stages.build_inference(task),
        "reading": stages.build_reading(task),
        "copies": stages.build_copy_search(task),
        "cache": stages.build_cache(task),
        "new process": process_start.build_start(task.work),
    }
    return measured | measure_in_turn(others, repeats)


def check_target(path: Path | None) -> None:
    """Find out before the measurements whether their figures can be written.

    Raises:
        UserError: They cannot.
    """
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"--json {path}: a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"--json {path}: not writable there ({error.strerror})") from error


if __name__ == "__main__":
    sys.exit(main())
