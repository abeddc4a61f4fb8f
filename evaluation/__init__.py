"""Predictions of checkpoints on a split, and metrics, intervals and calibration of them."""
