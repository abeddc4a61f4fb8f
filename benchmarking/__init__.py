"""What benchmark.py measures: training beside its own limit and a DataLoader baseline."""
