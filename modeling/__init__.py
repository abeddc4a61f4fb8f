"""Weights, checkpoints, forward passes and arithmetic of networks."""
