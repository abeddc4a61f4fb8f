"""Command-line parser from dataclasses, atomic files and locks, signals."""
