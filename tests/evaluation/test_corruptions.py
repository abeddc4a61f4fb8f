"""Corruptions, positions and probes: what they do to a grey level, and that nothing else moves."""

import functools
import itertools
from typing import Any

import cv2
import numpy as np
import pytest

from evaluation.baselines import compute_brightness_statistics, cross_validate_brightness
from evaluation.corruptions import (
    CORRUPTIONS,
    POSITIONS,
    Pixels,
    blank_interior,
    compute_reference,
    corrupt,
    describe,
    find_background_level,
    match_brightness,
    place,
)
from imaging.grayscale import resize_grey
from phantoms.generator import plan_phantoms, render_phantom

SIZE_PX = 96
CORNERS = np.array([[[1, 2], [4, 3]]], np.uint8)


def make_grey(values: Any) -> Pixels:
    return np.asarray(values, np.uint8)[None]


def draw_head(
    centre: tuple[int, int] = (48, 48), air: int = 0, brain: int = 90, scalp: int = 200
) -> Pixels:
    """A brain in a scalp 4 px thick, both ellipses; [SIZE_PX, SIZE_PX]."""
    picture = np.full((SIZE_PX, SIZE_PX), air, np.uint8)
    for axes, grey in (((36, 28), scalp), ((32, 24), brain)):
        cv2.ellipse(picture, centre, axes, 0, 0, 360, grey, cv2.FILLED)
    return picture


def find_interior(picture: Pixels) -> tuple[Any, bool]:
    blanked, covered = blank_interior(picture[None])
    return blanked[0] != picture, bool(covered[0])


def find_skin(picture: Pixels, air: int = 0) -> Any:
    """The outermost pixel of a head of `draw_head`."""
    head = (picture > air).astype(np.uint8)
    return head > cv2.erode(head, np.ones((3, 3), np.uint8))


@functools.cache
def render_phantoms() -> tuple[Pixels, Any]:
    """Twelve phantoms and their lesions, [12, 160, 160] each."""
    pictures, lesions = [], []
    for plan in plan_phantoms(60, seed=3)[::5]:
        picture, lesion = render_phantom(plan)
        pictures.append(resize_grey(picture, 160))
        lesions.append(resize_grey(lesion.astype(np.uint8) * 255, 160) > 127)
    return np.stack(pictures), np.stack(lesions)


# ---- positions


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ("as stored", [[1, 2], [4, 3]]),
        ("turned 90", [[2, 3], [1, 4]]),
        ("turned 180", [[3, 4], [2, 1]]),
        ("turned 270", [[4, 1], [3, 2]]),
        ("mirrored", [[2, 1], [3, 4]]),
        ("mirrored and turned 90", [[1, 4], [2, 3]]),
        ("mirrored and turned 180", [[4, 3], [1, 2]]),
        ("mirrored and turned 270", [[3, 2], [4, 1]]),
    ],
)
def test_positions_by_hand(position: str, expected: list[list[int]]) -> None:
    assert place(CORNERS, position)[0].tolist() == expected


def test_positions_are_closed() -> None:
    seen = {place(CORNERS, position).tobytes() for position in POSITIONS}
    assert len(seen) == 8
    twice = {
        place(place(CORNERS, first), second).tobytes()
        for first, second in itertools.product(POSITIONS, POSITIONS)
    }
    assert twice == seen


# ---- corruptions


def test_there_are_seven_besides_the_positions() -> None:
    names = ["rotation", "noise", "blur", "contrast", "gamma", "jpeg", "downsample"]
    assert list(CORRUPTIONS) == names
    assert all(len(corruption.levels) == 5 for corruption in CORRUPTIONS.values())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_change_grows_with_the_strength(name: str) -> None:
    pixels, _ = render_phantoms()
    changes = [
        float(np.abs(corrupt(pixels, name, strength).astype(int) - pixels).mean())
        for strength in range(1, 6)
    ]
    assert changes[0] > 0
    assert all(after > 1.05 * before for before, after in itertools.pairwise(changes)), changes


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_slice_changes_alike_in_every_batch(name: str) -> None:
    pixels, _ = render_phantoms()
    before = pixels.copy()
    whole = corrupt(pixels, name, 3, seed=7)
    assert whole.dtype == np.uint8
    assert whole.shape == pixels.shape
    assert np.array_equal(corrupt(pixels, name, 3, seed=7), whole)
    assert np.array_equal(corrupt(pixels[[9, 2]], name, 3, seed=7, rows=[9, 2]), whole[[9, 2]])
    assert np.array_equal(corrupt(pixels[:0], name, 3), pixels[:0])
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize("name", ["rotation", "noise", "gamma"])
def test_seed_and_row_decide_what_is_random(name: str) -> None:
    pixels = np.repeat(render_phantoms()[0][:1], 12, axis=0)
    changed = corrupt(pixels, name, 4)
    n_different = len({picture.tobytes() for picture in changed})
    assert n_different == (12 if name == "noise" else 2)  # the others: one way or the other
    assert not np.array_equal(corrupt(pixels, name, 4, seed=1), changed)


