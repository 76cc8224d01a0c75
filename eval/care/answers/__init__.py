"""Answers to customers: written by every variant of a bundle, and measured without judges."""
