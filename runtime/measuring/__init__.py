"""Measuring what answering costs, and the search for settings that cost least."""
