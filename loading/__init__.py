"""Slices for training: pixel cache, batches from memory or disk, memory budget."""
