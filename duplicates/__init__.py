"""Find duplicates that no hash sees: flipped, turned, shifted, zoomed or recompressed slices."""
