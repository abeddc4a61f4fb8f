"""Start, resume and finish runs, cross-validate, fit calibration and OOD detection."""
