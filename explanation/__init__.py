"""Heat maps that explain predictions, and their overlay on slices."""
