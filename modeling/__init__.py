"""Pretrained weights, checkpoints, forward passes, precision and activation statistics."""
