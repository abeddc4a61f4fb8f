"""Speed of the other stages: reading, duplicate search, pixel cache, inference."""

import tempfile
from pathlib import Path

from benchmarking.rounds import Figures, Measure
from benchmarking.task import Task
from duplicates.finder import find_duplicates
from helper import time_run
from loading.image_source import SliceSource
from loading.pixel_cache import open_pixels
from modeling.forward import predict_logits
from preparation.manifest import ImageFacts, collect_thumbnails, measure_images


def read_slices(task: Task) -> dict[str, ImageFacts]:
    """Read, hash, check and shrink every slice, as prepare.py does for the manifest."""
    paths = task.distinct["path"]
    return measure_images(((path, Path(path).read_bytes()) for path in paths), len(paths))


def build_reading(task: Task) -> Measure:
    """Measure `read_slices` (s)."""
    return lambda: {"read_slices_s": time_run(lambda: read_slices(task), task.device)}


def build_duplicate_search(task: Task) -> Measure:
    """Measure the search for duplicates and the numbering of duplicate sets and groups (s)."""
    thumbnails = collect_thumbnails(read_slices(task))

    def search() -> object:
        return find_duplicates(thumbnails).cluster()

    return lambda: {"find_duplicates_s": time_run(search, task.device)}


def build_cache(task: Task) -> Measure:
    """Measure decoding all slices into a new pixel cache (s)."""

    def measure() -> Figures:
        with tempfile.TemporaryDirectory(dir=task.work) as folder:

            def build() -> object:
                return open_pixels(task.distinct, Path(folder), task.config.image_size)

            return {"build_cache_s": time_run(build, task.device)}

    return measure


def build_inference(task: Task) -> Measure:
    """Measure fp32 predictions (images/s): from files without a cache, and from the device.

    The second covers pixels on the device to logits on the CPU: an upper bound for the first.
    """
    network = task.build_network()

    def predict(slices: SliceSource) -> object:
        return predict_logits(network, slices.iterate(task.config.batch_size))

    def predict_files() -> None:
        with tempfile.TemporaryDirectory(dir=task.work) as folder:
            predict(task.take_slices(task.n_short_steps, Path(folder)))

    def measure() -> Figures:
        slices = task.take_slices(task.n_short_steps)
        files_s = time_run(predict_files, task.device)
        device_s = time_run(lambda: predict(slices), task.device)
        return {
            "files_images_per_s": len(slices) / files_s,
            "inference_images_per_s": len(slices) / device_s,
        }

    return measure