@pytest.mark.parametrize("name", ["blur", "contrast", "jpeg", "downsample"])
def test_the_rest_is_not_random(name: str) -> None:
    pixels, _ = render_phantoms()
    assert np.array_equal(corrupt(pixels, name, 4, seed=1), corrupt(pixels, name, 4, seed=2))


def test_contrast_by_hand() -> None:
    pixels = make_grey([[0, 100], [100, 200]])
    assert corrupt(pixels, "contrast", 1).tolist() == [[[20, 100], [100, 180]]]  # 80 % about 100
    assert corrupt(pixels, "contrast", 3).tolist() == [[[50, 100], [100, 150]]]


def test_gamma_by_hand() -> None:
    pixels = np.repeat(make_grey([[0, 64], [128, 255]]), 8, axis=0)
    darker, brighter = [0, 39, 101, 255], [0, 92, 153, 255]  # 255 * (64 / 255) ** 1.35 = 39.4
    changed = corrupt(pixels, "gamma", 3).reshape(8, 4).tolist()
    assert darker in changed
    assert brighter in changed
    assert all(values in (darker, brighter) for values in changed)


def test_rotation_keeps_the_middle_and_fills_with_black() -> None:
    pixels = np.full((8, 65, 65), 100, np.uint8)
    pixels[:, 30:35, 52:57] = 255  # 22 px right of the middle
    turned = corrupt(pixels, "rotation", 5)
    assert (turned[:, :, 0].min(axis=1) == 0).all()
    assert (turned[:, 32, 32] == 100).all()
    angles = []
    for picture in turned:
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
    """An edge blurred by sigma climbs from 16 to 84 % within two sigma."""
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


@pytest.mark.parametrize(
    ("name", "strength", "expected"),
    [
        ("rotation", 3, "rotation 10 degrees"),
        ("noise", 1, "noise 2% of the brightest tissue"),
        ("blur", 5, "blur sigma 1.5% of the side"),
        ("contrast", 2, "contrast 65%"),
        ("gamma", 3, "gamma 1.35 or 1/1.35"),
        ("jpeg", 4, "jpeg quality 20"),
        ("downsample", 3, "downsample to 50% of the side"),
    ],
)
def test_descriptions_have_units(name: str, strength: int, expected: str) -> None:
    assert describe(name, strength) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "fog"}, "corruption 'fog': one of rotation, noise"),
        ({"strength": 0}, "strength 0: a whole number from 1 to 5"),
        ({"strength": 6}, "strength 6"),
        ({"strength": 2.5}, "strength 2.5"),
        ({"rows": [1]}, "1 rows for 2 slices"),
        ({"pixels": np.zeros((2, 8, 8), np.float32)}, "not float32 \\(2, 8, 8\\)"),
        ({"pixels": np.zeros((8, 8), np.uint8)}, "not uint8 \\(8, 8\\)"),
        ({"pixels": np.zeros((2, 8, 9), np.uint8)}, "not uint8 \\(2, 8, 9\\)"),
        ({"pixels": np.zeros((2, 0, 0), np.uint8)}, "not uint8 \\(2, 0, 0\\)"),
    ],
)
def test_corrupt_refuses(values: dict[str, Any], message: str) -> None:
    usual: dict[str, Any] = {"pixels": np.zeros((2, 8, 8), np.uint8), "name": "blur", "strength": 1}
    with pytest.raises(ValueError, match=message):
        corrupt(**(usual | values))


def test_the_others_refuse() -> None:
    with pytest.raises(ValueError, match="position 'upside down': one of 'as stored'"):
        place(CORNERS, "upside down")
    with pytest.raises(ValueError, match="strength 9"):
        describe("blur", 9)
    wrong = np.zeros((2, 8, 9), np.uint8)
    with pytest.raises(ValueError, match="uint8 \\[N, H, H\\] are wanted"):
        place(wrong, "mirrored")
    for function in (blank_interior, compute_reference, match_brightness):
        with pytest.raises(ValueError, match="uint8 \\[N, H, H\\] are wanted"):
            function(wrong)


# ---- the head without its inside


@pytest.mark.parametrize("air", [0, 12])
def test_brain_goes_and_scalp_stays(air: int) -> None:
    picture = draw_head(air=air)
    inside, covered = find_interior(picture)
    assert covered
    assert inside[picture == 90].mean() > 0.97
    assert inside[picture == 200].mean() < 0.5
    assert not inside[find_skin(picture, air)].any()
    assert not inside[picture == air].any()


def test_the_input_is_left_alone() -> None:
    pixels = draw_head()[None]
    before = pixels.copy()
    blank_interior(pixels)
    match_brightness(pixels)
    place(pixels, "mirrored")[:] = 0
    place(pixels, "as stored")[:] = 0
    assert np.array_equal(pixels, before)


