"""The life of a run: start, resume, cross-validate, fit what belongs to val."""
