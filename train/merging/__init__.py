"""Adapters merged into one: which, and how the result compares."""
