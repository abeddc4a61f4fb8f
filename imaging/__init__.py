"""Read images of every supported format as grey uint8 arrays in a standard orientation."""
