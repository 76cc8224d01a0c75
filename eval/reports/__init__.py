"""Findings as text, Markdown, plots, pages and JSON."""
