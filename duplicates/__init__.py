"""Find duplicates that a hash misses: flipped, rotated, shifted, zoomed or recompressed slices."""
