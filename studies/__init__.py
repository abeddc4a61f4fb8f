"""Measurements that the documents quote: each a command, run as `python -m studies.NAME`."""
