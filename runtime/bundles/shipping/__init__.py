"""Bundles on their way to devices: versions by digest, who signed them, which one is active."""
