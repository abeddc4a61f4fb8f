"""The search for similar slices, against one that compares all pairs without blocks."""

from typing import Any

import numpy as np
import pytest

from duplicates import neighbours
from duplicates.neighbours import (
    NEIGHBOURS,
    NO_CODE,
    Neighbours,
    build_vectors,
    find_between,
    find_within,
)

N_WORDS = 40


def draw_words(n_slices: int, seed: int = 0) -> np.ndarray:
    """Return few words each, so that many similarities are equal, and slices without words."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0, N_WORDS, (n_slices, 6)).astype(np.int16)
    words[rng.random(words.shape) < 0.3] = -1
    words[:: n_slices // 7] = -1
    return words


def rank_all(first: np.ndarray, second: np.ndarray, *, is_same: bool) -> list[list[int]]:
    """Return the codes of the neighbours of each slice by sorting all products."""
    left, right = (build_vectors(each, N_WORDS).toarray().astype(int) for each in (first, second))
    half = N_WORDS // 2
    mirrored = np.concatenate([right[:, half:], right[:, :half]], axis=1)
    products = np.stack([left @ right.T, left @ mirrored.T], axis=-1)  # [A, B, 2]
    if is_same:
        products[np.arange(len(left)), np.arange(len(left))] = 0
    ranked = []
    for row in products.reshape(len(left), -1):
        order = np.argsort(-row, kind="stable")[:NEIGHBOURS]
        ranked.append(order[row[order] > 0].tolist())
    return ranked


def list_codes(table: Neighbours) -> list[list[int]]:
    return [row[row != NO_CODE].tolist() for row in table.codes]


@pytest.fixture(params=[7, 64, 4096])
def _block_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "ROWS_AT_ONCE", request.param)


@pytest.mark.usefixtures("_block_size")
@pytest.mark.parametrize("n_slices", [8, 150])
def test_blocks_find_what_all_pairs_have(n_slices: int) -> None:
    words = draw_words(n_slices)
    table = find_within(build_vectors(words, N_WORDS), Neighbours.build_empty(n_slices))
    assert list_codes(table) == rank_all(words, words, is_same=True)


@pytest.mark.usefixtures("_block_size")
def test_two_sets_are_compared_with_each_other_alone() -> None:
    first, second = draw_words(60), draw_words(90, seed=1)
    table = find_between(build_vectors(first, N_WORDS), build_vectors(second, N_WORDS))
    assert list_codes(table) == rank_all(first, second, is_same=False)


@pytest.mark.usefixtures("_block_size")
@pytest.mark.parametrize("seed", range(5))
def test_a_continued_search_has_the_result_of_a_new_one(seed: int) -> None:
    """Some slices are new, some are gone, some stay."""
    rng = np.random.default_rng(seed)
    words = draw_words(160, seed)
    before, after = (np.flatnonzero(rng.random(160) < 0.8) for _ in range(2))
    known = find_within(build_vectors(words[before], N_WORDS), Neighbours.build_empty(len(before)))
    row_of = np.full(160, -1)
    row_of[after] = np.arange(len(after))
    start = known.translate(row_of[before], len(after))
    vectors = build_vectors(words[after], N_WORDS)
    continued = find_within(vectors, start)
    anew = find_within(vectors, Neighbours.build_empty(len(after)))
    assert np.array_equal(continued.codes, anew.codes)
    assert np.array_equal(continued.similarity, anew.similarity)


def test_only_open_slices_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    words = draw_words(100)
    words[words[:, 0] < 0, 0] = 1  # no slice is without a word
    vectors = build_vectors(words, N_WORDS)
    known = find_within(vectors[:95], Neighbours.build_empty(95))
    sizes, multiply = [], neighbours._multiply

    def count(first, second):  # type: ignore[no-untyped-def]
        sizes.append(first.shape[0])
        return multiply(first, second)

    monkeypatch.setattr(neighbours, "_multiply", count)
    find_within(vectors, known.translate(np.arange(95), 100))
    assert sizes == [5]


def test_a_row_that_is_filled_meanwhile_loses_no_better_neighbour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another thread fills a row between the reading of its last similarity and of its code."""
    table, partition = Neighbours.build_empty(1), np.partition

    def fill_first(*arguments: Any, **options: Any) -> np.ndarray:
        table.codes[0], table.similarity[0] = np.arange(NEIGHBOURS), 50
        return partition(*arguments, **options)

    monkeypatch.setattr(np, "partition", fill_first)
    columns, similarity = np.arange(100, 300), np.full((1, 200), 60, np.float32)
    offers = neighbours._choose(table, np.zeros(1, int), columns, similarity, 0)
    neighbours._add(table, offers)
    assert list_codes(table) == [list(range(200, 200 + 2 * NEIGHBOURS, 2))]


def test_products_are_whole_numbers_that_float32_holds() -> None:
    """The longest vectors: all words are different, and rounded up."""
    words = np.arange(200, dtype=np.int16)[None]
    vectors = build_vectors(words, 400).toarray().astype(int)
    assert 2 * (vectors**2).sum() < 2**24
    one = build_vectors(np.zeros((1, 200), np.int16), 400).toarray().astype(int)
    assert 2 * (one**2).sum() < 2**24
