"""The finder of copies: what it finds, what it must not look at, and that it repeats itself."""

import os
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from finder.clustering import PATIENT_IMAGES, SLICE_SCORE, number_groups, number_slices
from finder.finder import Copies, find_copies, load_copies, save_copies
from finder.retrieval import propose_friends, propose_pairs
from finder.sift_features import (
    MAX_KEYPOINTS,
    MIRROR,
    THUMBNAIL_PX,
    Features,
    describe_slice,
    extract_features,
    load_words,
    mirror_points,
)

from duplicates import finder, registration
from experiments.planted_duplicates import (
    measure_ids,
    measure_planted,
    plant_copies,
    plant_copy,
    read_thumbnails,
)
from imaging.grayscale import resize_grey
from preparation.manifest import load_manifest
from tests.support.builders import PHANTOMS

N_PLANTED = 20


@pytest.fixture(scope="module")
def frame(phantom_dir: Path) -> pd.DataFrame:
    return load_manifest(phantom_dir)


@pytest.fixture(scope="module")
def thumbnails(phantom_dir: Path, frame: pd.DataFrame) -> dict[str, np.ndarray]:
    return read_thumbnails(frame, phantom_dir)


@pytest.fixture(scope="module")
def found(thumbnails: dict[str, np.ndarray]) -> Copies:
    return find_copies(thumbnails)


def assert_same(first: Copies, second: Copies) -> None:
    assert first.digests == second.digests
    pd.testing.assert_frame_equal(first.tabulate(), second.tabulate())
    assert first.number() == second.number()


# ---- what it finds


def test_planted_copies_are_found(
    phantom_dir: Path, frame: pd.DataFrame, thumbnails: dict[str, np.ndarray]
) -> None:
    planted = list(plant_copies(frame, phantom_dir, N_PLANTED, seed=3))
    originals = {name: digest for name, digest, _ in planted}
    copies = find_copies(thumbnails | {name: picture for name, _, picture in planted})
    figures = measure_planted(copies, originals)
    assert figures == {"recall_link": 1.0, "recall_slice": 1.0, "recall_group": 1.0}


def test_true_copies_of_phantoms_share_a_slice(found: Copies, frame: pd.DataFrame) -> None:
    slices, groups = found.number()
    truth = {name: dict(zip(frame["sha256"], frame[name], strict=True)) for name in frame}
    by_slice = measure_ids(slices, truth["slice"])
    assert by_slice["recall"] >= 0.95
    by_patient = measure_ids(slices, truth["group"])
    assert by_patient["precision"] == 1.0  # no slice id joins two patients
    assert measure_ids(groups, truth["group"])["precision"] == 1.0


@pytest.mark.parametrize(
    "change",
    [
        "mirror", "turn", "oblique", "shift", "zoom in", "zoom out", "dark", "bright", "gamma",
        "contrast", "jpeg", "streaks", "blank corner",
    ],
)  # fmt: skip
def test_one_change_at_a_time(change: str, thumbnails: dict[str, np.ndarray]) -> None:
    picture = np.asarray(cv2.resize(next(iter(thumbnails.values())), (384, 384)), np.uint8)
    altered = alter(picture, change)
    pair = {"a": resize_grey(picture, THUMBNAIL_PX), "b": resize_grey(altered, THUMBNAIL_PX)}
    links = find_copies(pair).tabulate()
    assert len(links) == 1
    assert links["score"][0] >= SLICE_SCORE
    assert links["mirrored"][0] == (change == "mirror")


def alter(picture: np.ndarray, change: str) -> np.ndarray:
    """One change of a picture [384, 384], by name."""
    middle, size = (191.5, 191.5), (384, 384)

    def move(angle: float = 0.0, zoom: float = 1.0, shift_px: float = 0.0, border: int = 0):  # type: ignore[no-untyped-def]
        matrix = cv2.getRotationMatrix2D(middle, angle, zoom)
        matrix[:, 2] += np.full(2, shift_px)
        return cv2.warpAffine(picture, matrix, size, borderMode=border)

    changes = {
        "mirror": lambda: np.ascontiguousarray(picture[:, ::-1]),
        "turn": lambda: np.rot90(picture).copy(),
        "oblique": lambda: move(angle=37),
        "shift": lambda: move(shift_px=38),
        "zoom in": lambda: move(zoom=1.15),
        "zoom out": lambda: move(zoom=0.85),
        "dark": lambda: (picture * 0.3).astype(np.uint8),
        "bright": lambda: np.clip(picture * 1.4, 0, 255).astype(np.uint8),
        "gamma": lambda: (255 * (picture / 255) ** 0.7).astype(np.uint8),
        "contrast": lambda: np.clip(picture * 0.6 + 40, 0, 255).astype(np.uint8),
        "jpeg": lambda: cv2.imdecode(
            cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], 0
        ),
        "streaks": lambda: move(angle=8, shift_px=30, border=cv2.BORDER_REPLICATE),
        "blank corner": lambda: np.where(np.add.outer(range(384), range(384)) < 200, 0, picture),
    }
    return np.asarray(changes[change](), np.uint8)


