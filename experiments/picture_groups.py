"""Compare the links and groups that the duplicate search finds with the true patients.

    python -m experiments.picture_groups data data/phantom --json FILE

Each folder is prepared and its patients are known. The first table gives the share of the links of
each score that connect slices of one patient. The second compares criteria for groups: precision is
the share of the pairs of slices in one group that are of one patient, recall the share of the pairs
of slices of one patient that are in one group.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from duplicates.clustering import GROUP_SCORE, STRONG_SCORE, cluster_groups, connect
from duplicates.finder import find_duplicates
from duplicates.registration import Registrations
from duplicates.result_file import load_duplicates
from duplicates.sift_features import MAX_KEYPOINTS
from experiments import cli
from experiments.known_patients import load_patients
from preparation.manifest import collect_thumbnails, measure_present

SCORES = (12, 14, 16, 18, 20, 25, 30, 40)  # lower ends
Groups = npt.NDArray[np.intp]


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = cli.build_parser("picture_groups", __doc__)
    parser.add_argument("data", type=Path, nargs="+", help="prepared folders with known patients")
    return cli.run(measure, parser.parse_args(argv))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Compare links and groups with the patients of each folder."""
    return {"folders": {folder.name: measure_folder(folder) for folder in options.data}}


def measure_folder(folder: Path) -> dict[str, Any]:
    """Return the figures of one folder and print them as tables."""
    slices = load_patients(folder).drop_duplicates("sha256").set_index("sha256")
    found = load_duplicates(folder / "cache" / "duplicates.npz")
    if found is None:  # phantoms are prepared without a search
        found = find_duplicates(collect_thumbnails(measure_present(folder)))
    patients = slices.loc[found.digests, "patient"].to_numpy(dtype=str)
    links = found.links()
    by_score = count_links(links, patients)
    n_images = len(patients)
    criteria: dict[str, Callable[[], Groups]] = {
        f"links of {score} and more": lambda score=score: connect(  # type: ignore[misc]
            links.pairs[links.scores >= score, :2], n_images
        )
        for score in (30, STRONG_SCORE, GROUP_SCORE)
    }
    criteria["average linkage"] = lambda: cluster_groups(links.pairs[:, :2], links.scores, n_images)
    criteria["average linkage, patients known"] = lambda: cluster_groups(
        links.pairs[:, :2], links.scores, n_images, patients.tolist()
    )
    groups = {name: compare_groups(make(), patients) for name, make in criteria.items()}
    print(f"{folder}: {n_images} distinct files of {len(set(patients))} patients")
    print("| score | links | of one patient |\n|---|---|---|")
    for row in by_score:
        share = "" if row["of_one_patient"] is None else f"{row['of_one_patient']:.3f}"
        print(f"| {row['least']} to {row['most']} | {row['links']} | {share} |")
    print("| groups by | recall | precision | groups | largest |\n|---|---|---|---|---|")
    for name, row in groups.items():
        print(
            f"| {name} | {row['recall']:.3f} | {row['precision']:.3f} | {row['n_groups']} | "
            f"{row['largest']} |"
        )
    return {
        "n_images": n_images,
        "n_patients": len(set(patients)),
        "links": by_score,
        "groups": groups,
    }


def count_links(links: Registrations, patients: npt.NDArray[np.str_]) -> list[dict[str, Any]]:
    """Return the number of links in each band of SCORES, and the share within one patient."""
    is_one = patients[links.pairs[:, 0]] == patients[links.pairs[:, 1]]
    rows = []
    for least, end in zip(SCORES, (*SCORES[1:], MAX_KEYPOINTS + 1), strict=True):
        is_inside = (links.scores >= least) & (links.scores < end)
        share = float(is_one[is_inside].mean()) if is_inside.any() else None
        n_links = int(is_inside.sum())
        rows.append({"least": least, "most": end - 1, "links": n_links, "of_one_patient": share})
    return rows


def compare_groups(groups: Groups, patients: npt.NDArray[np.str_]) -> dict[str, Any]:
    """Return recall and precision of the pairs of slices in one group, against one patient."""
    codes = np.unique(patients, return_inverse=True)[1]
    sizes = np.bincount(groups)
    both = np.unique(np.stack([groups, codes]), axis=1, return_counts=True)[1]
    n_hits, n_grouped, n_true = (
        float((counts * (counts - 1.0) / 2).sum()) for counts in (both, sizes, np.bincount(codes))
    )
    return {
        "recall": n_hits / n_true if n_true else 1.0,
        "precision": n_hits / n_grouped if n_grouped else 1.0,
        "n_groups": len(sizes),
        "largest": int(sizes.max()),
        "largest_share": float(sizes.max() / len(patients)),
    }


if __name__ == "__main__":
    sys.exit(main())