def test_noise_in_the_air_is_no_head() -> None:
    picture = np.hypot(*np.random.default_rng(0).normal(0, 9, (2, SIZE_PX, SIZE_PX)))
    picture = np.maximum(picture, draw_head()).astype(np.uint8)
    inside, covered = find_interior(picture)
    assert covered
    expected, _ = find_interior(draw_head())
    assert (inside != expected)[expected | inside].mean() < 0.05


def test_streaks_are_no_head() -> None:
    picture = draw_head()
    expected, _ = find_interior(picture)
    picture[44:46, 80:] = 150  # a line from the scalp to the border
    picture[:, 94:] = 60
    inside, covered = find_interior(picture)
    assert covered
    assert (inside != expected)[expected].mean() < 0.05
    assert not inside[:, 90:].any()


def test_a_border_that_cuts_the_head_is_no_skull() -> None:
    picture = draw_head(centre=(14, 48))
    inside, covered = find_interior(picture)
    assert covered
    assert inside[picture == 90].mean() > 0.97
    assert inside[40:56, 0].all()
    assert not (inside & find_skin(picture))[:, 8:].any()


def test_the_larger_of_two_parts_is_the_head() -> None:
    picture = draw_head()
    picture[2:14, 2:14] = 255
    inside, _ = find_interior(picture)
    assert not inside[:16, :16].any()
    assert inside[48, 48]


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((SIZE_PX, SIZE_PX), np.uint8),
        np.full((SIZE_PX, SIZE_PX), 255, np.uint8),
        np.random.default_rng(0).integers(190, 256, (SIZE_PX, SIZE_PX), np.uint8),
        np.random.default_rng(0).integers(0, 4, (SIZE_PX, SIZE_PX), np.uint8),
        np.pad(np.full((6, 6), 200, np.uint8), 45),
    ],
    ids=["black", "white", "no air", "almost black", "a dot"],
)
def test_no_head_no_change(picture: Pixels) -> None:
    pixels = np.stack([picture, draw_head()])
    blanked, covered = blank_interior(pixels)
    assert covered.tolist() == [False, True]
    assert np.array_equal(blanked[0], picture)


@pytest.mark.parametrize("size_px", [96, 160, 224])
def test_lesions_of_phantoms_are_blanked(size_px: int) -> None:
    pixels = np.stack([resize_grey(picture, size_px) for picture in render_phantoms()[0]])
    lesions = np.stack(
        [resize_grey(mask.astype(np.uint8) * 255, size_px) > 127 for mask in render_phantoms()[1]]
    )
    blanked, covered = blank_interior(pixels)
    assert covered.all()
    shares = [
        float((after[lesion] == 0).mean())
        for after, lesion in zip(blanked, lesions, strict=True)
        if lesion.any()
    ]
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
    reference = compute_reference(pixels)
    assert reference.tolist() == [75.0] * 128 + [150.0] * 128
    assert match_brightness(pixels).tolist() == [[[0, 3], [75, 150]]] * 2
    # one grey level takes the mean of the reference
    one_level = make_grey([[0, 0], [60, 60]])
    assert match_brightness(one_level, reference).tolist() == [[[0, 0], [112, 112]]]


def test_matching_without_foreground() -> None:
    black = np.zeros((2, 8, 8), np.uint8)
    with pytest.raises(ValueError, match="no foreground"):
        match_brightness(black)
    reference = compute_reference(draw_head()[None])
    assert np.array_equal(match_brightness(black, reference), black)
    with pytest.raises(ValueError, match="shape \\(3,\\)"):
        match_brightness(black, np.zeros(3))


def test_all_foregrounds_share_one_histogram() -> None:
    pixels, _ = render_phantoms()
    matched = match_brightness(pixels)
    reference = compute_reference(pixels)
    for before, after in zip(pixels, matched, strict=True):
        level = find_background_level(before)
        assert level is not None
        foreground = before > level
        assert np.array_equal(after[~foreground], before[~foreground])
        assert abs(after[foreground].mean() - reference.mean()) < 0.5
        quartiles = np.percentile(after[foreground], [25, 50, 75])
        assert np.abs(quartiles - np.percentile(reference, [25, 50, 75])).max() <= 3
        order = np.argsort(before[foreground], kind="stable")
        assert (np.diff(after[foreground][order].astype(int)) >= 0).all()


def test_brightness_no_longer_tells_the_classes() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    inside = draw_head() > 0
    pixels = np.zeros((120, SIZE_PX, SIZE_PX), np.uint8)
    for picture, label in zip(pixels, labels, strict=True):
        values = rng.gamma(12, (6, 9)[label], int(inside.sum())) + 30
        picture[inside] = np.clip(values, 0, 255)

    def classify(slices: Pixels) -> float:
        statistics = compute_brightness_statistics(slices)
        accuracies = cross_validate_brightness(statistics, labels, np.arange(len(labels)))
        assert accuracies is not None
        return accuracies["brightness"]

    assert classify(pixels) > 0.95
    assert classify(match_brightness(pixels)) < 0.65
