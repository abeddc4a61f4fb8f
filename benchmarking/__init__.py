"""Measurements of benchmark.py: training speed with upper bound and baseline, other stages."""
