"""Detect pictures whose values wrapped around: stored as 8 bits modulo 256 instead of scaled.

Some conversions of 12- or 16-bit slices to 8 bits keep the lower byte only. Where the brightness
passes a multiple of 256, neighbouring pixels then jump from nearly white to nearly black. A
difference modulo 256 undoes the jumps, so that it varies much less than the plain one.
"""

import numpy as np

from imaging.grayscale import Pixels

N_ROWS = 16  # compared; enough for a few hundred jumps
MIN_JUMPS = 0.01  # share of neighbours that differ by more than half the range
MIN_JUMPS_PER_ROW = 6  # on average; the edges of a bright head on black make two to four
# Share of the variation that differences modulo 256 remove. Pictures of black and white alone, such
# as masks, are above.
REMOVED = (0.1, 0.8)


def is_wrapped(pixels: Pixels) -> bool:
    """Return whether uint8 [H, W] looks like values modulo 256."""
    rows = pixels[:: max(1, len(pixels) // N_ROWS)].astype(np.int16)
    differences = np.abs(rows[:, 1:] - rows[:, :-1])
    jumps = differences > 128
    least = max(MIN_JUMPS * differences.size, MIN_JUMPS_PER_ROW * len(rows))
    if np.count_nonzero(jumps) < least:
        return False
    removed = (2 * differences[jumps].astype(np.int64) - 256).sum() / differences.sum()
    return bool(REMOVED[0] <= removed <= REMOVED[1])
