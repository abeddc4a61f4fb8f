"""Scaling to 8 bits and the letterbox resize."""

import numpy as np
import pytest

from imaging.grayscale import resize_grey, scale_to_8_bit, shrink_grey

NOISE = np.random.default_rng(0).integers(0, 256, (24, 24), dtype=np.uint8)


@pytest.mark.parametrize(
    ("dtype", "values", "ends", "expected"),
    [
        (np.uint8, [0, 100, 255], (0, 255), [0, 100, 255]),
        (np.uint16, [0, 257, 25700, 65535], (0, 65535), [0, 1, 100, 255]),  # divided by 257
        (np.uint16, [0, 2048, 9999], (0, 4095), [0, 128, 255]),
        (np.int32, [-2000, -1024, 1024, 3071], (-1024, 3071), [0, 0, 128, 255]),
        (np.float32, [0.0, 0.1, 0.2], (0, 1), [0, 26, 51]),
        (np.float32, [3.5, 3.5, 3.5], (3.5, 3.5), [0, 0, 0]),
        (np.float32, [-3e38, 3e38], (-3e38, 3e38), [0, 255]),  # the range overflows float32
    ],
)
def test_scale_to_8_bit(
    dtype: type, values: list[float], ends: tuple[float, float], expected: list[int]
) -> None:
    assert scale_to_8_bit(np.array(values, dtype), *ends).tolist() == expected


def test_resize_keeps_the_aspect_ratio_on_black() -> None:
    square = resize_grey(np.full((10, 40), 200, np.uint8), 20)
    assert square.shape == (20, 20)
    assert square.dtype == np.uint8
    assert (square[7:12] == 200).all()  # 40 x 10 becomes 20 x 5 below 7 black rows
    assert not square[:7].any()
    assert not square[12:].any()
    assert (shrink_grey(np.full((10, 40), 200, np.uint8), 20) == np.full((5, 20), 200)).all()


def test_resize_of_equal_and_of_larger_size() -> None:
    np.testing.assert_array_equal(resize_grey(NOISE, 24), NOISE)
    np.testing.assert_array_equal(shrink_grey(NOISE, 30), NOISE)
    assert (resize_grey(np.full((3, 3), 9, np.uint8), 12) == 9).all()
    assert resize_grey(np.ones((1, 500), np.uint8), 16).shape == (16, 16)


def test_resize_is_antialiased() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    centre = resize_grey(stripes, 16)[4:12, 4:12].astype(int)
    assert np.abs(centre - 128).max() <= 3  # nearest neighbour would give 0 or 255
