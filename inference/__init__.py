"""Predict image files and DICOM series, and write the table."""
