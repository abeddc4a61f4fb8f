"""Predictions for new pictures: files in, a table out."""
