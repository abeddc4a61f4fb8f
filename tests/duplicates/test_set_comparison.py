"""The comparison of two sets of slices."""

import numpy as np
import pytest

from duplicates import set_comparison
from duplicates.clustering import DUPLICATE_SCORE
from duplicates.finder import Duplicates, find_duplicates
from duplicates.set_comparison import compare_sets
from duplicates.sift_features import THUMBNAIL_PX
from experiments.planted_duplicates import plant_duplicate
from imaging.grayscale import resize_grey

N_PLANTED = 12


def plant(thumbnails: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    pictures = [np.kron(thumbnails[name], np.ones((2, 2), np.uint8)) for name in sorted(thumbnails)]
    planted = [plant_duplicate(picture, rng) for picture in pictures[:N_PLANTED]]
    return {
        f"planted {number:02d}": resize_grey(picture, THUMBNAIL_PX)
        for number, picture in enumerate(planted)
    }


def test_planted_copies_are_found(found: Duplicates, thumbnails: dict[str, np.ndarray]) -> None:
    planted = find_duplicates(plant(thumbnails))
    compared = compare_sets(planted, found)
    best = compared.scores >= DUPLICATE_SCORE
    linked = {tuple(pair) for pair in compared.pairs[best, :2].tolist()}
    assert {(number, number) for number in range(N_PLANTED)} <= linked
    assert compared.pairs[:, 0].max() < N_PLANTED
    assert compared.pairs[:, 1].max() < len(found.digests)
    # each result is that of a search in all slices at once
    together = find_duplicates(
        {f"a {name}": pixels for name, pixels in plant(thumbnails).items()}
        | {f"b {name}": pixels for name, pixels in thumbnails.items()}
    )
    offset = np.array([0, N_PLANTED, 0])
    scores = {
        tuple(pair): score
        for pair, score in zip(
            together.compared.pairs.tolist(), together.compared.scores, strict=True
        )
    }
    shared = [
        (scores.get(tuple(pair)), score)
        for pair, score in zip((compared.pairs + offset).tolist(), compared.scores, strict=True)
    ]
    assert sum(one is not None for one, _ in shared) > 100
    assert all(one in (None, other) for one, other in shared)


def test_slices_that_a_third_one_links_are_compared(
    found: Duplicates, thumbnails: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = plant(thumbnails)
    picture = np.kron(thumbnails[min(thumbnails)], np.ones((2, 2), np.uint8))
    copies["planted 00, again"] = resize_grey(
        plant_duplicate(picture, np.random.default_rng(6)), THUMBNAIL_PX
    )
    planted = find_duplicates(copies)
    for first, second, pair in ((planted, found, [1, 0]), (found, planted, [0, 1])):
        start = np.array([[0, len(first.digests), flip] for flip in (0, 1)])  # the first copy alone
        monkeypatch.setattr(set_comparison, "propose_neighbours_between", lambda *_, s=start: s)
        compared = compare_sets(first, second)
        linked = compared.pairs[compared.scores >= DUPLICATE_SCORE, :2].tolist()
        assert [0, 0] in linked
        assert pair in linked


def test_sets_without_slices(found: Duplicates) -> None:
    nothing = found.restrict([])
    assert not len(compare_sets(nothing, found).scores)
    assert not len(compare_sets(found, nothing).scores)


def test_a_restricted_result_holds_its_own_slices_alone(found: Duplicates) -> None:
    chosen = found.digests[::3]
    part = found.restrict(reversed(chosen))
    assert part.digests == chosen
    assert np.array_equal(part.features.points, found.features.points[::3])
    links = found.to_frame()
    inside = links["first"].isin(chosen) & links["second"].isin(chosen)
    assert inside.any()
    assert part.to_frame().equals(links[inside].reset_index(drop=True))
