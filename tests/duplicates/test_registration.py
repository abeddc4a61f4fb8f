"""Features and transforms of known pairs of slices."""

from itertools import combinations

import cv2
import numpy as np
import pytest

from common.row_file import RowFile, StoredRows
from duplicates import registration, sift_features
from duplicates.registration import MAX_RATIO, MIN_MATCHES, register_pairs
from duplicates.sift_features import (
    MAX_KEYPOINTS,
    MIRROR,
    THUMBNAIL_PX,
    Features,
    extract_features,
)
from imaging.grayscale import resize_grey


@pytest.fixture(scope="module")
def slice_(thumbnails: dict[str, np.ndarray]) -> np.ndarray:
    return next(iter(thumbnails.values()))


def test_a_mirror_image_has_mirrored_features(slice_: np.ndarray) -> None:
    points, descriptors = sift_features.describe_slice(slice_)
    end_points, end_descriptors = sift_features.describe_slice(
        np.ascontiguousarray(slice_[:, ::-1])
    )
    distances = np.linalg.norm(
        sift_features.mirror_points(points)[:, None] - end_points[None], axis=-1
    )
    near = distances.min(axis=1) < 1.5
    assert near.mean() > 0.8
    mirrored = descriptors[near][:, MIRROR].astype(float)
    nearest = end_descriptors[distances[near].argmin(axis=1)].astype(float)
    lengths = np.linalg.norm(mirrored, axis=1) * np.linalg.norm(nearest, axis=1)
    assert np.median((mirrored * nearest).sum(axis=1) / lengths) > 0.95
    assert (MIRROR[MIRROR] == np.arange(128)).all()


def test_features_are_padded(slice_: np.ndarray) -> None:
    features = extract_features({"slice": slice_, "blank": np.zeros_like(slice_)})
    count = features.counts[0]
    assert 50 < count <= MAX_KEYPOINTS
    assert features.counts[1] == 0
    assert (features.words[0, :count] >= 0).all()
    assert (features.words[0, count:] == -1).all()
    assert not features.descriptors[0][count:].any()
    assert features.words.max() < len(sift_features.load_vocabulary())


def test_a_known_transform_is_found(slice_: np.ndarray) -> None:
    centre = ((THUMBNAIL_PX - 1) / 2,) * 2
    matrices = [
        cv2.getRotationMatrix2D(centre, angle, zoom) for angle, zoom in ((25, 1.08), (0, 1.5))
    ]
    moved = [np.asarray(cv2.warpAffine(slice_, each, slice_.shape), np.uint8) for each in matrices]
    features = extract_features(dict(enumerate([slice_, *moved])))
    result = register_pairs(features, np.array([[0, 1, 0], [0, 2, 0]]))
    assert np.abs(result.matrices[0] - matrices[0]).max() < 0.5
    assert result.scores[0] > 60
    assert result.scores[1] == 0  # two scans of one slice differ by less


def test_unrelated_pictures_do_not_match(
    slice_: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "MIN_MATCHES", 3)
    noise = np.random.default_rng(0).integers(0, 255, (2, 24, 24), dtype=np.uint8)
    pictures = [slice_, *(resize_grey(each, THUMBNAIL_PX) for each in noise)]
    features = extract_features(dict(enumerate(pictures)))
    pairs = np.array([[0, 1, 0], [0, 2, 1], [1, 2, 0]])
    assert register_pairs(features, pairs).scores.max() < 8


def test_descriptors_match_as_in_whole_numbers() -> None:
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 60, (12, 128))
    moved = (centres[rng.integers(12, size=30)] + rng.integers(0, 4, (30, 128))).astype(np.uint8)
    counts = np.array([2, 5, 9])
    fixed = np.zeros((3, 9, 128), np.uint8)  # the padding is the nearest of dark descriptors
    moved[:4] = rng.integers(0, 3, (4, 128))
    for row, count in enumerate(counts):
        fixed[row, :count] = centres[rng.permutation(12)[:count]] + rng.integers(0, 4, (count, 128))
    is_match, nearest = registration._match(moved, fixed, counts)
    for row, count in enumerate(counts):
        steps = moved[:, None].astype(np.int64) - fixed[row, :count]
        distances = (steps**2).sum(axis=2)
        assert (nearest[:, row] == distances.argmin(axis=1)).all()
        first, second = np.sort(distances, axis=1)[:, :2].T
        assert (is_match[:, row] == (first < MAX_RATIO**2 * second)).all()
    assert 0 < is_match.mean() < 1


@pytest.mark.parametrize("count", [MIN_MATCHES - 1, MIN_MATCHES])
def test_a_slice_with_too_few_features_scores_nothing(count: int) -> None:
    rng = np.random.default_rng(0)
    points, values = rng.uniform(20, 170, (count, 2)), rng.integers(0, 60, (count, 128), np.uint8)
    file, padding = RowFile((MAX_KEYPOINTS, 128), np.uint8), MAX_KEYPOINTS - count
    # the first slice has each feature twice, so it has enough matches with the second one
    places = [
        file.append(np.pad(np.tile(values, (2, 1)), ((0, padding - count), (0, 0)))),
        file.append(np.pad(values, ((0, padding), (0, 0)))),
    ]
    features = Features(
        np.array([2 * count, count]),
        np.array([np.resize(points, (MAX_KEYPOINTS, 2))] * 2, np.float32),
        StoredRows(file, np.array(places)),
        np.zeros((2, MAX_KEYPOINTS), np.int16),
    )
    score = register_pairs(features, np.array([[0, 1, 0]])).scores[0]
    assert score == (count if count == MIN_MATCHES else 0)


def test_a_result_depends_on_its_own_pair_alone(
    thumbnails: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = list(thumbnails.values())[:7]
    few = np.zeros_like(pictures[0])
    few[80:100, 80:100] = 200
    features = extract_features(dict(enumerate([*pictures, np.zeros_like(few), few])))
    assert features.counts[7] == 0 < features.counts[8] < MIN_MATCHES
    pairs = np.array([[a, b, flip] for a, b in combinations(range(9), 2) for flip in (0, 1)])
    alone = [register_pairs(features, pairs[row : row + 1]) for row in range(len(pairs))]
    assert 0 < sum(each.scores[0] > 0 for each in alone) < len(pairs)
    for size in (1, 3, 16):
        monkeypatch.setattr(registration, "BATCH_SLICES", size)
        monkeypatch.setattr(registration, "JOB_BATCHES", size)
        order = np.random.default_rng(size).permutation(len(pairs))
        together = register_pairs(features, pairs[order])
        assert (together.pairs == pairs[order]).all()
        assert (together.scores == [alone[row].scores[0] for row in order]).all()
        assert (together.matrices == [alone[row].matrices[0] for row in order]).all()
