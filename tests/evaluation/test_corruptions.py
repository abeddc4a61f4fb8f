"""Corruptions, orientations and probes: their effect on grey levels, and what stays unchanged."""

import functools
import itertools
from typing import Any

import cv2
import numpy as np
import pytest

from evaluation.baselines import cross_validate_brightness
from evaluation.corruptions import (
    CORRUPTIONS,
    ORIENTATIONS,
    Pixels,
    blank_interior,
    compute_reference,
    corrupt,
    describe,
    find_background_level,
    match_brightness,
    orient,
)
from imaging.brightness import compute_brightness_statistics
from imaging.grayscale import resize_grey
from phantoms.generator import plan_phantoms, render_phantom

SIZE_PX = 96
CORNERS = np.array([[[1, 2], [4, 3]]], np.uint8)


def draw_head(centre: tuple[int, int] = (48, 48), air: int = 0) -> Pixels:
    """Draw a brain (90) in a scalp (200) 4 px thick, both ellipses; [SIZE_PX, SIZE_PX]."""
    picture = np.full((SIZE_PX, SIZE_PX), air, np.uint8)
    for axes, grey in (((36, 28), 200), ((32, 24), 90)):
        cv2.ellipse(picture, centre, axes, 0, 0, 360, grey, cv2.FILLED)
    return picture


def find_interior(picture: Pixels) -> Any:
    """Return the mask that `blank_interior` changes in a slice with a head."""
    blanked, has_head = blank_interior(picture[None])
    assert has_head.tolist() == [True]
    return blanked[0] != picture


@functools.cache
def render_phantoms() -> list[tuple[Pixels, Any]]:
    """Render twelve phantoms and the masks of their lesions."""
    return [render_phantom(plan) for plan in plan_phantoms(60, seed=3)[::5]]


def make_slices(size_px: int = 160) -> Pixels:
    return np.stack([resize_grey(picture, size_px) for picture, _ in render_phantoms()])


def test_orientations_by_hand() -> None:
    assert {name: orient(CORNERS, name)[0].tolist() for name in ORIENTATIONS} == {
        "as stored": [[1, 2], [4, 3]],
        "rotated 90": [[2, 3], [1, 4]],
        "rotated 180": [[3, 4], [2, 1]],
        "rotated 270": [[4, 1], [3, 2]],
        "mirrored": [[2, 1], [3, 4]],
        "mirrored and rotated 90": [[1, 4], [2, 3]],
        "mirrored and rotated 180": [[4, 3], [1, 2]],
        "mirrored and rotated 270": [[3, 2], [4, 1]],
    }


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_change_grows_with_the_strength(name: str) -> None:
    pixels = make_slices()
    before = pixels.copy()
    corrupted = [corrupt(pixels, name, strength) for strength in range(1, 6)]
    changes = [float(np.abs(each.astype(int) - before).mean()) for each in corrupted]
    assert changes[0] > 0
    assert all(after > 1.05 * before for before, after in itertools.pairwise(changes)), changes
    assert np.array_equal(pixels, before)
    assert corrupted[2].dtype == np.uint8
    assert np.array_equal(corrupt(pixels[:2], name, 3), corrupted[2][:2])  # same in every batch
    assert corrupt(pixels[:0], name, 3).shape == (0, 160, 160)


def test_random_draws_depend_on_the_index() -> None:
    pixels = np.repeat(make_slices()[:1], 12, axis=0)
    random = {"noise": 12, "rotation": 2, "gamma": 2}  # rotation and gamma draw a direction
    for name in CORRUPTIONS:
        n_different = len({picture.tobytes() for picture in corrupt(pixels, name, 4)})
        assert n_different == random.get(name, 1), name


def test_contrast_and_gamma_by_hand() -> None:
    pixels = np.array([[[0, 100], [100, 200]]], np.uint8)
    assert corrupt(pixels, "contrast", 1).tolist() == [[[20, 100], [100, 180]]]  # 80 % about 100
    pixels = np.array([[[0, 64], [128, 255]]] * 8, np.uint8)
    darker, brighter = (0, 39, 101, 255), (0, 92, 153, 255)  # 255 * (64 / 255) ** 1.35 = 39.4
    assert set(map(tuple, corrupt(pixels, "gamma", 3).reshape(8, 4))) == {darker, brighter}


