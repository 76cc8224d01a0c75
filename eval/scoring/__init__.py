"""Scoring the variants of a bundle: a record for each question, a summary for each task."""
