"""The stages beside training: files read, copies found, cache built, slices judged."""

import tempfile
from pathlib import Path

import dataset
import model
from benchmarking.rounds import Figures, Measure, time_run
from benchmarking.task import Task
from duplicates.finder import find_copies
from loading.image_source import Slices
from preparation.manifest import ImageFacts, collect_thumbnails, measure_images


def build_reading(task: Task) -> Measure:
    """Seconds in which every slice is read, hashed, checked and shrunk for the manifest."""

    def measure() -> Figures:
        return {"read_slices_s": time_run(lambda: read_slices(task), task.device)}

    return measure


def read_slices(task: Task) -> dict[str, ImageFacts]:
    """What the manifest says of each slice, from its file."""
    paths = task.distinct["path"]
    return measure_images(((path, Path(path).read_bytes()) for path in paths), len(paths))


def build_copy_search(task: Task) -> Measure:
    """Seconds in which copies and neighbours are found, and slices and groups numbered."""
    thumbnails = collect_thumbnails(read_slices(task))

    def measure() -> Figures:
        seconds = time_run(lambda: find_copies(thumbnails).number(), task.device)
        return {"find_copies_s": seconds}

    return measure


def build_cache(task: Task) -> Measure:
    """Seconds in which every slice is decoded into a pixel cache that is not there yet."""

    def measure() -> Figures:
        with tempfile.TemporaryDirectory(dir=task.work) as folder:

            def run() -> object:
                return dataset.open_pixels(task.distinct, Path(folder), task.config.image_size)

            return {"build_cache_s": time_run(run, task.device)}

    return measure


def build_inference(task: Task) -> Measure:
    """Images/s of verdicts, which are fp32: from files without a cache, and from the device alone.

    The second is the limit of the first: pixels on the device to logits on the CPU.
    """
    network = task.build_network()

    def judge(slices: Slices) -> object:
        return model.infer(network, slices.iterate(task.config.batch_size))

    def judge_files() -> None:
        with tempfile.TemporaryDirectory(dir=task.work) as folder:
            judge(task.take_slices(task.n_short_steps, Path(folder)))

    def measure() -> Figures:
        slices = task.take_slices(task.n_short_steps)
        files_s = time_run(judge_files, task.device)
        device_s = time_run(lambda: judge(slices), task.device)
        return {
            "files_images_per_s": len(slices) / files_s,
            "inference_images_per_s": len(slices) / device_s,
        }

    return measure
