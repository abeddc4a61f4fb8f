"""Predict splits with checkpoints; compute metrics, intervals, calibration and robustness."""
