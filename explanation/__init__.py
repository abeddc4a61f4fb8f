"""Heat maps of what a network's prediction rests on, and their overlay on the slice."""