def test_rotation_keeps_the_centre_and_fills_with_black() -> None:
    pixels = np.full((8, 65, 65), 100, np.uint8)
    pixels[:, 30:35, 52:57] = 255  # 22 px right of the centre
    rotated = corrupt(pixels, "rotation", 5)
    assert (rotated[:, :, 0].min(axis=1) == 0).all()
    assert (rotated[:, 32, 32] == 100).all()
    angles = []
    for picture in rotated:
        rows, columns = np.nonzero(picture > 200)
        angles.append(np.degrees(np.arctan2(rows.mean() - 32, columns.mean() - 32)))
    assert np.abs(angles) == pytest.approx(25, abs=1)
    assert min(angles) < 0 < max(angles)


def test_noise_is_rician() -> None:
    pixels = np.zeros((1, 200, 200), np.uint8)
    pixels[0, 100:] = 200  # deviation 12 % of it: 24
    noisy = corrupt(pixels, "noise", 5)[0].astype(float)
    assert noisy[:100].mean() == pytest.approx(24 * np.sqrt(np.pi / 2), abs=0.3)  # Rayleigh
    assert np.median(noisy[100:]) == pytest.approx(201.4, abs=1)  # 200 + 24 ** 2 / (2 * 200)


@pytest.mark.parametrize("size_px", [96, 224])
def test_blur_scales_with_the_side(size_px: int) -> None:
    """An edge blurred by sigma rises from 16 to 84 % within two sigma."""
    pixels = np.zeros((1, size_px, size_px), np.uint8)
    pixels[:, :, size_px // 2 :] = 250
    row = corrupt(pixels, "blur", 5)[0, size_px // 2].astype(float)
    start_px, end_px = np.interp([0.1587 * 250, 0.8413 * 250], row, np.arange(size_px))
    assert end_px - start_px == pytest.approx(2 * 0.015 * size_px, rel=0.1)


def test_jpeg_keeps_a_flat_slice_and_downsampling_its_mean() -> None:
    flat = np.full((1, 32, 32), 128, np.uint8)
    assert np.array_equal(corrupt(flat, "jpeg", 5), flat)
    stripes = np.tile(np.array([0, 200], np.uint8), (1, 160, 80))
    inside = corrupt(stripes, "downsample", 5)[0, 16:-16, 16:-16]  # stripes finer than a pixel
    assert inside.min() > 80
    assert inside.max() < 120


def test_descriptions_have_units() -> None:
    assert describe("noise", 1) == "noise 2% of the brightest tissue"
    assert describe("blur", 5) == "blur sigma 1.5% of the side"
    assert describe("gamma", 3) == "gamma 1.35 or 1/1.35"


def test_wrong_names_and_strengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'upside down'.*'as stored'"):
        orient(CORNERS, "upside down")
    with pytest.raises(ValueError, match=r"'fog'.*rotation, noise"):
        corrupt(CORNERS, "fog", 1)
    for strength in (0, 6, 2.5):
        with pytest.raises(ValueError, match=f"strength {strength}"):
            describe("blur", strength)  # type: ignore[arg-type]


def test_wrong_pixels_are_refused() -> None:
    functions: list[Any] = [
        lambda pixels: orient(pixels, "mirrored"),
        lambda pixels: corrupt(pixels, "blur", 1),
        lambda pixels: match_brightness(pixels, np.zeros(256)),
        *(blank_interior, compute_reference),
    ]
    wrong = [np.zeros(shape, np.uint8) for shape in ((8, 8), (2, 8, 9), (2, 0, 0))]
    for function, pixels in itertools.product(functions, [*wrong, np.zeros((2, 8, 8), np.float32)]):
        with pytest.raises(ValueError, match=r"uint8 \[N, H, H\]"):
            function(pixels)


# ---- the inside of the head blanked


@pytest.mark.parametrize(
    ("centre", "air"),
    [((48, 48), 0), ((48, 48), 12), ((14, 48), 0)],
    ids=["black air", "grey air", "cut by the border"],
)
def test_brain_is_blanked_and_scalp_stays(centre: tuple[int, int], air: int) -> None:
    picture = draw_head(centre, air)
    inside = find_interior(picture)
    assert inside[picture == 90].mean() > 0.97
    assert inside[picture == 200].mean() < 0.6
    head = (picture > air).astype(np.uint8)
    skin = head > cv2.erode(head, np.ones((3, 3), np.uint8))
    assert not (inside & skin)[:, 8:].any()
    assert not inside[picture == air].any()
    assert inside[40:56, 0].all() == (centre[0] == 14)  # the border of the image is no skull


def test_noise_streaks_and_smaller_components_are_not_part_of_the_head() -> None:
    expected = find_interior(draw_head())
    noise = np.hypot(*np.random.default_rng(0).normal(0, 9, (2, SIZE_PX, SIZE_PX)))
    inside = find_interior(np.maximum(noise, draw_head()).astype(np.uint8))
    assert (inside != expected)[expected | inside].mean() < 0.05
    picture = draw_head()
    picture[44:46, 80:] = 150  # a line from the scalp to the border
    picture[:, 94:] = 60
    picture[2:14, 2:14] = 255
    inside = find_interior(picture)
    assert (inside != expected)[expected].mean() < 0.05
    assert not inside[:, 90:].any()
    assert not inside[:16, :16].any()


def test_slices_without_a_head_are_unchanged() -> None:
    rng = np.random.default_rng(0)
    pixels = np.zeros((6, SIZE_PX, SIZE_PX), np.uint8)  # the first one stays black
    pixels[1] = 255
    pixels[2] = rng.integers(190, 256, (SIZE_PX, SIZE_PX))  # no air
    pixels[3] = rng.integers(0, 4, (SIZE_PX, SIZE_PX))  # almost black
    pixels[4, 45:51, 45:51] = 200  # a dot
    pixels[5] = draw_head()
    blanked, has_head = blank_interior(pixels)
    assert has_head.tolist() == [False] * 5 + [True]
    assert np.array_equal(blanked[:5], pixels[:5])


@pytest.mark.parametrize("size_px", [96, 224])
def test_lesions_of_phantoms_are_blanked(size_px: int) -> None:
    blanked, has_head = blank_interior(make_slices(size_px))
    assert has_head.all()
    shares = []
    for after, (_, mask) in zip(blanked, render_phantoms(), strict=True):
        lesion = resize_grey(mask.astype(np.uint8) * 255, size_px) > 127
        if lesion.any():
            shares.append(float((after[lesion] == 0).mean()))
    assert np.mean(np.array(shares) > 0.98) >= 0.9, shares
    assert min(shares) > 0.8


# ---- brightness


def test_the_level_of_the_background_by_hand() -> None:
    # means 4 and 104: (104 - 4) / ln(105 / 5) - 1 = 31.8
    assert find_background_level(np.array([[4, 4], [104, 104]], np.uint8)) == 31
    assert find_background_level(np.array([[0, 0], [0, 0]], np.uint8)) is None
    assert find_background_level(np.array([[80, 80], [104, 104]], np.uint8)) is None  # no air
    assert find_background_level(np.array([[0, 0], [8, 8]], np.uint8)) is None  # no tissue


def test_brightness_is_matched_by_hand() -> None:
    pixels = np.array([[[0, 3], [100, 200]], [[0, 3], [50, 100]]], np.uint8)
    before, reference = pixels.copy(), compute_reference(pixels)
    assert reference.tolist() == [75.0] * 128 + [150.0] * 128
    assert match_brightness(pixels, reference).tolist() == [[[0, 3], [75, 150]]] * 2
    assert np.array_equal(pixels, before)
    # a single grey level is replaced by the mean of the reference
    one_level = np.array([[[0, 0], [60, 60]]], np.uint8)
    assert match_brightness(one_level, reference).tolist() == [[[0, 0], [112, 112]]]
    black = np.zeros((2, 8, 8), np.uint8)
    assert np.array_equal(match_brightness(black, reference), black)
    with pytest.raises(ValueError, match="no slice has a foreground"):
        compute_reference(black)
    with pytest.raises(ValueError, match=r"reference.*shape \(3,\)"):
        match_brightness(black, np.zeros(3))


def test_all_foregrounds_share_one_histogram() -> None:
    pixels = make_slices()
    reference = compute_reference(pixels)
    for before, after in zip(pixels, match_brightness(pixels, reference), strict=True):
        level = find_background_level(before)
        assert level is not None
        foreground = before > level
        assert np.array_equal(after[~foreground], before[~foreground])
        assert abs(after[foreground].mean() - reference.mean()) < 0.5
        quartiles = np.percentile(after[foreground], [25, 50, 75])
        assert np.abs(quartiles - np.percentile(reference, [25, 50, 75])).max() <= 3
        order = np.argsort(before[foreground], kind="stable")
        assert (np.diff(after[foreground][order].astype(int)) >= 0).all()


def test_matched_brightness_does_not_separate_the_classes() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    inside = draw_head() > 0
    pixels = np.zeros((120, SIZE_PX, SIZE_PX), np.uint8)
    for picture, label in zip(pixels, labels, strict=True):
        values = rng.gamma(12, (6, 9)[label], int(inside.sum())) + 30
        picture[inside] = np.clip(values, 0, 255)

    matched = match_brightness(pixels, compute_reference(pixels))
    before, after = (
        cross_validate_brightness(compute_brightness_statistics(slices), labels, np.arange(120))
        for slices in (pixels, matched)
    )
    assert before is not None
    assert after is not None
    assert before["brightness"] > 0.95
    assert after["brightness"] < 0.65
