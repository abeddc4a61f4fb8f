"""Measurements of benchmark.py: training speed beside an upper bound and a baseline, and stages."""
