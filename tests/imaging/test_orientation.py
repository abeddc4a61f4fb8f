"""The standard orientation is the same for all eight orientations of an image."""

import itertools

import numpy as np
import pytest

from imaging.grayscale import resize_grey
from imaging.orientation import (
    Orientation,
    apply_orientation,
    find_orientation,
    map_back,
    orient_and_letterbox,
    undo_orientation,
)


def list_orientations(pixels: np.ndarray) -> list[np.ndarray]:
    rotated = [np.rot90(pixels, quarter) for quarter in range(4)]
    return [*rotated, *(np.fliplr(each) for each in rotated)]


@pytest.mark.parametrize("shape", [(40, 40), (41, 41), (40, 31), (33, 62), (3, 5), (2, 2)])
def test_eight_orientations_give_the_same_bits(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images = list_orientations(pixels)
    oriented = [apply_orientation(each, find_orientation(each)) for each in images]
    assert all(np.array_equal(each, oriented[0]) for each in oriented)
    inputs = [orient_and_letterbox(each, 24) for each in images]
    assert all(np.array_equal(each, inputs[0]) for each in inputs)
    assert np.array_equal(inputs[0], resize_grey(oriented[0], 24))


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        # lower and right half are brighter; flipped: 8 4 / 2 1, with the corner 4 above 2
        ([[1, 2], [4, 8]], Orientation(True, True, False)),
        # lower left corner is brighter than upper right
        ([[8, 2], [4, 1]], Orientation(False, False, True)),
        # the middle row does not count
        ([[3, 1], [0, 255], [1, 2]], Orientation(False, False, False)),
        # symmetric
        ([[9] * 7] * 5, Orientation(False, False, False)),
        ([[7]], Orientation(False, False, False)),
    ],
)
def test_find_orientation(pixels: list[list[int]], expected: Orientation) -> None:
    assert find_orientation(np.array(pixels, np.uint8)) == expected


def test_undo_inverts_apply() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    flipped = apply_orientation(pixels[:2, :2], Orientation(True, True, False))
    assert flipped.tolist() == [[5, 4], [1, 0]]
    for flags in itertools.product([False, True], repeat=3):
        oriented = apply_orientation(pixels, Orientation(*flags))
        assert np.array_equal(undo_orientation(oriented, Orientation(*flags)), pixels)


def test_heat_map_is_mapped_back_onto_the_image() -> None:
    pixels = np.zeros((60, 90), np.uint8)
    pixels[40:50, 70:80], pixels[10:20, 70:80] = 200, 90  # four of the orientations transpose it
    for each in list_orientations(pixels):
        heatmap = np.divide(orient_and_letterbox(each, 30), 255, dtype=np.float32)
        mapped = map_back(heatmap, (each.shape[0], each.shape[1]), find_orientation(each))
        assert mapped.shape == each.shape
        row, column = np.unravel_index(mapped.argmax(), mapped.shape)
        assert each[row, column] == 200
