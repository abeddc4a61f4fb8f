"""The duplicate search: what it finds, what must not affect it, and that it is repeatable."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from duplicates import finder, neighbours, registration, result_file, retrieval
from duplicates.clustering import DUPLICATE_SCORE
from duplicates.finder import Duplicates, find_duplicates
from duplicates.result_file import load_duplicates, save_duplicates
from duplicates.sift_features import THUMBNAIL_PX
from experiments.planted_duplicates import (
    measure_ids,
    measure_planted,
    plant_duplicate,
    plant_duplicates,
)
from imaging.grayscale import resize_grey
from imaging.reader import read_grey
from preparation.sources import open_source

N_PLANTED = 20


def assert_same(first: Duplicates, second: Duplicates) -> None:
    assert first.digests == second.digests
    pd.testing.assert_frame_equal(first.to_frame(), second.to_frame())
    assert first.cluster() == second.cluster()
    for name, array in vars(first.compared).items():
        assert np.array_equal(array, getattr(second.compared, name)), name


def test_planted_duplicates_are_found(
    phantom_dir: Path, frame: pd.DataFrame, thumbnails: dict[str, np.ndarray], found: Duplicates
) -> None:
    planted = list(plant_duplicates(frame, phantom_dir, N_PLANTED, seed=3))
    originals = {name: digest for name, digest, _ in planted}
    pictures = thumbnails | {name: picture for name, _, picture in planted}
    figures = measure_planted(find_duplicates(pictures, found), originals)
    assert set(figures.values()) == {1.0}


def test_true_duplicates_of_phantoms_share_a_set(found: Duplicates, frame: pd.DataFrame) -> None:
    duplicate_sets, groups = found.cluster()
    truth = {name: dict(zip(frame["sha256"], frame[name], strict=True)) for name in frame}
    assert measure_ids(duplicate_sets, truth["duplicate_set"])["recall"] >= 0.95
    assert measure_ids(duplicate_sets, truth["patient"])["precision"] == 1.0
    # a weak link may join two patients
    assert measure_ids(groups, truth["patient"])["precision"] >= 0.75


def move(
    picture: np.ndarray, angle: float = 0, zoom: float = 1, shift_px: float = 0, border: int = 0
) -> np.ndarray:
    matrix = cv2.getRotationMatrix2D((191.5, 191.5), angle, zoom)
    matrix[:, 2] += np.full(2, shift_px)
    return cv2.warpAffine(picture, matrix, (384, 384), borderMode=border)


def compress(picture: np.ndarray) -> np.ndarray:
    content = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 50])[1]
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_GRAYSCALE))


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mirror": lambda p: np.ascontiguousarray(p[:, ::-1]),
    "quarter turn": lambda p: np.rot90(p).copy(),
    "rotation": lambda p: move(p, angle=37),
    "shift": lambda p: move(p, shift_px=38),
    "zoom in": lambda p: move(p, zoom=1.15),
    "zoom out": lambda p: move(p, zoom=0.85),
    "dark": lambda p: p * 0.3,
    "bright": lambda p: np.clip(p * 1.4, 0, 255),
    "gamma": lambda p: 255 * (p / 255) ** 0.7,
    "contrast": lambda p: np.clip(p * 0.6 + 40, 0, 255),
    "jpeg": compress,
    "streaks": lambda p: move(p, angle=8, shift_px=30, border=cv2.BORDER_REPLICATE),
    "blank corner": lambda p: np.where(np.add.outer(range(384), range(384)) < 200, 0, p),
}


@pytest.mark.parametrize("change", CHANGES)
def test_one_change_at_a_time(change: str, thumbnails: dict[str, np.ndarray]) -> None:
    picture = np.asarray(cv2.resize(next(iter(thumbnails.values())), (384, 384)), np.uint8)
    changed = CHANGES[change](picture).astype(np.uint8)
    pair = {"a": resize_grey(picture, THUMBNAIL_PX), "b": resize_grey(changed, THUMBNAIL_PX)}
    (link,) = find_duplicates(pair).to_frame({"a": "a.png", "b": "b.png"}).itertuples()
    assert (link.first, link.second, link.kind) == ("a.png", "b.png", "duplicate")
    assert link.score >= DUPLICATE_SCORE
    assert link.mirrored == (change == "mirror")


def test_slices_that_a_third_one_links_are_compared(
    thumbnails: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = np.asarray(cv2.resize(next(iter(thumbnails.values())), (384, 384)), np.uint8)
    copies = {
        f"{number}": resize_grey(move(picture, angle=20.0 * number), THUMBNAIL_PX)
        for number in range(5)
    }
    chain = np.array([[0, 1, 0], [1, 2, 0], [2, 3, 0], [3, 4, 0]])
    monkeypatch.setattr(finder, "propose_neighbours", lambda neighbours: chain)
    compared = find_duplicates(copies).compared
    pairs = [[first, second, 0] for first in range(5) for second in range(first + 1, 5)]
    assert compared.pairs.tolist() == pairs  # two steps away at first, then four
    assert (compared.scores >= DUPLICATE_SCORE).all()
    monkeypatch.setattr(finder, "TRANSITIVE_ROUNDS", 1)
    steps = np.diff(find_duplicates(copies).compared.pairs[:, :2])
    assert sorted(steps.ravel()) == [1, 1, 1, 1, 2, 2, 2]


def test_blank_pictures_and_few_slices(thumbnails: dict[str, np.ndarray]) -> None:
    blank = {str(grey): np.full((THUMBNAIL_PX, THUMBNAIL_PX), grey, np.uint8) for grey in (0, 200)}
    duplicates = find_duplicates(blank)
    assert not duplicates.features.counts.any()
    assert duplicates.to_frame().empty
    assert len(set(duplicates.cluster()[0].values())) == 2
    for n_slices in (0, 1):
        few = dict(list(thumbnails.items())[:n_slices])
        assert len(find_duplicates(few).cluster()[1]) == n_slices


def test_order_and_cores_have_no_effect(
    thumbnails: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    names, results = sorted(thumbnails)[:24], []
    monkeypatch.setattr(registration, "JOB_BATCHES", 1)
    for cores, order in ((1, names), (7, names[::-1])):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        results.append(find_duplicates({name: thumbnails[name] for name in order}))
    assert_same(*results)


def test_only_new_slices_are_processed(
    found: Duplicates, thumbnails: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(thumbnails)
    old = {name: thumbnails[name] for name in names if name not in names[::6]}
    before = find_duplicates(old)
    sizes: dict[str, list[int]] = {"extract_features": [], "register_pairs": []}
    for name, calls in sizes.items():
        original = getattr(finder, name)

        def count(*args: Any, original: Any = original, calls: list[int] = calls) -> Any:
            calls.append(len(args[-1]))
            return original(*args)

        monkeypatch.setattr(finder, name, count)
    assert_same(found, find_duplicates(thumbnails, before))
    assert sizes["extract_features"] == [len(names[::6])]
    assert sum(sizes["register_pairs"]) < len(found.compared.scores) / 2
    assert find_duplicates(thumbnails, found) is found
    assert_same(before, find_duplicates(old, found))


def test_a_continued_search_has_the_same_best_links(
    thumbnails: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(thumbnails)
    monkeypatch.setattr(neighbours, "NEIGHBOURS", 3)
    unlimited = find_duplicates(thumbnails)
    monkeypatch.setattr(retrieval, "MAX_LINKS", 2)
    before = find_duplicates({name: thumbnails[name] for name in names if name not in names[::6]})
    whole = find_duplicates(thumbnails)
    assert len(whole.compared.scores) < len(unlimited.compared.scores)
    assert_same(whole, find_duplicates(thumbnails, before))


def test_a_saved_result_is_loaded_unless_damaged_or_outdated(
    found: Duplicates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cache" / "duplicates.npz"
    assert load_duplicates(path) is None
    save_duplicates(found, path)
    loaded = load_duplicates(path)
    assert loaded is not None
    assert_same(found, loaded)
    content = path.read_bytes()
    for damaged in (b"", b"PK", content[: len(content) // 2], b"no archive at all"):
        path.write_bytes(damaged)
        assert load_duplicates(path) is None
    path.write_bytes(content)
    for version in ("FINDER_VERSION", "READER_VERSION"):
        with monkeypatch.context() as patch:
            patch.setattr(result_file, version, 999)
            assert load_duplicates(path) is None


@pytest.mark.data
@pytest.mark.skipif("BRAIN_MRI_DATA" not in os.environ, reason="BRAIN_MRI_DATA names no archive")
def test_planted_duplicates_of_real_slices() -> None:
    rng = np.random.default_rng(0)
    thumbnails: dict[str, np.ndarray] = {}
    with open_source(Path(os.environ["BRAIN_MRI_DATA"])) as source:
        entries = source.entries[:: len(source.entries) // 60]
        for number, entry in enumerate(entries):
            picture = read_grey(entry.read())
            planted = plant_duplicate(picture, rng)
            thumbnails[f"{number} original"] = resize_grey(picture, THUMBNAIL_PX)
            thumbnails[f"{number} planted"] = resize_grey(planted, THUMBNAIL_PX)
    set_of, _ = find_duplicates(thumbnails).cluster()
    for number in range(len(entries)):
        assert set_of[f"{number} original"] == set_of[f"{number} planted"]
