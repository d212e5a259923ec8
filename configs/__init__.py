"""Runs: each file's `get_config()` gives one, or with an argument (`paper.py:NAME`) many."""
