"""Builders, workers and corpora that tests share."""
