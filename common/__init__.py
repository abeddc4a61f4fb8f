"""Command-line parsing, atomic files and locks, signal handling, facts about the machine."""
