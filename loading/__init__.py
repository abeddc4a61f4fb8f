"""Decoded slices in batches on the training device, from memory or from disk."""
