"""Measure how the cost of the duplicate search grows with the number of slices.

    python -m experiments.duplicate_scaling DATA [DATA …] --sizes 5000 20000 100000 --json FILE

A tenth of the slices are originals: slices of the prepared folders and phantoms, in the same shares
at each size, drawn at random, one of each duplicate set. Two folders must not show the same slices,
as the published set and that of Cheng et al. do. The others are altered copies of the originals
(planted_duplicates.py). For each size the search is run from the start, saved, loaded, and
continued with ten more copies.
"""

import argparse
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from common.machine import read_peak_memory_mib
from common.row_file import RowFile, StoredMapping, StoredRow
from duplicates.finder import find_duplicates
from duplicates.neighbours import Neighbours, build_vectors, find_within
from duplicates.result_file import load_duplicates, save_duplicates
from duplicates.retrieval import propose_neighbours
from duplicates.sift_features import THUMBNAIL_PX, load_vocabulary
from experiments import cli
from experiments.planted_duplicates import measure_planted, plant_duplicate
from helper import UserError
from imaging.grayscale import resize_grey
from imaging.reader import read_grey
from phantoms.generator import PhantomPlan, plan_phantoms, render_phantom
from preparation.manifest import load_manifest

T = TypeVar("T")
SIDE_PX = 256  # of the pictures that copies are made of
COPIES = 9  # of each original
N_NEW = 10
GROWING = ("search_s", "cpu_s", "neighbours_s", "pairs", "pairs_of_neighbours")


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = cli.build_parser("duplicate_scaling", __doc__)
    parser.add_argument("data", type=Path, nargs="+", help="prepared folders without common slices")
    parser.add_argument("--sizes", type=int, nargs="+", default=[5000, 20000, 100000])
    parser.add_argument(
        "--real-share",
        type=float,
        help="share of real slices among the originals (default: what the largest size allows)",
    )
    return cli.run(measure, parser.parse_args(argv))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Search each number of slices; print and return the costs and their growth."""
    real = list_real(options.data)
    sizes, share = sorted(set(options.sizes)), options.real_share
    if count_originals(sizes[0]) < 2:
        raise UserError(
            f"--sizes {sizes[0]}: too few to compare originals; give {2 + COPIES} or more"
        )
    n_most = count_originals(sizes[-1])
    if share is None:
        share = min(1.0, len(real) / n_most)
    if not 0 <= share <= 1 or round(share * n_most) > len(real):
        raise UserError(
            f"--real-share {share}: give a share from 0 to 1; {sizes[-1]} slices have {n_most} "
            f"originals, and the folders have {len(real)} duplicate sets"
        )
    rows = []
    for n_slices in sizes:
        n_originals = count_originals(n_slices)
        rows.append(measure_size(real[: round(share * n_originals)], n_originals, n_slices))
        print(rows[-1], flush=True)
    growth = [
        {key: measure_growth(small, large, key) for key in GROWING}
        for small, large in itertools.pairwise(rows)
    ]
    print("growth exponents:", growth)
    return {
        **{"copies_of_each": COPIES, "real_share": share},
        **{"rows": rows, "growth_exponents": growth},
    }


def count_originals(n_slices: int) -> int:
    """Return how many of a number of slices are no copies."""
    return -(-n_slices // (1 + COPIES))


def measure_size(real: Sequence[Path], n_originals: int, n_slices: int) -> dict[str, Any]:
    """Search among a number of slices; return the costs and the share of copies found.

    Args:
        real: Files of real slices; phantoms are added to make `n_originals`.
        n_originals: Slices that are no copies.
        n_slices: All slices.
    """
    rows = make_thumbnails(real, n_originals, n_slices + N_NEW)
    thumbnails = StoredMapping(dict(itertools.islice(rows.items(), n_slices)))
    start, start_cpu = time.perf_counter(), time.process_time()
    found = find_duplicates(thumbnails)
    search_s, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    peak_mib = read_peak_memory_mib()  # of this size, as the sizes rise
    start = time.perf_counter()
    vectors = build_vectors(found.features.words, len(load_vocabulary()))
    find_within(vectors, Neighbours.build_empty(n_slices))
    neighbours_s = time.perf_counter() - start
    names = list(rows)
    originals = {name: names[row % n_originals] for row, name in enumerate(names[n_originals:])}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "duplicates.npz"
        save_duplicates(found, path)
        size_mib = path.stat().st_size / 2**20
        start = time.perf_counter()
        known = load_duplicates(path)
        load_s = time.perf_counter() - start
    start = time.perf_counter()
    continued = find_duplicates(StoredMapping(rows), known)
    continued_s = time.perf_counter() - start
    return {
        "slices": n_slices,
        "originals": n_originals,
        "real": len(real),
        "search_s": search_s,
        "cpu_s": cpu_s,
        "neighbours_s": neighbours_s,
        "pairs": len(found.compared.scores),
        "pairs_of_neighbours": len(propose_neighbours(found.neighbours)),
        "peak_memory_mib": peak_mib,
        "file_mib": size_mib,
        "load_s": load_s,
        f"continued_with_{N_NEW}_s": continued_s,
        **measure_planted(continued, originals),
    }


def make_thumbnails(real: Sequence[Path], n_originals: int, n_slices: int) -> dict[str, StoredRow]:
    """Return thumbnails by name: the originals, then copies of one after the other."""
    pictures = RowFile((SIDE_PX, SIDE_PX), np.uint8)
    for path in real:
        pictures.append(resize_grey(read_grey(path), SIDE_PX))
    for plan in plan_originals(n_originals - len(real)):
        pictures.append(resize_grey(render_phantom(plan)[0], SIDE_PX))
    thumbnails = RowFile((THUMBNAIL_PX, THUMBNAIL_PX), np.uint8)
    rows = {}
    for number in tqdm(range(n_slices), "slices", unit="slice", disable=None):
        picture = pictures.read(number % n_originals)
        if number >= n_originals:
            picture = plant_duplicate(picture, np.random.default_rng(number))
        place = thumbnails.append(resize_grey(picture, THUMBNAIL_PX))
        rows[f"{number:06d}"] = StoredRow(thumbnails, place)
    return rows


def list_real(folders: Sequence[Path]) -> list[Path]:
    """Return the file of one slice of each duplicate set of the folders, in random order."""
    paths = []
    for folder in folders:
        frame = load_manifest(folder)
        first = frame[frame["width"] > 0].drop_duplicates("duplicate_set")
        paths += [folder / path for path in first["path"]]
    return shuffle(paths)


def plan_originals(n_phantoms: int) -> list[PhantomPlan]:
    """Return plans of phantoms of different duplicate sets, in random order."""
    # fewer than half of the planned phantoms are copies; no fewer than 6 can be planned
    plans = plan_phantoms(2 * n_phantoms + 6, seed=0)
    return shuffle([plan for plan in plans if not plan.is_duplicate])[:n_phantoms]


def shuffle(items: list[T]) -> list[T]:
    """Return the items in an order that is random and always the same."""
    return [items[place] for place in np.random.default_rng(0).permutation(len(items))]


def measure_growth(small: dict[str, Any], large: dict[str, Any], key: str) -> float:
    """Return the exponent of the growth of a cost with the number of slices."""
    return math.log(large[key] / small[key]) / math.log(large["slices"] / small["slices"])


if __name__ == "__main__":
    sys.exit(main())
