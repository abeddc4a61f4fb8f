"""Lesions of slices: outlines by hand, brought to the input, and the choice of slices."""

import numpy as np
import pytest

from experiments.lesions import bring_to_input, draw_outline, find_head
from experiments.pointing_game import choose_slices
from helper import UserError


def test_an_outline_by_hand() -> None:
    """A square from column 2 to 4 and row 1 to 3 of a picture of 5 rows and 8 columns."""
    found = draw_outline("2,1 4,1 4,3 2,3", (5, 8))
    expected = np.zeros((5, 8), bool)
    expected[1:4, 2:5] = True
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("outline", ["2,1 4", "a,b c,d e,f", "", "1,2,3 4,5,6 7,8,9"])
def test_a_damaged_outline_is_refused(outline: str) -> None:
    with pytest.raises(UserError, match="x,y pairs"):
        draw_outline(outline, (5, 8))


def test_a_lesion_follows_its_slice() -> None:
    """A slice that is bright in the lower right is flipped twice; its lesion as well.

    The picture of 40 x 80 px is letterboxed to 80 x 80: 20 rows of black above and below.
    """
    pixels = np.zeros((40, 80), np.uint8)
    pixels[30:, 40:] = 200
    mask = np.zeros((40, 80), bool)
    mask[36:40, 70:80] = True
    found = bring_to_input(mask, pixels, 80).numpy()
    rows, columns = np.nonzero(found)
    assert found.sum() == 40
    # after the flips the lesion is at rows 0 to 3 and columns 0 to 9; the slice is then
    # transposed if its lower left corner is brighter than its upper right one, which it is not
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 23, 0, 9)


def test_the_head_is_the_largest_bright_part_without_holes() -> None:
    picture = np.zeros((64, 64), np.uint8)
    picture[16:48, 16:48] = 120
    picture[28:36, 28:36] = 0  # a hole
    picture[2:6, 2:6] = 255  # a label
    found = find_head(picture)
    assert found[32, 32]
    assert not found[3, 3]
    assert abs(int(found.sum()) - 32 * 32) < 200


def test_slices_are_spread_over_a_patient() -> None:
    patients = np.array(["a"] * 5 + ["b"] * 2 + ["c"])
    assert choose_slices(patients, 0).tolist() == list(range(8))
    assert choose_slices(patients, 1).tolist() == [2, 6, 7]
    assert choose_slices(patients, 2).tolist() == [1, 3, 5, 6, 7]
