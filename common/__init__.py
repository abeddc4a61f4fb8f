"""Command-line parsing from dataclasses, atomic files and folders, locks, signal handling."""
