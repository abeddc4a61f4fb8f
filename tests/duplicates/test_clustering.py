"""Duplicate sets and groups of small graphs worked out by hand."""

from typing import Any

import numpy as np
import pytest

from duplicates import clustering
from duplicates.clustering import PATIENT_IMAGES, cluster_duplicates, cluster_groups, connect


def make_clique(first: int, size: int) -> np.ndarray:
    return np.stack(np.triu_indices(size, 1), axis=1) + first


def test_scores_decide_between_duplicates_and_groups() -> None:
    pairs = np.array([[0, 1], [1, 2], [3, 4], [4, 5]])
    scores = np.array([30, 29, 12, 11])
    assert cluster_duplicates(pairs, scores, 6).tolist() == [0, 0, 1, 2, 3, 4]
    assert cluster_groups(pairs, scores, 6).tolist() == [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize(("size", "n_groups"), [(40, 2), (20, 1)])
def test_only_a_large_group_is_divided_at_its_weak_link(size: int, n_groups: int) -> None:
    cliques = make_clique(0, size), make_clique(size, size)
    pairs = np.concatenate([*cliques, [[0, size]]])
    scores = np.append(np.full(2 * len(cliques[0]), 20), 12)
    groups = cluster_groups(pairs, scores, 2 * size)
    assert len(set(groups)) == n_groups
    assert len(set(groups[:size])) == len(set(groups[size:])) == 1


def test_a_long_chain_is_divided_but_never_a_duplicate_set() -> None:
    chain = np.stack([np.arange(99), np.arange(1, 100)], axis=1)
    sizes = np.bincount(cluster_groups(chain, np.full(99, 14), 100))
    assert 10 < sizes.min() <= sizes.max() <= PATIENT_IMAGES  # single linkage cuts off single nodes
    duplicates = make_clique(0, PATIENT_IMAGES + 20)
    assert not cluster_groups(duplicates, np.full(len(duplicates), 40), PATIENT_IMAGES + 20).any()


def test_connect_passes_32_bit_nodes_to_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    original, dtypes = clustering.connected_components, list[Any]()

    def spy(graph: Any, directed: bool) -> Any:
        dtypes.extend((graph.row.dtype, graph.col.dtype))
        return original(graph, directed=directed)

    monkeypatch.setattr(clustering, "connected_components", spy)
    assert connect(np.array([[0, 3], [1, 2]], np.int64), 5).tolist() == [0, 1, 1, 0, 2]
    assert dtypes == [np.int32, np.int32]  # scipy 1.11 connects nothing with 64 bits
