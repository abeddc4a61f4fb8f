"""Predict image files, arrays and DICOM series, and write the table.

From Python: `from inference import load_predictor`, see docs/python.md.
"""

from inference.python_api import Predictor, Result, load_predictor

__all__ = ["Predictor", "Result", "load_predictor"]
