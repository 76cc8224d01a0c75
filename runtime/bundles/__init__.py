"""Bundles: their manifest, their formats, and opening an engine on their files."""