def test_pictures_of_nothing_have_no_copies() -> None:
    blank = {name: np.full((THUMBNAIL_PX, THUMBNAIL_PX), grey, np.uint8) for name, grey in
             (("a", 0), ("b", 0), ("c", 200))}  # fmt: skip
    copies = find_copies(blank)
    assert not copies.features.counts.any()
    assert copies.tabulate().empty
    assert len(set(copies.number()[0].values())) == 3


@pytest.mark.parametrize("n_slices", [0, 1, 2])
def test_few_slices(n_slices: int, thumbnails: dict[str, np.ndarray]) -> None:
    few = dict(list(thumbnails.items())[:n_slices])
    assert len(find_copies(few).number()[1]) == n_slices


# ---- what must make no difference


def test_order_and_cores_make_no_difference(
    found: Copies, thumbnails: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    for cores, seed in ((1, 0), (7, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        names = np.random.default_rng(seed).permutation(list(thumbnails))
        assert_same(found, find_copies({name: thumbnails[name] for name in names}))


def test_new_slices_cost_their_own_work_and_change_nothing(
    found: Copies, thumbnails: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(thumbnails)
    before = find_copies({name: thumbnails[name] for name in names if name not in names[::6]})
    described: list[int] = []
    compared: list[int] = []
    extract, register = finder.extract_features, finder.register_pairs

    def count_described(new: list[np.ndarray]) -> Features:
        described.append(len(new))
        return extract(new)

    def count_compared(features: Features, pairs: np.ndarray) -> registration.Registrations:
        compared.append(len(pairs))
        return register(features, pairs)

    monkeypatch.setattr(finder, "extract_features", count_described)
    monkeypatch.setattr(finder, "register_pairs", count_compared)
    assert_same(found, find_copies(thumbnails, before))
    assert described == [len(names[::6])]
    assert sum(compared) < len(found.compared) / 2
    assert find_copies(thumbnails, found) is found
    fewer = {name: thumbnails[name] for name in before.digests}
    assert_same(before, find_copies(fewer, found))


def test_what_was_found_is_kept(found: Copies, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "copies.npz"
    assert load_copies(path) is None
    save_copies(found, path)
    kept = load_copies(path)
    assert kept is not None
    assert_same(found, kept)
    assert [item.name for item in path.parent.iterdir()] == ["copies.npz"]


def test_what_cannot_be_used_is_found_again(
    found: Copies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "copies.npz"
    save_copies(found, path)
    content = path.read_bytes()
    for damaged in (b"", b"PK", content[: len(content) // 2], b"no archive at all"):
        path.write_bytes(damaged)
        assert load_copies(path) is None
    path.write_bytes(content)
    monkeypatch.setattr(finder, "FINDER_VERSION", 999)
    assert load_copies(path) is None


# ---- parts, by hand


def test_a_mirror_image_has_the_mirrored_features(thumbnails: dict[str, np.ndarray]) -> None:
    picture = next(iter(thumbnails.values()))
    points, descriptors = describe_slice(picture)
    end_points, end_descriptors = describe_slice(np.ascontiguousarray(picture[:, ::-1]))
    distances = np.linalg.norm(mirror_points(points)[:, None] - end_points[None], axis=-1)
    near = distances.min(axis=1) < 1.5
    assert near.mean() > 0.8
    values = descriptors[near][:, MIRROR].astype(float)
    nearest = end_descriptors[distances[near].argmin(axis=1)].astype(float)
    cosines = (values * nearest).sum(1) / np.linalg.norm(values, axis=1) / np.linalg.norm(
        nearest, axis=1
    )  # fmt: skip
    assert np.median(cosines) > 0.95
    assert (MIRROR[MIRROR] == np.arange(128)).all()


def test_features_are_padded_and_words_known(thumbnails: dict[str, np.ndarray]) -> None:
    features = extract_features(list(thumbnails.values())[:3])
    n_words = len(load_words())
    for row, count in enumerate(features.counts):
        assert 50 < count <= MAX_KEYPOINTS
        assert (features.words[row, :count] >= 0).all()
        assert (features.words[row, count:] == -1).all()
        assert not features.descriptors[row, count:].any()
    assert features.words.max() < n_words


def test_candidates_share_words() -> None:
    words = np.full((4, 3), -1, np.int16)
    words[0], words[1] = [1, 2, 3], [1, 2, 3]
    words[2], words[3] = [5, 6, 7], [5 + 8, 6 + 8, 7 + 8]  # mirror images of one another
    pairs = {tuple(pair) for pair in propose_pairs(words, 16)}
    assert {(0, 1, 0), (2, 3, 1)} <= pairs
    assert all(first < second for first, second, _ in pairs)


def test_friends_of_friends_keep_count_of_mirrors() -> None:
    links = np.array([[0, 1, 1], [1, 2, 1], [2, 3, 0]])
    friends = {tuple(pair) for pair in propose_friends(links, 5)}
    assert friends == {(0, 2, 0), (1, 3, 1)}
    assert len(propose_friends(links[:0], 5)) == 0


def test_the_transform_of_a_known_copy(thumbnails: dict[str, np.ndarray]) -> None:
    picture = next(iter(thumbnails.values()))
    matrix = cv2.getRotationMatrix2D(((THUMBNAIL_PX - 1) / 2,) * 2, 25, 1.08)
    moved = np.asarray(cv2.warpAffine(picture, matrix, picture.shape), np.uint8)
    features = extract_features([picture, moved])
    outcome = registration.register_pairs(features, np.array([[0, 1, 0]]))
    assert np.abs(outcome.matrices[0] - matrix).max() < 0.5
    assert outcome.scores[0] > 60


def test_strangers_do_not_match(thumbnails: dict[str, np.ndarray]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (2, 24, 24), dtype=np.uint8)
    strangers = [resize_grey(picture, THUMBNAIL_PX) for picture in noise]
    features = extract_features([next(iter(thumbnails.values())), *strangers])
    pairs = np.array([[0, 1, 0], [0, 2, 1], [1, 2, 0]])
    assert registration.register_pairs(features, pairs, min_matches=3).scores.max() < 8


def test_slices_and_groups_by_hand() -> None:
    pairs = np.array([[0, 1], [1, 2], [3, 4], [4, 5]])
    scores = np.array([30, 29, 12, 11])
    slices, groups = number_slices(pairs, scores, 6), number_groups(pairs, scores, 6)
    assert [len(set(slices)), len(set(groups))] == [5, 3]
    assert slices[0] == slices[1] != slices[2]
    assert groups[0] == groups[1] == groups[2]
    assert groups[3] == groups[4] != groups[5]


def clique(first: int, size: int, score: int) -> tuple[np.ndarray, np.ndarray]:
    ends = np.stack(np.triu_indices(size, 1), axis=1) + first
    return ends, np.full(len(ends), score)


def test_a_large_group_is_cut_at_its_weak_link() -> None:
    left, right = clique(0, 40, 20), clique(40, 40, 20)
    pairs = np.concatenate([left[0], right[0], [[0, 40]]])
    scores = np.concatenate([left[1], right[1], [16]])
    groups = number_groups(pairs, scores, 80)
    assert len(set(groups)) == 2
    assert len(set(groups[:40])) == len(set(groups[40:])) == 1


def test_a_small_group_may_hang_on_a_weak_link() -> None:
    left, right = clique(0, 20, 20), clique(20, 20, 20)
    pairs = np.concatenate([left[0], right[0], [[0, 20]]])
    scores = np.concatenate([left[1], right[1], [12]])
    assert len(set(number_groups(pairs, scores, 40))) == 1


def test_a_long_chain_is_cut_and_copies_never_are() -> None:
    chain = np.stack([np.arange(99), np.arange(1, 100)], axis=1)
    groups = number_groups(chain, np.full(99, 14), 100)
    assert np.bincount(groups).max() <= PATIENT_IMAGES
    copies, scores = clique(0, PATIENT_IMAGES + 20, 40)
    assert len(set(number_groups(copies, scores, PATIENT_IMAGES + 20))) == 1


def test_a_planted_copy_keeps_shape_and_type() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (60, 80), dtype=np.uint8)
    copy = plant_copy(picture, np.random.default_rng(1))
    assert copy.shape == picture.shape
    assert copy.dtype == np.uint8


@pytest.mark.data
@pytest.mark.skipif("BRAIN_MRI_DATA" not in os.environ, reason="BRAIN_MRI_DATA names no archive")
def test_planted_copies_of_real_slices(tmp_path: Path) -> None:
    from imaging.reader import read_grey
    from preparation.sources import open_source

    rng = np.random.default_rng(0)
    thumbnails: dict[str, np.ndarray] = {}
    with open_source(Path(os.environ["BRAIN_MRI_DATA"])) as source:
        for number, entry in enumerate(source.entries[:: len(source.entries) // PHANTOMS]):
            picture = read_grey(entry.read())
            thumbnails[f"{number:03d}"] = resize_grey(picture, THUMBNAIL_PX)
            copy = plant_copy(picture, rng)
            thumbnails[f"{number:03d} copy"] = resize_grey(copy, THUMBNAIL_PX)
    slices, _ = find_copies(thumbnails).number()
    found = [slices[name] == slices[f"{name} copy"] for name in thumbnails if len(name) == 3]
    assert np.mean(found) == 1.0
