"""Eight positions of a picture, and the one that networks see."""

import numpy as np
import pytest

from imaging.grayscale import resize_grey
from imaging.orientation import Position, find_position, fit_slice, turn, turn_back, unfit_map


def list_positions(pixels: np.ndarray) -> list[np.ndarray]:
    turned = [np.rot90(pixels, quarter) for quarter in range(4)]
    return [*turned, *(np.fliplr(each) for each in turned)]


@pytest.mark.parametrize("shape", [(40, 40), (41, 41), (40, 31), (33, 62), (3, 5), (2, 2)])
def test_eight_positions_give_the_same_bits(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    seen = [turn(each, find_position(each)) for each in list_positions(pixels)]
    assert all(np.array_equal(each, seen[0]) for each in seen)
    fitted = [fit_slice(each, 24) for each in list_positions(pixels)]
    assert all(np.array_equal(each, fitted[0]) for each in fitted)
    assert np.array_equal(fitted[0], resize_grey(seen[0], 24))


def test_the_brighter_half_is_up_then_left_then_the_corner_at_the_right() -> None:
    # corners 1 2 / 4 8: the lower half and the right one are brighter, so both are flipped, which
    # gives 8 4 / 2 1; the corner at the top right is the brighter of the two
    pixels = np.array([[1, 2], [4, 8]], np.uint8)
    assert find_position(pixels) == Position(True, True, False)
    assert turn(pixels, Position(True, True, False)).tolist() == [[8, 4], [2, 1]]
    # 8 2 / 4 1: the corner below is brighter than that at the right
    assert find_position(np.array([[8, 2], [4, 1]], np.uint8)) == Position(False, False, True)


def test_a_middle_row_has_no_say() -> None:
    pixels = np.array([[3, 1], [0, 255], [1, 2]], np.uint8)
    assert find_position(pixels) == Position(False, False, False)


def test_what_is_its_own_mirror_image_is_left() -> None:
    assert find_position(np.full((5, 7), 9, np.uint8)) == Position(False, False, False)
    assert find_position(np.array([[7]], np.uint8)) == Position(False, False, False)


def test_turning_back_undoes_turning() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for bits in range(8):
        position = Position(bool(bits & 4), bool(bits & 2), bool(bits & 1))
        assert np.array_equal(turn_back(turn(pixels, position), position), pixels)


def test_a_map_comes_back_to_its_place_in_the_picture() -> None:
    pixels = np.zeros((60, 90), np.uint8)
    pixels[40:50, 70:80] = 200  # a bright spot, low and right
    for each in list_positions(pixels):
        heatmap = np.divide(fit_slice(each, 30), 255, dtype=np.float32)
        back = unfit_map(heatmap, (each.shape[0], each.shape[1]), find_position(each))
        assert back.shape == each.shape
        row, column = np.unravel_index(back.argmax(), back.shape)
        assert each[row, column] == 200
