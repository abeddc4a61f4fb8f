"""One duplicate search of another project, run in the environment where it is installed.

    python -m experiments.rivals.search NAME FOLDER FILE [WEIGHTS]

Searches the images of FOLDER (no subfolders) and writes FILE: the pairs of names that are called
duplicates, with a score that rises with the similarity, and the seconds that the search took.
Imports nothing of this project, so the environment needs only the other package.
"""

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Pairs = list[tuple[str, str, float]]


def hash_images(method: str, folder: Path, weights: str) -> Pairs:
    """Imagededup with a perceptual or difference hash; up to 10 of 64 bits differ (its default)."""
    del weights
    from imagededup import methods

    hasher = getattr(methods, method)()
    found = hasher.find_duplicates(image_dir=str(folder), scores=True, max_distance_threshold=10)
    return [(name, other, -bits) for name, rest in found.items() for other, bits in rest]


def embed_images(folder: Path, weights: str) -> Pairs:
    """Imagededup with MobileNetV2 features; cosine of 0.9 or more (its default)."""
    import torch
    from imagededup.methods import CNN
    from imagededup.utils import CustomModel
    from torchvision.models import mobilenet_v2
    from torchvision.transforms import v2

    network = mobilenet_v2()
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.classifier = torch.nn.Identity()
    transform = v2.Compose(
        [
            v2.Resize((224, 224)),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    model = CustomModel(name="mobilenet_v2", model=network.eval(), transform=transform)
    found = CNN(model_config=model).find_duplicates(
        image_dir=str(folder), scores=True, min_similarity_threshold=0.9
    )
    return [(name, other, float(cosine)) for name, rest in found.items() for other, cosine in rest]


def search_fastdup(folder: Path, weights: str) -> Pairs:
    """fastdup, free version, its own features and default threshold."""
    del weights
    import fastdup

    with tempfile.TemporaryDirectory() as work:
        search = fastdup.create(work_dir=work, input_dir=str(folder))
        search.run(ccthreshold=0.9, overwrite=True, print_summary=False)
        table = search.similarity()
    names = zip(table["filename_from"], table["filename_to"], table["distance"], strict=True)
    return [(Path(a).name, Path(b).name, float(score)) for a, b, score in names]


def search_cleanvision(folder: Path, weights: str) -> Pairs:
    """cleanvision: exact and near duplicates, default threshold; all pairs of a set."""
    del weights
    from cleanvision import Imagelab

    lab = Imagelab(data_path=str(folder))
    lab.find_issues({"exact_duplicates": {}, "near_duplicates": {}}, verbose=False)
    kinds = ("exact_duplicates", "near_duplicates")
    sets = itertools.chain.from_iterable(lab.info[kind]["sets"] for kind in kinds)
    return [
        (Path(first).name, Path(second).name, 1.0)
        for each in sets
        for first, second in itertools.combinations(each, 2)
    ]


SEARCHES: dict[str, Callable[[Path, str], Pairs]] = {
    "imagededup pHash": lambda folder, weights: hash_images("PHash", folder, weights),
    "imagededup dHash": lambda folder, weights: hash_images("DHash", folder, weights),
    "imagededup MobileNetV2": embed_images,
    "fastdup": search_fastdup,
    "cleanvision": search_cleanvision,
}


def main(name: str, folder: str, output: str, weights: str = "") -> None:
    """Run one search and write its pairs."""
    start = time.perf_counter()
    pairs = SEARCHES[name](Path(folder), weights)
    seconds = time.perf_counter() - start
    best: dict[tuple[str, str], float] = {}
    for first, second, score in pairs:
        key = (min(first, second), max(first, second))
        best[key] = max(score, best.get(key, score))
    result: dict[str, Any] = {"seconds": seconds, "pairs": [[*key, best[key]] for key in best]}
    Path(output).write_text(json.dumps(result), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
