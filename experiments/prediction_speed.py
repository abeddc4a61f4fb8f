"""How fast a folder is judged from its files, beside the network's own arithmetic.

    python -m experiments.prediction_speed --data data --json results/benchmarks/from_files.json

The limit is fp32 from pixels that lie on the device to logits and embeddings. Beside it stands what
predict.py does with every file of data/Images: find it, read, turn, resize, judge, look for the
nearest training slices. The network is untrained: its weights do not enter its speed.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

import dataset
import helper
import model
from benchmarking.rounds import (
    Figures,
    divide_rounds,
    find_median,
    find_spread,
    measure_in_turn,
    time_run,
)
from common.atomic_files import write_json
from experiments.cli import describe_machine
from helper import log, run_verb
from inference import image_stream
from inference.predictor import Member, PreprocessedSlice, SliceClassifier
from modeling import activation_stats, precision
from predict import BATCH_SIZE

N_REFERENCE = 1500  # about as many distinct training slices as the published set has


def build_classifier(name: str, image_size: int, device: torch.device) -> SliceClassifier:
    """A network that has learnt nothing, with random embeddings to be compared with."""
    classes = ["Glioma", "Menin", "Tumor"]
    network = model.build_model(name, len(classes), image_size).eval()
    noise = torch.randint(0, 256, (BATCH_SIZE, 1, image_size, image_size), dtype=torch.uint8)
    with activation_stats.watch_layers(network) as watch:
        embeddings = model.infer(network, [noise])[1]
    width = watch.collect().shape[1]
    reference = {
        "sha256": [""] * N_REFERENCE,
        "labels": [classes[0]] * N_REFERENCE,
        "threshold": 1.0,
        "embeddings": torch.randn(N_REFERENCE, embeddings.shape[1]),
        "statistics": torch.randn(N_REFERENCE, width),
        "mean": torch.zeros(width),
        "deviation": torch.ones(width),
    }
    kept = {"classes": classes, "phantom": False, "reference": reference}
    return SliceClassifier([Member(Path(name), network.to(device), kept)])


def study(options: argparse.Namespace) -> None:
    """Measure in turn, print the figures, and write them where asked to."""
    precision.keep_freed_memory()
    device = helper.resolve_device(options.device)
    classifier = build_classifier(options.model, options.image_size, device)
    files = [options.data / path for path in dataset.load_table(options.data)["path"]]
    files = files[:: max(1, len(files) // options.slices)] if options.slices else files
    pixels = torch.from_numpy(
        np.random.default_rng(0).integers(
            0, 256, (BATCH_SIZE, 1, options.image_size, options.image_size), dtype=np.uint8
        )
    ).to(device)
    n_batches = -(-len(files) // BATCH_SIZE)

    def judge_memory() -> None:
        model.infer(classifier.members[0].network, [pixels] * n_batches)

    def judge_files() -> None:
        for batch in image_stream.read_batches(
            files, classifier.preprocess, BATCH_SIZE, overlap=device.type != "cpu"
        ):
            preprocessed: list[PreprocessedSlice] = [
                one.made for one in batch if one.made is not None
            ]
            classifier.judge(preprocessed)

    def measure_limit() -> Figures:
        return {"limit_images_per_s": n_batches * BATCH_SIZE / time_run(judge_memory, device)}

    def measure_files() -> Figures:
        return {"files_images_per_s": len(files) / time_run(judge_files, device)}

    rounds = measure_in_turn({"limit": measure_limit, "files": measure_files}, options.repeats)
    ratios = divide_rounds(rounds["files_images_per_s"], rounds["limit_images_per_s"])
    log.info(
        "%s at %d px, %d files: %.1f of %.1f images/s; files / limit %.3f [%.3f, %.3f]",
        *(options.model, options.image_size, len(files)),
        *(find_median(rounds["files_images_per_s"]), find_median(rounds["limit_images_per_s"])),
        *(find_median(ratios), *find_spread(ratios)),
    )
    if options.json:
        figures = {"n_files": len(files), **rounds, "files_over_limit": ratios}
        write_json(options.json, {**figures, "environment": describe_machine()})


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="experiments.prediction_speed", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="prepared folder")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--image-size", type=int, default=224, help="px")
    parser.add_argument("--slices", type=int, default=0, help="about as many; 0: all")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    return run_verb(study, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
