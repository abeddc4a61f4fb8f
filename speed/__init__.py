"""What benchmark.py measures: the program beside its own limit and beside the usual way."""
