"""Duplicate sets and groups of small graphs worked out by hand."""

import itertools
from typing import Any

import numpy as np
import pytest

from duplicates import clustering
from duplicates.clustering import (
    GROUP_SCORE,
    MEAN_SCORE,
    STRONG_SCORE,
    cluster_duplicates,
    cluster_groups,
    connect,
)


def make_clique(first: int, size: int) -> np.ndarray:
    return np.stack(np.triu_indices(size, 1), axis=1) + first


def test_scores_decide_between_duplicates_and_groups() -> None:
    pairs = np.array([[0, 1], [1, 2], [3, 4], [4, 5]])
    scores = np.array([30, 29, 12, 11])
    assert cluster_duplicates(pairs, scores, 6).tolist() == [0, 0, 1, 2, 3, 4]
    assert cluster_groups(pairs, scores, 6).tolist() == [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize("size", [2, 6, 40])
def test_weak_links_join_parts_by_their_share_whatever_the_size(size: int) -> None:
    """Of the pairs between two parts, a quarter must have a link of the least score."""
    cliques = make_clique(0, size), make_clique(size, size)
    between = np.stack(np.divmod(np.arange(size * size), size), axis=1) + np.array([0, size])
    for n_links, n_groups in ((size * size // 4, 1), (size * size // 4 - 1, 2)):
        pairs = np.concatenate([*cliques, between[:n_links]])
        scores = np.append(np.full(2 * len(cliques[0]), 19), np.full(n_links, GROUP_SCORE))
        groups = cluster_groups(pairs, scores, 2 * size)
        assert len(set(groups[:size])) == len(set(groups[size:])) == 1
        assert len(set(groups)) == n_groups


def test_strong_links_are_never_cut() -> None:
    n_images = 300
    chain = np.stack([np.arange(n_images - 1), np.arange(1, n_images)], axis=1)
    assert not cluster_groups(chain, np.full(n_images - 1, STRONG_SCORE), n_images).any()
    weak = cluster_groups(chain, np.full(n_images - 1, STRONG_SCORE - 1), n_images)
    assert len(set(weak)) > 10


def test_images_of_a_patient_or_series_are_one_group_without_links() -> None:
    patients = ["a"] * 155 + [""] * 155 + ["b"]
    series = [""] * 155 + ["s"] * 155 + [""]
    groups = cluster_groups(np.zeros((0, 2), int), np.zeros(0, int), 311, patients, series)
    assert groups.tolist() == [0] * 155 + [1] * 155 + [2]


def test_weak_links_never_join_two_known_patients() -> None:
    pairs, patients = make_clique(0, 3), ["a", "", "b"]
    assert len(set(cluster_groups(pairs, np.full(3, 19), 3, patients))) == 2
    assert len(set(cluster_groups(pairs, np.full(3, 19), 3, ["a", "", ""]))) == 1
    assert len(set(cluster_groups(pairs, np.full(3, STRONG_SCORE), 3, patients))) == 1


@pytest.mark.parametrize("seed", range(30))
def test_known_patients_are_neither_divided_nor_chained(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_images = int(rng.integers(2, 60))
    pairs = rng.integers(0, n_images, (int(rng.integers(0, 150)), 2))
    scores = rng.integers(8, STRONG_SCORE, len(pairs))
    patients = rng.choice(["", "", "a", "b", "c", "d"], n_images)
    groups = cluster_groups(pairs, scores, n_images, patients.tolist())
    is_known = patients != ""
    pairs_of_names = np.unique(np.stack([groups[is_known], patients[is_known]]), axis=1)
    assert pairs_of_names.shape[1] == len(set(patients[is_known]))
    assert len(set(pairs_of_names[0])) == len(set(pairs_of_names[1]))


def test_connect_passes_32_bit_nodes_to_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    original, dtypes = clustering.connected_components, list[Any]()

    def spy(graph: Any, directed: bool) -> Any:
        dtypes.extend((graph.row.dtype, graph.col.dtype))
        return original(graph, directed=directed)

    monkeypatch.setattr(clustering, "connected_components", spy)
    assert connect(np.array([[0, 3], [1, 2]], np.int64), 5).tolist() == [0, 1, 1, 0, 2]
    assert dtypes == [np.int32, np.int32]  # scipy 1.11 connects nothing with 64 bits


def join_by_all_pairs(pairs: np.ndarray, scores: np.ndarray, patients: list[str]) -> list[int]:
    """Return the smallest image of each one's group, by comparing all pairs of parts each time."""
    best = np.zeros((len(patients), len(patients)))
    np.maximum.at(best, (pairs[:, 0], pairs[:, 1]), scores)
    best = np.maximum(best, best.T)
    parts = {image: [image] for image in range(len(patients))}
    while True:
        means = [
            (-best[np.ix_(parts[a], parts[b])].mean(), a, b)
            for a, b in itertools.combinations(sorted(parts), 2)
            if sum(patients[image] != "" for image in parts[a] + parts[b]) < 2
        ]
        mean, kept, joined = min(means, default=(0, 0, 0))
        if -mean < MEAN_SCORE:
            root_of = {image: root for root, images in parts.items() for image in images}
            return [root_of[image] for image in range(len(patients))]
        parts[kept] += parts.pop(joined)


@pytest.mark.parametrize("seed", range(20))
def test_parts_are_those_of_average_linkage(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_images, n_links = int(rng.integers(2, 25)), int(rng.integers(1, 120))
    pairs = rng.integers(0, n_images, (n_links, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    scores = rng.integers(GROUP_SCORE, STRONG_SCORE, len(pairs))
    names = [f"patient {image}" if rng.random() < 0.2 else "" for image in range(n_images)]
    groups = cluster_groups(pairs, scores, n_images, names)
    truth = np.array(join_by_all_pairs(pairs, scores, names))
    assert groups.tolist() == np.unique(truth, return_inverse=True)[1].tolist()
