"""Brightness statistics: by hand, and in chunks."""

import numpy as np
import pytest

from imaging import brightness
from imaging.brightness import compute_brightness_statistics


def test_statistics_by_hand() -> None:
    pixels = np.array(
        [[[0, 10, 20], [30, 40, 50]], [[9, 9, 9], [9, 9, 9]], [[0, 0, 0], [0, 255, 255]]], np.uint8
    )
    expected = [
        [25.0, np.sqrt(1750 / 6), 1 / 6, 12.5, 25.0, 37.5, 47.5],
        [9.0, 0.0, 1.0, 9.0, 9.0, 9.0, 9.0],
        # sorted 0 0 0 0 255 255: the 75th percentile is 3/4 of the way from the 4th to the 5th
        [85.0, 85 * np.sqrt(2), 4 / 6, 0.0, 0.0, 191.25, 255.0],
    ]
    result = compute_brightness_statistics(pixels)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, expected, atol=1e-12)
    flipped = compute_brightness_statistics(np.rot90(pixels, axes=(1, 2)))
    np.testing.assert_allclose(flipped, expected, atol=1e-12)
    assert compute_brightness_statistics(pixels[:0]).shape == (0, 7)


def test_chunks_do_not_change_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 4), dtype=np.uint8)
    whole = compute_brightness_statistics(pixels)
    for n_pixels in (1, 20, 59, 60):  # one, one, two and three images per chunk
        monkeypatch.setattr(brightness, "CHUNK_PIXELS", n_pixels)
        np.testing.assert_array_equal(compute_brightness_statistics(pixels), whole)
