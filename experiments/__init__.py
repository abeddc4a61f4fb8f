"""Measurements quoted in docs/, each a command: `python -m experiments.NAME`."""
