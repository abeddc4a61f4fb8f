"""Read a picture of any supported format as grey, in one orientation and at one size."""
