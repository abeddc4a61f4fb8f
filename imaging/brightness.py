"""Brightness statistics of images, which do not depend on where their pixels are."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

N_STATISTICS = 7
DARK_LEVEL = 10  # of 255: air and background are darker
PERCENTILES = (25, 50, 75, 95)
CHUNK_PIXELS = 2**22  # 32 MiB as float64


def compute_brightness_statistics(
    pixels: NDArray[np.uint8] | NDArray[np.integer[Any]],
) -> NDArray[np.float64]:
    """Compute seven brightness statistics of each image.

    Args:
        pixels: [N, H, W] grey levels, 0 to 255; a memory map is read in chunks.

    Returns:
        [N, 7]: mean, standard deviation, share of pixels below 10 (0 to 1), and the 25th, 50th,
        75th and 95th percentile; grey levels except for the share.
    """
    n_images, height, width = pixels.shape
    statistics = np.empty((n_images, N_STATISTICS))
    chunk_size = max(1, CHUNK_PIXELS // (height * width))
    for start in range(0, n_images, chunk_size):
        chunk = pixels[start : start + chunk_size].reshape(-1, height * width)
        rows = statistics[start : start + chunk_size]
        rows[:, 0] = chunk.mean(axis=1)
        rows[:, 1] = chunk.std(axis=1)
        rows[:, 2] = (chunk < DARK_LEVEL).mean(axis=1)
        rows[:, 3:] = np.percentile(chunk, PERCENTILES, axis=1).T
    return statistics
